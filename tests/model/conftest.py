"""Checkpoints of tiny_models.py and their transformers references, made once per session."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Returns tiny_path(name) -> folder of that checkpoint."""
    import tiny_models

    root = tmp_path_factory.mktemp("tiny_models")
    return cache(lambda name: tiny_models.write(tiny_models.ALL[name], root / name))


@pytest.fixture(scope="session")
def reference_of() -> Callable[[str, str], Any]:
    """Returns reference_of(path, dtype) -> the transformers model."""
    import tiny_models

    return cache(tiny_models.reference)
