"""The images of an engine's prompts: opened, counted in tokens, and brought to the patches that the model's vision tower reads.

An image takes two steps. `place` reads no more than its header, and makes its placeholder as many tokens as it takes: enough to count
tokens, and to refuse a prompt that is too long before anything large is decoded. `patches` decodes it, when its request is made.
Pillow is imported for prompts with images alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from lynx_rt.errors import CheckpointError, ValidationError, shown
from lynx_rt.text.image_parts import max_pixels_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lynx_rt.text.image_parts import ImageSource
    from lynx_rt.text.prompts import ParsedPrompt
    from lynx_rt.text.tokenizer import Tokenizer
    from lynx_rt.vision.preprocess import ImageProcessorConfig


class NativeImage(TypedDict):
    """An image as the compiled engine takes it."""

    position: int  # of its first token in the prompt
    grid_height: int  # in patches
    grid_width: int
    patches: NDArray[np.float32]
    digest: bytes


_AROUND = ("<|vision_start|>", "<|vision_end|>")  # tokens around an image, in models that have them
MAX_IMAGES = 999  # of a prompt, unless limit_mm_per_prompt says otherwise; vLLM's default


class ImagePlaceholder(NamedTuple):
    """Stands for an image in a prompt's text."""

    token: str  # which becomes the image's tokens: "<|image_pad|>"
    text: str  # as chats have it: "<|vision_start|><|image_pad|><|vision_end|>"


class ImageInputs:
    """Handles the images of one engine's prompts. Thread-safe."""

    def __init__(
        self,
        folder: Path,
        model_info: Mapping[str, Any],
        limit_mm_per_prompt: Mapping[str, int] | None,
        mm_processor_kwargs: Mapping[str, Any] | None,
        allowed_local_media_path: str | os.PathLike[str] | None,
    ) -> None:
        """folder: of the model, whose preprocessor_config.json is read where the model reads images.

        Raises ValidationError that names the option, CheckpointError for a processor that does not fit the model.
        """
        self._max_images = _limit(limit_mm_per_prompt)
        self._allowed_folder = _folder(allowed_local_media_path)
        max_pixels = max_pixels_of(mm_processor_kwargs)
        self._token_id = int(model_info.get("image_token_id", -1))
        self._config: ImageProcessorConfig | None = None
        if self._token_id >= 0:
            from lynx_rt.vision.preprocess import ImageProcessorConfig, read_image_processor

            sizes: dict[str, Any] = {
                name: int(model_info[name]) for name in ("patch_size", "temporal_patch_size", "merge_size")
            }
            config = read_image_processor(folder, ImageProcessorConfig(**sizes))
            for name, size in sizes.items():
                if getattr(config, name) != size:
                    raise CheckpointError(
                        f"preprocessor_config.json: {name} is {getattr(config, name)}, and the model's is {size}",
                        name,
                    )
            self._config = config.limited(max_pixels)

    @property
    def reads_images(self) -> bool:
        """Whether the model has a vision tower."""
        return self._config is not None

    def placeholder(self, tokenizer: Tokenizer | None) -> ImagePlaceholder | None:
        """Returns what stands for an image in a text; None where there are no images or no texts."""
        if tokenizer is None or not self.reads_images:
            return None
        token, special = tokenizer.piece(self._token_id), tokenizer.special_token_ids
        around = [tokenizer.encode(mark, add_special_tokens=False) for mark in _AROUND]
        if all(len(ids) == 1 and ids[0] in special for ids in around):
            return ImagePlaceholder(token, token.join(_AROUND))
        return ImagePlaceholder(token, token)

    @property
    def max_images(self) -> int:
        """Images that a prompt may have."""
        return self._max_images

    def place(self, prompt: ParsedPrompt) -> None:
        """Replaces the one placeholder of each image by as many as the image has tokens. Raises ValidationError."""
        images, ids = prompt.images, prompt.token_ids
        count = ids.count(self._token_id)
        if len(images) > self._max_images:
            raise ValidationError(
                f"{prompt.label}: at most {self._max_images} images may be in a prompt (limit_mm_per_prompt), got {len(images)}",
                images[0].field,
            )
        if count != len(images):
            raise ValidationError(
                f"{prompt.label}: expected one image placeholder (token {self._token_id}) for each image, got {count} for "
                f"{len(images)} images",
                images[0].field if images else "prompts",
            )
        if not images:
            return
        config = self._config_of(prompt)
        from lynx_rt.vision.image import image_size
        from lynx_rt.vision.preprocess import num_image_tokens
        from lynx_rt.vision.sources import read_source

        placed: list[int] = []
        start = 0
        for image in images:
            with _named(image):
                image.value = read_source(image.value, image.name, allowed_folder=self._allowed_folder)
                image.num_tokens = num_image_tokens(*image_size(image.value, image.name), config)
            end = ids.index(self._token_id, start)
            placed += ids[start:end]
            image.position = len(placed)
            placed += [self._token_id] * image.num_tokens
            start = end + 1
        prompt.token_ids = placed + ids[start:]

    def patches(self, prompt: ParsedPrompt, salt: str) -> list[NativeImage]:
        """Returns a placed prompt's images as the compiled engine takes them.

        salt: requests of different salts do not learn from the time of an answer that another has sent the same image.
        Raises ValidationError for an image that cannot be decoded.
        """
        if not prompt.images:
            return []
        from lynx_rt.vision.image import image_from_object
        from lynx_rt.vision.preprocess import patches_of

        config = self._config_of(prompt)
        native: list[NativeImage] = []
        for image in prompt.images:
            with _named(image):
                found = patches_of(image_from_object(image.value, image.name), config)
            digest = hashlib.sha256(salt.encode() + found.digest).digest() if salt else found.digest
            native.append(
                NativeImage(
                    position=image.position,
                    grid_height=found.grid_height,
                    grid_width=found.grid_width,
                    patches=found.rows,
                    digest=digest,
                )
            )
        return native

    def _config_of(self, prompt: ParsedPrompt) -> ImageProcessorConfig:
        assert self._config is not None
        try:
            return self._config.limited(prompt.max_pixels)
        except ValidationError as error:
            raise ValidationError(f"{prompt.label}: mm_processor_kwargs: {error}", "mm_processor_kwargs") from None


