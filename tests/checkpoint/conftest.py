"""Fixtures: models to quantise."""

import json
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "model"))
import tiny_models as tm


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """Returns plain(model) -> (tensors, config) of the checkpoint."""
    made = {}

    def get(tiny):
        key = tiny.name, tiny.dtype
        if key not in made:
            folder = Path(tm.write(tiny, tmp_path_factory.mktemp(tiny.name)))
            made[key] = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
        tensors, config = made[key]
        return dict(tensors), dict(config)

    return get
