"""The vision tower alone beside transformers', on tiny random checkpoints: every size odd in some way, heads of 4 to 72 columns, with and
without deepstack, grids from one merge block to long ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from family_models_hybrid import linear, moe
from family_models_vision import moe as vl_moe
from family_parity import Row, reference, write, written_once
from numpy.typing import NDArray

from lynx_rt import _C_testing as T
from lynx_rt.errors import CheckpointError, LynxError, UnsupportedModelError, ValidationError

Array = NDArray[np.float32]
BOUND = 1e-5  # of the largest value of a row's tower or deepstack part
MERGE = 2


def tower(hidden: int, heads: int, width: int, depth: int, deepstack: list[int], positions: int = 49, **keys: Any) -> dict[str, Any]:
    return {"depth": depth, "hidden_size": hidden, "intermediate_size": width, "num_heads": heads, "patch_size": 4,
            "spatial_merge_size": MERGE, "temporal_patch_size": 2, "out_hidden_size": 48, "num_position_embeddings": positions,
            "in_channels": 3, "deepstack_visual_indexes": deepstack} | keys  # fmt: skip


HYBRID = linear(2, 4, 12, 8)
# fmt: off
ROWS = [
    Row("qwen3_vl_moe", "d72", vl_moe(8, 2, 17), vision=tower(144, 2, 101, 3, [0, 2]), spread=0.1),
    Row("qwen3_vl_moe", "d4", vl_moe(8, 2, 17), vision=tower(12, 3, 7, 2, [], positions=50, patch_size=3), dtype="bfloat16"),
    Row("qwen3_vl_moe", "one_frame", vl_moe(8, 2, 17), vision=tower(40, 1, 33, 2, [1], temporal_patch_size=1, in_channels=1), sharded=True),
    Row("qwen3_vl", "d12", {"head_dim": 12}, vision=tower(60, 5, 90, 4, [0, 1, 3], patch_size=2)),
    Row("qwen3_vl", "one_position", {"head_dim": 12}, vision=tower(24, 2, 50, 1, [0], positions=1), dtype="float16"),
    Row("qwen3_5_moe", "d36", moe() | HYBRID, vision=tower(72, 2, 65, 2, []), spread=0.15),
    Row("qwen3_5", "d20", HYBRID, vision=tower(40, 2, 300, 3, [], positions=9), spread=0.15),
    Row("qwen3_5", "theta", HYBRID, vision=tower(64, 4, 31, 2, [], rope_parameters={"rope_type": "axial", "rope_theta": 300.0}), spread=0.15),
]
# fmt: on
GRIDS = [(2, 2), (2, 30), (4, 6), (14, 2), (10, 12)]


@pytest.fixture(scope="module")
def path_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Row], str]:
    return written_once(tmp_path_factory)


def patches_of(row: Row, grid: tuple[int, int], seed: int = 0) -> Array:
    v = row.vision
    assert v
    columns = v["in_channels"] * v["temporal_patch_size"] * v["patch_size"] ** 2
    return np.random.default_rng([seed, *grid]).standard_normal((grid[0] * grid[1], columns)).astype(np.float32)


def expected(row: Row, path: str, patches: Array, grid: tuple[int, int]) -> list[Array]:
    """The merger's rows, then those of each deepstack merger."""
    visual = reference(row, path).model.visual
    with torch.no_grad():
        out = visual(torch.from_numpy(patches), torch.tensor([[1, *grid]]), return_dict=True)
    return [t.numpy() for t in [out.pooler_output, *(getattr(out, "deepstack_features", None) or [])]]


def difference(got: Array, parts: list[Array]) -> float:
    """The largest difference, relative to the largest value of the part."""
    assert got.shape == (len(parts[0]), sum(p.shape[1] for p in parts))
    split = np.split(got, len(parts), axis=1)
    return max(float(np.abs(g - p).max() / np.abs(p).max()) for g, p in zip(split, parts, strict=True))


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r.id)
def test_equals_transformers(row: Row, path_of: Callable[[Row], str]) -> None:
    path = path_of(row)
    ours = T.VisionTower(path)
    for grid in GRIDS:
        patches = patches_of(row, grid)
        found = difference(ours.encode(patches, *grid), expected(row, path, patches, grid))
        assert found <= BOUND, grid


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bits_do_not_depend_on_threads_or_cuts(dtype: str, path_of: Callable[[Row], str]) -> None:
    row = ROWS[0]
    path, grid = path_of(row), (24, 44)  # more rows than are multiplied at a time
    patches, other = patches_of(row, grid), patches_of(row, (6, 2), 1)
    one = T.VisionTower(path, dtype, num_threads=1)
    whole = one.encode(patches, *grid, blocks=100)
    np.testing.assert_array_equal(one.encode(patches, *grid, blocks=1), whole)
    one.encode(other, 6, 2)
    np.testing.assert_array_equal(one.encode(patches, *grid, blocks=2), whole)  # nothing is left of another image
    np.testing.assert_array_equal(T.VisionTower(path, dtype, num_threads=3).encode(patches, *grid), whole)