def as_prompt(prompt: ParsedPrompt) -> dict[str, Any]:
    """Returns a parsed prompt in the form of callers: with one placeholder for each image again."""
    ids: list[int] = []
    start = 0
    for image in prompt.images:
        ids += prompt.token_ids[start : image.position + 1]
        start = image.position + image.num_tokens
    found: dict[str, Any] = {"prompt": prompt.text, "prompt_token_ids": ids + prompt.token_ids[start:]}
    if prompt.images:
        found["multi_modal_data"] = {"image": [image.value for image in prompt.images]}
    if prompt.max_pixels is not None:
        found["mm_processor_kwargs"] = {"max_pixels": prompt.max_pixels}
    return found


@contextmanager
def _named(image: ImageSource) -> Iterator[None]:
    """Gives errors the field in which the image came."""
    try:
        yield
    except ValidationError as error:
        raise ValidationError(str(error), image.field) from None


def _limit(limits: Mapping[str, int] | None) -> int:
    name = "limit_mm_per_prompt"
    if limits is None:
        return MAX_IMAGES
    if not isinstance(limits, Mapping):
        raise ValidationError(f"{name} must be a dict such as {{'image': 4}}, got {shown(limits)}", name)
    for medium, count in limits.items():
        if medium not in ("image", "video", "audio"):
            raise ValidationError(f"{name} may have 'image', got {shown(medium)}", name)
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ValidationError(f"{name}[{medium!r}] must be an integer of at least 0, got {shown(count)}", name)
    return int(limits.get("image", MAX_IMAGES))


def _folder(path: str | os.PathLike[str] | None) -> Path | None:
    if path is None or path == "":
        return None
    if not Path(path).is_dir():
        raise ValidationError(
            f"allowed_local_media_path must be a folder, got {shown(os.fspath(path))}", "allowed_local_media_path"
        )
    return Path(path)
