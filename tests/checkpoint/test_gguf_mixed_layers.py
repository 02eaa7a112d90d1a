"""Qwen3-Next, Qwen3.5 and Gemma 4 in GGUF, against the same weights in safetensors; and malformed metadata, which are refused."""

from __future__ import annotations

import copy
import sys
from functools import partial
from pathlib import Path
from typing import Any

import gguf_bytes as gb
import gguf_files as gf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

sys.path.insert(0, str(Path(__file__).parent))
from family_models_gemma import FULL, SLIDING, gemma4, ropes
from family_models_hybrid import HALF, add_mtp, by_interval, kinds, linear, moe, mrope
from family_parity import F32_BOUND, Row, greedy, write, written_once
from family_parity import engine as make_engine
from test_gguf import TOKENS, logits, save_reference

from lynx_rt import _C, CheckpointError, UnsupportedModelError

Hybrid = partial(Row, spread=0.15)
TYPES = mrope(1e4, [1, 1, 0], 0.25)
# fmt: off
NEXT = [
    Hybrid("qwen3_next", "plain", linear(2, 4, 8, 12) | moe() | HALF),
    Hybrid("qwen3_next", "kinds", linear(2, 6, 8, 8, 2, attention_bias=True) | moe(5, 3, 9) | kinds("lflf") | TYPES, edit_tensors=add_mtp),
    Hybrid("qwen3_next", "interval", linear(1, 2, 16, 33) | moe(6, 6) | HALF, edit=by_interval),
]
QWEN35 = [
    Hybrid("qwen3_5_moe_text", "plain", linear(2, 4, 8, 12) | moe() | HALF),
    Hybrid("qwen3_5_moe_text", "fused", linear(2, 6, 10, 6, 3) | moe(7, 3, 13, 9, tie_word_embeddings=True) | mrope(1e7, [2, 1, 1]), fused=True),
    Hybrid("qwen3_5_moe_text", "kinds", linear(3, 6, 8, 8, 2, attention_bias=True) | moe(16, 4, 9) | kinds("lflf") | HALF, edit_tensors=add_mtp),
    Hybrid("qwen3_5_moe_text", "one_each", linear(3, 3, 8, 8) | moe() | TYPES),  # a value head for each key head: the order is one
    Hybrid("qwen3_5_text", "plain", linear(2, 4, 8, 12) | HALF, edit_tensors=add_mtp),
    Hybrid("qwen3_5_text", "tied", linear(1, 3, 16, 33, tie_word_embeddings=True) | kinds("fl") | TYPES),
]
GEMMA = [
    Row("gemma4_text", "plain", gemma4()),
    Row("gemma4_text", "k_eq_v", gemma4(9, 3, 17, attention_k_eq_v=True, num_global_key_value_heads=1, num_key_value_heads=4,
        final_logit_softcapping=6.0, global_head_dim=26)),
    Row("gemma4_text", "dense", gemma4(0, attention_k_eq_v=True, final_logit_softcapping=3.0, sliding_window=1, intermediate_size=33)),
    Row("gemma4_text", "full", gemma4(8, 8, 16, layer_types=[FULL] * 3, tie_word_embeddings=False, **ropes(
        {"rope_type": "default", "rope_theta": 1e4}, {"rope_type": "proportional", "rope_theta": 1e5, "partial_rotary_factor": 0.63}))),
    Row("gemma4_text", "last", gemma4(6, 2, 9, layer_types=[SLIDING, SLIDING, FULL], num_attention_heads=6, num_key_value_heads=3)),
]
# fmt: on
ROWS = NEXT + QWEN35 + GEMMA


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns folder(row) -> the checkpoint in safetensors."""
    written = written_once(tmp_path_factory)
    return lambda row: Path(written(row))


def assert_close(row: Row, ours: np.ndarray, expected: np.ndarray) -> None:
    """Qwen's decays are exp(-exp(A_log)) by another exp, and value heads are summed in another order: float32's own error."""
    if row.model_type.startswith("qwen"):
        assert (np.abs(ours - expected).max(-1) <= F32_BOUND * np.abs(expected).max(-1)).all()
    else:
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_float32(row, folder, tmp_path):
    file = tmp_path / "model.gguf"
    gf.convert(folder(row), file)
    assert_close(row, logits(file), logits(folder(row)))
    prompts = [TOKENS, TOKENS[:5]]
    ours, expected = (greedy(make_engine(str(p)), prompts, 16) for p in (file, folder(row)))
    assert [[t for t, _ in one] for one in ours] == [[t for t, _ in one] for one in expected]


def test_qkvz_in_one_tensor(folder, tmp_path):
    """Qwen3-Next's files of 2025 have in_proj_qkvz as it is."""
    gf.convert(folder(NEXT[0]), tmp_path / "old.gguf", old_qkvz=True)
    gf.convert(folder(NEXT[0]), tmp_path / "new.gguf")
    np.testing.assert_array_equal(logits(tmp_path / "old.gguf"), logits(tmp_path / "new.gguf"))


