"""Fixtures: tiny checkpoints (tests/model/tiny_models.py) for the engine tests."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "model")]


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Returns tiny_path(name) -> folder of that checkpoint."""
    import tiny_models

    root = tmp_path_factory.mktemp("tiny_models")
    return cache(lambda name: tiny_models.write(tiny_models.ALL[name], root / name))
