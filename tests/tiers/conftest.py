"""Expert files of lynx-nano, and its answers with all experts in memory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from tiered import answers

from lynx_rt import _C, Engine


@pytest.fixture(scope="session")
def packed(nano_path: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Returns packed(quantization) -> expert file of lynx-nano."""
    folder = tmp_path_factory.mktemp("packed")

    def made(quantization: str) -> Path:
        path = folder / quantization
        if not path.exists():
            _C.pack_experts(nano_path, str(path), quantization)
        return path

    return made


@pytest.fixture(scope="session")
def expected(nano_path: str) -> Callable[..., list[tuple[Any, Any]]]:
    """Returns expected(quantization, **options) -> answers with all experts in memory. Prompts have steps of their own, as with a store."""
    made: dict[str, list[tuple[Any, Any]]] = {}

    def of(**options: Any) -> list[tuple[Any, Any]]:
        key = repr(options)
        if key not in made:
            with Engine(nano_path, enable_mixed_chunk=False, **options) as engine:
                made[key] = answers(engine)
        return made[key]

    return of