def test_ends_of_gemma(folder, tmp_path):
    """Tokens that end a turn have no key in the file."""
    tokens = [f"t{i}" for i in range(97)]
    tokens[1], tokens[50], tokens[61] = "<eos>", "<|tool_response>", "<turn|>"

    def tokenizer(writer: Any) -> None:
        writer.add_token_list(tokens)
        writer.add_eos_token_id(1)

    gf.convert(folder(GEMMA[0]), tmp_path / "model.gguf", tokenizer=tokenizer)
    e = make_engine(str(tmp_path / "model.gguf"))
    assert sorted(e.model_info()["eos_token_ids"]) == [1, 50, 61]


# Sizes that every type's blocks divide.
WIDE = {
    "qwen3_5_moe_text": linear(2, 4, 64, 64, hidden_size=256) | {"head_dim": 64} | moe(4, 2, 256, 256) | HALF,
    "qwen3_5_text": linear(2, 4, 64, 64, hidden_size=256, intermediate_size=256) | {"head_dim": 64} | HALF,
    "gemma4_text": gemma4(4, 2, 256, hidden_size=256, intermediate_size=256, head_dim=64, global_head_dim=128),
}
MIXED = {
    "ssm_alpha": Type.F32,
    "ssm_beta": Type.F32,
    "attn_gate": Type.Q6_K,
    "ssm_out": Type.Q5_K,
    "ffn_down_exps": Type.Q6_K,
}


@pytest.mark.parametrize("kind", [Type.BF16, Type.Q8_0, Type.Q4_K, MIXED], ids=["BF16", "Q8_0", "Q4_K", "mixed"])
@pytest.mark.parametrize("model_type", WIDE)
def test_element_types(model_type, kind, tmp_path):
    row = Hybrid(model_type, "wide", WIDE[model_type], dtype="bfloat16")
    folder = Path(write(row, tmp_path / "hf"))

    def of(name: str) -> Type:
        return next((k for part, k in MIXED.items() if part in name), Type.Q4_K) if kind is MIXED else kind

    stored = gf.convert(folder, tmp_path / "model.gguf", of, seed=3)
    save_reference(folder, gf.originals(folder, stored), torch.bfloat16)
    exact = logits(tmp_path / "model.gguf", dtype="float32", quantization="dequantize")
    assert_close(row, exact, logits(folder, dtype="float32"))
    # Rows are rounded to int8; where DeltaNet's output nearly cancels, its norm enlarges what that changes.
    in_place = logits(tmp_path / "model.gguf")
    assert np.corrcoef(in_place.ravel(), exact.ravel())[0, 1] > (0.99 if "qwen" in model_type else 0.998)
    prompts = [TOKENS, TOKENS[:5], TOKENS[3:9]]
    batch = greedy(make_engine(str(tmp_path / "model.gguf")), prompts, 8)
    other = make_engine(
        str(tmp_path / "model.gguf"), max_num_batched_tokens=5, max_num_seqs=2, block_size=8, num_threads=2
    )
    assert [greedy(other, [prompt], 8)[0] for prompt in prompts] == batch


REMOVED = object()
LIST_OF_BOOLS, LIST_OF_INTS = (
    (lambda *items: (gb.ARRAY, (gb.BOOL, list(items)))),
    (lambda *items: (gb.ARRAY, (gb.UINT32, list(items)))),
)
TEXT, ZERO, TWO, FIVE = (gb.STRING, "two"), (gb.UINT32, 0), (gb.UINT32, 2), (gb.UINT32, 5)
QWEN_KEYS = ["ssm.conv_kernel", "ssm.state_size", "ssm.group_count", "ssm.time_step_rank", "ssm.inner_size", "expert_count",
             "expert_used_count", "attention.head_count", "block_count"]  # fmt: skip
