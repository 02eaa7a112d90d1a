"""lynx-nano as if it had a vision tower: the tokens of images are there, and what the compiled engine is given of them is kept.

What a tower makes of images is tested with models that have one (tests/model); this is for everything before it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from lynx_rt import _C, Engine, shipped_model

IMAGE_TOKEN = 0  # <|pad|>, which the placeholder is here
PLACEHOLDER = "<|pad|>"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ 'A: ' if m.role == 'assistant' else 'Q: ' }}"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'image' %}<|pad|>{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}"
    "{{ eos_token if m.role == 'assistant' else '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'A:' }}{% endif %}"
)
RealCore = _C.Engine


class FakeCore:
    """The compiled engine, which also takes images, keeps them, and runs the prompt without them."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._real = RealCore(*args, **options)
        self.images: list[list[dict[str, Any]]] = []  # of each request that had some

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def model_info(self) -> dict[str, Any]:
        vision = {"image_token_id": IMAGE_TOKEN, "patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
        return {**self._real.model_info(), **vision}

    def add_request(self, ids: list[int], params: Any, mask: Any = None, images: Any = None) -> int:
        if images is not None:
            for image in images:
                count = image["grid_height"] * image["grid_width"]
                patches, tokens = image["patches"], ids[image["position"] : image["position"] + count // 4]
                assert tokens == [IMAGE_TOKEN] * (count // 4) and len(image["digest"]) == 32
                assert patches.dtype == "float32" and patches.shape == (count, 1536) and patches.flags.c_contiguous
            self.images.append(images)
        return self._real.add_request(ids, params, mask)


@contextlib.contextmanager
def pictured_engine(**options: Any) -> Iterator[Engine]:
    """Yields an Engine with a FakeCore, which is its `_core`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_C, "Engine", FakeCore)
        engine = Engine(shipped_model(), **{"chat_template": TEMPLATE, **options})
    with engine:
        yield engine
