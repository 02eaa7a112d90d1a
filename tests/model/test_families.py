"""Every family against transformers. family_parity.py has the checks, family_models_*.py the checkpoints."""

from __future__ import annotations

import json
from dataclasses import replace

import family_models_gemma
import family_models_hybrid
import family_models_latent
import family_models_more
import family_models_plain
import family_models_special
import family_models_states
import family_models_vision
import numpy as np
import pytest
import tiny_models as tm
from family_parity import check_family, engine, greedy, prompts_for, reference, write
from safetensors import safe_open

from lynx_rt import _C

ROWS = (
    family_models_plain.ROWS
    + family_models_special.ROWS
    + family_models_gemma.ROWS
    + family_models_more.ROWS
    + family_models_hybrid.ROWS
    + family_models_states.ROWS
    + family_models_latent.ROWS
    + family_models_vision.ROWS
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_family(row, tmp_path):
    check_family(row, write(row, tmp_path))


# The first row of each family; those with a vision tower are computed as the text models.
FIRST = list({row.model_type: row for row in reversed(ROWS) if not row.edit_reference and not row.vision}.values())


@pytest.mark.parametrize("row", FIRST, ids=lambda row: row.id)
def test_bfloat16(row, tmp_path):
    """Against float32 on the same weights, the typical row is no further off than transformers' own bfloat16: test_transformers_parity.py
    says why. (Measured: about half as far. Rows whose experts flip are many standard deviations off on both sides, so that only medians
    compare.)"""
    row = replace(row, dtype="bfloat16")
    path = write(row, tmp_path)
    e, exact, rounded = (
        engine(path, dtype="bfloat16", **row.options),
        reference(row, path),
        tm.reference(path, "bfloat16"),
    )
    ours, theirs = [], []
    for prompt in prompts_for(row):
        ids = prompt + [token for token, _ in greedy(e, [prompt], 32)[0]]
        ref = tm.reference_logits(exact, ids)
        ours.append(np.abs(e.forward(ids) - ref).max(1))
        theirs.append(np.abs(tm.reference_logits(rounded, ids) - ref).max(1))
    ours, theirs = np.median(np.concatenate(ours)), np.median(np.concatenate(theirs))
    assert 0 < ours <= theirs, f"median over rows of the largest error: {ours:.3g} against {theirs:.3g}"


@pytest.mark.parametrize("row", FIRST, ids=lambda row: row.id)
def test_every_weight_is_placed(row, tmp_path):
    """weight_bytes counts what is placed on the backend: all that the checkpoint holds, but for what chooses tokens in sparse attention."""
    info = _C.inspect(write(row, tmp_path))
    file = (tmp_path / "model.safetensors").read_bytes()
    header = json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])
    spans = [tensor["data_offsets"] for name, tensor in header.items() if ".indexer." in name]
    left_out = sum(end - begin for begin, end in spans)
    assert info["weight_bytes"] == info["checkpoint_bytes"] - left_out


LAYOUTS = {
    "mixtral-plain": "block_sparse_moe.experts.0.w1.weight",
    "mixtral-fused": "mlp.experts.gate_up_proj",
    "qwen2_moe-plain": "mlp.experts.0.gate_proj.weight",
    "qwen2_moe-fused": "mlp.experts.gate_up_proj",
    "phimoe-plain": "block_sparse_moe.gate.weight",
    "phimoe-fused": "mlp.router.weight",
    "granitemoe-plain": "block_sparse_moe.input_linear.weight",
    "granitemoe-renamed": "block_sparse_moe.experts.gate_up_proj",
    "hunyuan_v1_moe-plain": "mlp.experts.0.up_proj.weight",
    "hunyuan_v1_moe-fused": "mlp.experts.gate_up_proj",
    "qwen3_next-plain": "mlp.experts.0.up_proj.weight",
    "qwen3_next-fused": "mlp.experts.gate_up_proj",
    "qwen3_5_moe_text-plain": "linear_attn.in_proj_qkv.weight",
    "qwen3_5_moe_text-fused": "mlp.experts.gate_up_proj",
    "lfm2_moe-plain": "feed_forward.experts.0.w1.weight",
    "lfm2_moe-fused": "self_attn.out_proj.weight",
    "nemotron_h-fused": "mixer.experts.up_proj",
    "kimi_linear-plain": "block_sparse_moe.experts.0.w3.weight",
    "kimi_linear-fused": "self_attn.forget_gate.f_a_proj.weight",
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_on_disk(name, tmp_path):
    """The rows cover the layouts that they are meant to."""
    write(next(row for row in ROWS if row.id == name), tmp_path)
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        assert f"model.layers.1.{LAYOUTS[name]}" in file.keys()  # noqa: SIM118


def test_every_family_has_six_checkpoints():
    assert len({row.id for row in ROWS}) == len(ROWS)
    for model_type in _C.supported_model_types():
        # test_transformers_parity.py; rows of their text models; test_odd_checkpoints.py
        if model_type not in ("qwen3", "qwen3_moe", "llama4", "gemma4", "kimi_k2"):
            assert sum(row.model_type == model_type for row in ROWS) >= 6, model_type