GEMMA_KEYS = ["attention.key_length", "attention.value_length", "attention.key_length_swa", "attention.value_length_swa",
              "attention.sliding_window", "attention.sliding_window_pattern", "attention.head_count_kv", "rope.freq_base_swa",
              "feed_forward_length"]  # fmt: skip
# (row, key, its value, what the error says, whether the file is sound but not supported)
HOSTILE: list[tuple[Row, str, Any, str, bool]] = [
    *((QWEN35[0], key, REMOVED, f"{key}: missing in the file's metadata", False) for key in QWEN_KEYS),
    *((QWEN35[0], key, TEXT, f"{key}: expected an integer from 0 to 2^40, got", False) for key in QWEN_KEYS if key != "expert_used_count"),
    (QWEN35[0], "ssm.time_step_rank", ZERO, "expected at least 1, got 0", False),
    (QWEN35[0], "ssm.inner_size", (gb.UINT32, 49), "expected a multiple of ssm.time_step_rank 4, got 49", False),
    (QWEN35[0], "ssm.inner_size", LIST_OF_INTS(48, 52), "is not supported; supported: the same for all layers", True),
    (QWEN35[0], "attention.recurrent_layers", LIST_OF_BOOLS(True), "expected 4 bools, got 1", False),
    (QWEN35[0], "attention.recurrent_layers", LIST_OF_INTS(1, 1, 1, 0), "expected bools, got", False),
    (QWEN35[0], "attention.recurrent_layers", TEXT, "expected bools, got", False),
    (QWEN35[0], "rope.dimension_sections", LIST_OF_INTS(1, 1, 0), "expected 4 integers from 0 to 2^31, got 3", False),
    (QWEN35[0], "rope.dimension_sections", TEXT, "expected integers from 0 to 2^31, got", False),
    (QWEN35[0], "block_count", (10, 1 << 39), "expected at most 65536, got 549755813888", False),
    (QWEN35[0], "nextn_predict_layers", FIVE, "expected more than nextn_predict_layers, got 4", False),
    (QWEN35[0], "ssm.dt_b_c_rms", (gb.BOOL, True), "which is not supported and may change", True),
    (QWEN35[0], "expert_gating_func", TWO, "expert_gating_func 2 is not supported; supported: 1", True),
    (NEXT[2], "full_attention_interval", ZERO, "expected at least 1, got 0", False),
    *((GEMMA[1], key, REMOVED, f"{key}: ", False) for key in GEMMA_KEYS),
    (GEMMA[1], "attention.sliding_window_pattern", LIST_OF_BOOLS(True, False), "expected 3 bools, got 2", False),
    (GEMMA[1], "attention.sliding_window_pattern", TWO, "expected a bool for each layer, got the number 2", False),
    (GEMMA[1], "attention.sliding_window_pattern", LIST_OF_INTS(1, 0, 0), "expected bools, got", False),
    (GEMMA[1], "attention.sliding_window_pattern", LIST_OF_BOOLS(True, False, True), "with a window in the last layer", True),
    (GEMMA[1], "attention.head_count_kv", LIST_OF_INTS(4, 1), "expected 3 integers from 0 to 2^31, got 2", False),
    (GEMMA[1], "attention.head_count_kv", TEXT, "expected integers from 0 to 2^31, got", False),
    (GEMMA[1], "attention.key_length", ZERO, "expected at least 1, got 0", False),
    (GEMMA[1], "attention.value_length_swa", TWO, "value_length_swa 2 is not supported; supported: 12", True),
    (GEMMA[1], "attention.shared_kv_layers", TWO, "attention.shared_kv_layers 2 is not supported; supported: 0", True),
    (GEMMA[1], "embedding_length_per_layer_input", TWO, "embedding_length_per_layer_input 2 is not supported; supported: 0", True),
    (GEMMA[1], "rope.dimension_count", TWO, "rope.dimension_count 2 is not supported; supported: 26", True),
    (GEMMA[1], "rope.dimension_count_swa", TWO, "rope.dimension_count_swa 2 is not supported; supported: 12", True),
    (GEMMA[1], "rope.scaling.type", (gb.STRING, "yarn"), 'rope.scaling.type "yarn" is not supported; supported: none', True),
    (GEMMA[1], "rope.scaling.type", TWO, "expected a string, got the number 2", False),
    (GEMMA[1], "final_logit_softcapping", TEXT, "final_logit_softcapping", False),
]  # fmt: skip


