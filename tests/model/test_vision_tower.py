"""The vision tower alone beside transformers', on tiny random checkpoints: every size odd in some way, heads of 4 to 72 columns, with and
without deepstack, grids from one merge block to long ones."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_models_hybrid import linear, moe
from family_models_vision import moe as vl_moe
from family_parity import Row, reference, written_once
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from lynx_rt import _C
from lynx_rt import _C_testing as T
from lynx_rt.errors import CheckpointError, LynxError, UnsupportedModelError, ValidationError

Array = NDArray[np.float32]
BOUND = 1e-5  # of the largest value of a row's tower or deepstack part
MERGE = 2


def tower(
    hidden: int, heads: int, width: int, depth: int, deepstack: list[int], positions: int = 49, **keys: Any
) -> dict[str, Any]:
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


def test_a_block_is_what_its_patches_are(path_of: Callable[[Row], str]) -> None:
    """The whole tower sees all patches: a change of one changes every row."""
    row, grid = ROWS[3], (4, 4)
    ours, patches = T.VisionTower(path_of(row)), patches_of(row, grid)
    before = ours.encode(patches, *grid)
    patches[-1] += 1
    assert (ours.encode(patches, *grid) != before).any(axis=1).all()


def test_quantised_and_made_up_weights(path_of: Callable[[Row], str]) -> None:
    row, grid = ROWS[0], (6, 8)
    path, patches = path_of(row), patches_of(row, grid)
    plain = T.VisionTower(path)
    whole = plain.encode(patches, *grid)
    for name, bound in (("int8", 0.05), ("int4", 0.5)):  # half a code is 1/254 and 1/15 of a group's largest weight
        ours = T.VisionTower(path, quantization=name)
        assert ours.weight_bytes() < plain.weight_bytes()
        assert 0 < np.abs(ours.encode(patches, *grid) - whole).max() < bound * np.abs(whole).max()
    assert np.isfinite(T.VisionTower(path, dummy=True).encode(patches, *grid)).all()


def test_weights_are_counted(path_of: Callable[[Row], str]) -> None:
    path = path_of(ROWS[0])
    tensors = load_file(Path(path, "model.safetensors"))
    assert _C.inspect(path)["weight_bytes"] == sum(t.nbytes for t in tensors.values())


@pytest.fixture
def edited(path_of: Callable[[Row], str], tmp_path: Path) -> Callable[..., str]:
    """Returns f(config edits, tensor edit) -> a folder of ROWS[0] with them."""

    def edit(of_vision: dict[str, Any] | None = None, tensors: Callable[[dict[str, Any]], None] | None = None) -> str:
        folder = shutil.copytree(path_of(ROWS[0]), tmp_path / "edited", dirs_exist_ok=True)
        config = json.loads((folder / "config.json").read_text())
        config["vision_config"].update(of_vision or {})
        (folder / "config.json").write_text(json.dumps(config))
        if tensors:
            values = load_file(folder / "model.safetensors")
            tensors(values)
            save_file(values, folder / "model.safetensors", {"format": "pt"})
        return str(folder)

    return edit


def test_a_checkpoint_without_the_tower_reads_text(edited: Callable[..., str]) -> None:
    def drop(tensors: dict[str, Any]) -> None:
        for name in [n for n in tensors if n.startswith("model.visual.")]:
            del tensors[name]

    path = edited(tensors=drop)
    assert _C.Engine(path, max_num_seqs=1).forward([1, 2, 3], 3).shape == (3, 97)
    with pytest.raises(UnsupportedModelError, match="no vision tower"):
        T.VisionTower(path)


@pytest.mark.parametrize("name", ["model.visual.blocks.1.attn.qkv.bias", "model.visual.patch_embed.proj.weight"])
def test_a_tower_is_there_whole(edited: Callable[..., str], name: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(name)):
        T.VisionTower(edited(tensors=lambda tensors: tensors.pop(name)))


def test_an_unknown_tensor_of_the_tower_is_refused(edited: Callable[..., str]) -> None:
    def add(tensors: dict[str, Any]) -> None:
        tensors["model.visual.deepstack_merger_list.2.norm.bias"] = tensors["model.visual.merger.norm.bias"].clone()

    with pytest.raises(CheckpointError, match=r"deepstack_merger_list\.2"):
        T.VisionTower(edited(tensors=add))


@pytest.mark.parametrize(
    "keys, found",
    [
        ({"hidden_act": "gelu"}, "hidden_act.*gelu.*gelu_pytorch_tanh"),
        ({"num_heads": 5}, "num_heads.*multiple of 4 columns, got 5 for hidden_size 144"),
        ({"num_heads": 72}, "num_heads.*multiple of 4"),
        ({"patch_size": [4, 3]}, "patch_size.*equal"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type.*yarn.*axial"),
        ({"deepstack_visual_indexes": [2, 0]}, "deepstack_visual_indexes.*2, 0.*rising"),
        ({"deepstack_visual_indexes": [0, 3]}, "deepstack_visual_indexes.*3"),
        ({"depth": 0}, "depth.*0"),
        ({"spatial_merge_size": "two"}, "spatial_merge_size"),
    ],
    ids=str,
)
def test_a_tower_that_would_be_computed_wrongly_is_refused(
    edited: Callable[..., str], keys: dict[str, Any], found: str
) -> None:
    with pytest.raises(LynxError, match=found):
        T.VisionTower(edited(keys))


def test_keys_of_older_files_are_read(edited: Callable[..., str], path_of: Callable[[Row], str]) -> None:
    row, grid = ROWS[0], (2, 4)
    patches = patches_of(row, grid)
    older = edited(
        {
            "model_type": "qwen3_vl_moe",
            "patch_size": [4, 4],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        }
    )
    np.testing.assert_array_equal(
        T.VisionTower(older).encode(patches, *grid), T.VisionTower(path_of(row)).encode(patches, *grid)
    )


@pytest.mark.parametrize("grid, found", [((3, 2), "grid_height.*multiple of 2 patches, got 3"), ((2, 1), "grid_width"),
                                         ((0, 2), "grid_height"), ((2, 34), "at most 64 patches, got 2 [*] 34")])  # fmt: skip
def test_grids(path_of: Callable[[Row], str], grid: tuple[int, int], found: str) -> None:
    ours = T.VisionTower(path_of(ROWS[0]), max_patches=64)
    with pytest.raises(ValidationError, match=found):
        ours.encode(patches_of(ROWS[0], grid), *grid)
    assert ours.encode(patches_of(ROWS[0], (2, 32)), 2, 32).shape == (16, 3 * 48)