@pytest.fixture(scope="module")
def converted(folder, tmp_path_factory):
    """Returns converted(row) -> the file's parts."""
    made: dict[str, gb.File] = {}

    def get(row: Row) -> gb.File:
        if row.id not in made:
            file = tmp_path_factory.mktemp(row.id) / "model.gguf"
            gf.convert(folder(row), file)
            made[row.id] = gb.decode(file.read_bytes())
        return copy.deepcopy(made[row.id])

    return get


@pytest.mark.parametrize(
    ("row", "key", "value", "says", "sound"), HOSTILE, ids=[f"{i}-{case[1]}" for i, case in enumerate(HOSTILE)]
)
def test_hostile_keys(row, key, value, says, sound, converted, tmp_path):
    file, whole = converted(row), f"{gf.ARCHITECTURES[row.model_type]}.{key}"
    file.metadata = [one for one in file.metadata if one[0] != whole]
    if value is not REMOVED:
        file.metadata.append((whole, *value))
    path = tmp_path / "model.gguf"
    path.write_bytes(file.encode())
    with pytest.raises(UnsupportedModelError if sound else CheckpointError) as caught:
        _C.Engine(str(path))
    assert says in str(caught.value) and key in str(caught.value)


@pytest.mark.parametrize(
    ("row", "tensor", "says"),
    [
        (QWEN35[0], "blk.0.ssm_a", "linear_attn.A_log"),
        (QWEN35[0], "blk.0.ssm_conv1d.weight", "linear_attn.conv1d.weight"),
        (QWEN35[0], "blk.3.attn_k.weight", "layers.3.self_attn.k_proj.weight"),
        (NEXT[0], "blk.0.ssm_ba.weight", "linear_attn.in_proj_ba.weight"),
        (GEMMA[1], "rope_freqs.weight", "rope_freqs.weight: missing"),
        (GEMMA[1], "blk.0.layer_output_scale.weight", "layers.0.layer_scalar"),
        (GEMMA[1], "blk.0.ffn_gate_inp.scale", "layers.0.router.scale"),
    ],
)
def test_missing_tensors(row, tensor, says, converted, tmp_path):
    file = converted(row)
    assert any(t.name == tensor for t in file.tensors)
    file.tensors = [t for t in file.tensors if t.name != tensor]
    path = tmp_path / "model.gguf"
    path.write_bytes(file.encode())
    with pytest.raises(CheckpointError) as caught:
        _C.Engine(str(path))
    assert says in str(caught.value)


def test_number_of_factors_of_rope(converted, tmp_path):
    file = converted(GEMMA[1])
    next(t for t in file.tensors if t.name == "rope_freqs.weight").dims = [12]
    path = tmp_path / "model.gguf"
    path.write_bytes(file.encode())
    with pytest.raises(CheckpointError, match="expected a factor for each of 13 pairs of columns, got 12"):
        _C.Engine(str(path))


@pytest.mark.parametrize("part", [3, 5, 9, 11])
def test_rotated_parts(part, tmp_path):
    """Parts of 98 columns are no floating-point numbers: the number of rotated columns comes through the config as it was."""
    rope = {"rope_type": "default", "rope_theta": 1e4}
    full = {"rope_type": "proportional", "rope_theta": 1e5, "partial_rotary_factor": (2 * part + 0.5) / 98}
    row = Row("gemma4_text", f"part{part}", gemma4(0, global_head_dim=98, **ropes(rope, full)))
    folder = Path(write(row, tmp_path / "hf"))
    gf.convert(folder, tmp_path / "model.gguf")
    np.testing.assert_array_equal(logits(tmp_path / "model.gguf"), logits(folder))


def test_factors_of_rope_that_are_not_proportional(converted, tmp_path):
    file = converted(GEMMA[1])
    at = next(t for t in file.tensors if t.name == "rope_freqs.weight").offset + 4
    file.data = file.data[:at] + np.float32(2).tobytes() + file.data[at + 4 :]
    path = tmp_path / "model.gguf"
    path.write_bytes(file.encode())
    with pytest.raises(CheckpointError, match="factors of 1 and then of at least 1e20, got 2 for pair 1"):
        _C.Engine(str(path))
