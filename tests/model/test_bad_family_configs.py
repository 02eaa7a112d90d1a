"""Configs of the families of family_models_special.py that contradict themselves or ask for what is not supported: each raises one
specific exception that names the key. Also tests what `inspect` says of good configs. test_bad_config.py tests the keys that all
families share."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from family_models_special import MXFP4, ROWS, split_experts, to_mxfp4
from family_parity import write, written_once

from lynx_rt import _C, CheckpointError, UnsupportedModelError

NAMES = {row.id: row for row in [*ROWS, MXFP4]}
MISSING = object()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """checkpoint(name) -> folder of that row, made once."""
    written = written_once(tmp_path_factory)
    return lambda name: written(NAMES[name])


@pytest.fixture
def changed(checkpoint, tmp_path):
    """changed(name, keys) -> a copy of it with other keys in config.json."""

    def copy(name, keys):
        shutil.copytree(checkpoint(name), tmp_path / "model")
        path = tmp_path / "model" / "config.json"
        config = json.loads(path.read_text()) | keys
        path.write_text(json.dumps({k: v for k, v in config.items() if v is not MISSING}))
        return str(tmp_path / "model")

    return copy


def refused(path, error, words):
    for open_it in (_C.inspect, lambda p: _C.Engine(p, num_threads=1, max_num_seqs=4)):
        with pytest.raises(error) as caught:
            open_it(path)
        assert type(caught.value) is error and caught.value.field
        for word in words:
            assert word in str(caught.value)


UNSUPPORTED = [
    ("deepseek_v2-lite", {"topk_method": "noaux_tc"}, ["topk_method", "noaux_tc", "group_limited_greedy"]),
    ("deepseek_v2-lite", {"scoring_func": "sigmoid"}, ["scoring_func", "sigmoid", "softmax"]),
    ("deepseek_v2-lite", {"norm_topk_prob": True}, ["norm_topk_prob", "true", "false"]),
    ("deepseek_v2-lite", {"hidden_act": "gelu"}, ["hidden_act", "gelu"]),
    ("deepseek_v2-lite", {"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5"]),
    ("deepseek_v3-plain", {"scoring_func": "softmax"}, ["scoring_func", "softmax", "sigmoid"]),
    ("deepseek_v3-plain", {"topk_method": "greedy"}, ["topk_method", "greedy", "noaux_tc"]),
    ("deepseek_v3-plain", {"model_type": "deepseek_v4"}, ["deepseek_v4", "sparse attention", "deepseek_v3"]),
    ("glm4_moe-plain", {"scoring_func": "softmax"}, ["scoring_func", "softmax", "sigmoid"]),
    ("glm4_moe-plain", {"model_type": "bailing_hybrid"}, ["bailing_hybrid", "linear attention", "glm4_moe"]),
    ("glm4_moe-plain", {"model_type": "jamba"}, ["jamba", "state-space"]),
    ("ernie4_5_moe-plain", {"moe_gate": "hash"}, ["moe_gate", "hash", "topk"]),
    ("minimax_m2-plain", {"use_qk_norm": False}, ["use_qk_norm", "false", "true"]),
    ("minimax_m2-plain", {"qk_norm_type": "per_head"}, ["qk_norm_type", "per_head", "per_layer"]),
    ("minimax_m2-plain", {"use_routing_bias": False}, ["use_routing_bias"]),
    ("minimax_m2-plain", {"scoring_func": "softmax"}, ["scoring_func", "sigmoid"]),
    ("minimax_m2-plain", {"attn_type_list": [1, 0]}, ["attn_type_list", "0", "full attention"]),
    ("minimax_m2-plain", {"shared_intermediate_size": 24}, ["shared_intermediate_size", "24"]),
    (
        "gpt_oss-plain",
        {"layer_types": ["full_attention", "linear_attention"]},
        ["layer_types", "linear_attention", "sliding_attention"],
    ),
    ("gpt_oss-plain", {"hidden_act": "relu"}, ["hidden_act", "relu", "silu"]),
    (
        "llama4_text-plain",
        {"layer_types": ["sliding_attention"] * 3},
        ["layer_types", "sliding_attention", "chunked_attention"],
    ),
]
CONTRADICTIONS = [
    ("deepseek_v2-lite", {"kv_lora_rank": MISSING}, ["kv_lora_rank", "missing"]),
    ("deepseek_v2-lite", {"qk_rope_head_dim": MISSING, "head_dim": MISSING}, ["qk_rope_head_dim", "missing"]),
    ("deepseek_v2-lite", {"qk_rope_head_dim": 7}, ["qk_rope_head_dim", "even", "7"]),
    ("deepseek_v2-lite", {"q_lora_rank": 0}, ["q_lora_rank", "expected", "0"]),
    ("deepseek_v2-lite", {"q_lora_rank": 12}, ["missing", "q_a_proj", "unexpected", "q_proj"]),
    ("deepseek_v2-lite", {"num_key_value_heads": 2}, ["num_key_value_heads", "4", "2"]),
    ("deepseek_v2-lite", {"v_head_dim": 11}, ["kv_b_proj", "[92, 20]", "[88, 20]"]),
    ("deepseek_v2-lite", {"attention_bias": True}, ["missing", "kv_a_proj_with_mqa.bias"]),
    ("deepseek_v2-lite", {"moe_layer_freq": 2}, ["missing", "layers.1.mlp.gate_proj.weight"]),
    ("deepseek_v2-lite", {"n_shared_experts": 0}, ["unexpected", "shared_experts"]),
    ("deepseek_v2-lite", {"n_shared_experts": None}, ["unexpected", "shared_experts"]),
    ("deepseek_v2-lite", {"n_routed_experts": MISSING}, ["n_routed_experts", "missing"]),
    ("deepseek_v2-groups", {"n_group": 5}, ["n_group", "divisor", "12", "5"]),
    ("deepseek_v2-groups", {"topk_group": 5}, ["topk_group", "from 1 to 4", "5"]),
    ("deepseek_v2-groups", {"num_experts_per_tok": 7}, ["topk_group", "7", "6"]),
    ("deepseek_v3-plain", {"n_group": 8, "topk_group": 8}, ["n_group", "two or more", "8"]),
    ("deepseek_v3-plain", {"first_k_dense_replace": 0}, ["missing", "layers.0.mlp.gate.weight"]),
    (
        "glm4_moe-plain",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}},
        ["even", "3"],
    ),
    ("glm4_moe-plain", {"use_qk_norm": True}, ["missing", "q_norm"]),
    ("glm4_moe-plain", {"attention_bias": True}, ["6 missing", "q_proj.bias"]),  # none of o_proj
    ("ernie4_5_moe-plain", {"moe_layer_interval": 0}, ["moe_layer_interval", "0"]),
    ("ernie4_5_moe-plain", {"moe_layer_end_index": 0}, ["missing", "layers.1.mlp.gate_proj.weight"]),
    ("ernie4_5_moe-plain", {"moe_num_experts": MISSING}, ["moe_num_experts", "missing"]),
    (
        "ernie4_5_moe-plain",
        {"use_bias": True},
        ["15 missing", "lm_head.bias", "layers.0.mlp.gate_proj.bias", "o_proj.bias"],
    ),
    ("minimax_m2-hub", {"rotary_dim": 5}, ["rotary_dim", "even", "5"]),
    ("minimax_m2-hub", {"rotary_dim": 14}, ["rotary_dim", "12", "14"]),
    ("gpt_oss-plain", {"rope_parameters": MISSING}, ["rope_scaling", "missing"]),
    ("gpt_oss-plain", {"sliding_window": None}, ["sliding_window", "none"]),
    ("gpt_oss-plain", {"layer_types": ["full_attention"]}, ["layer_types", "2", "1"]),
    ("gpt_oss-plain", {"swiglu_limit": -1}, ["swiglu_limit", "-1"]),
    ("gpt_oss-plain", {"intermediate_size": 12}, ["gate_up_proj", "[8, 48, 24]", "[8, 48, 48]"]),
    ("llama4_text-plain", {"attention_chunk_size": None}, ["attention_chunk_size", "missing"]),
    ("llama4_text-plain", {"no_rope_layers": [1, 0]}, ["no_rope_layers", "3", "2"]),
    ("llama4_text-plain", {"no_rope_layers": [1, 0, 2]}, ["no_rope_layers", "2"]),
    ("llama4_text-plain", {"moe_layers": [3]}, ["moe_layers", "3"]),
    (
        "llama4_text-plain",
        {"moe_layers": [0, 1], "intermediate_size_mlp": MISSING},
        ["intermediate_size_mlp", "missing"],
    ),
    (
        "llama4_text-plain",
        {"interleave_moe_layer_step": 2, "moe_layers": None},
        ["missing", "layers.0.feed_forward.gate_proj.weight"],
    ),
    ("llama4_text-plain", {"model_type": "llama4"}, ["text_config", "missing"]),
]


@pytest.mark.parametrize("name, keys, words", UNSUPPORTED, ids=lambda v: "+".join(v) if isinstance(v, dict) else "")
def test_unsupported(changed, name, keys, words):
    refused(changed(name, keys), UnsupportedModelError, words)


@pytest.mark.parametrize("name, keys, words", CONTRADICTIONS, ids=lambda v: "+".join(v) if isinstance(v, dict) else "")
def test_contradictions(changed, name, keys, words):
    refused(changed(name, keys), CheckpointError, words)


@pytest.mark.parametrize("name, router, attention, rope", [
    ("deepseek_v2-groups", "softmax, 3 of 12 experts in the best 2 of 4 groups, not normalised, times 1.7, shared expert of width 17",
     "multi-head latent, 3 heads of 16 + 4, latent of 24, of queries 20", "default, theta 10000, 4 of 20 columns in pairs"),
    ("deepseek_v3-hub", "sigmoid + bias, 3 of 8 experts in the best 1 of 2 groups, normalised, times 2.5, shared expert of width 20",
     "multi-head latent, 2 heads of 8 + 6, latent of 16, of queries 12", "yarn, factor 4, theta 10000, 6 of 14 columns in pairs"),
    ("gpt_oss-windows", "softmax of biased logits, 4 of 9 experts, normalised",
     "4 query heads and 2 key/value heads of 14, biases, sinks, window 3 in 2 of 3 layers", "default, theta 10000, 14 of 14 columns"),
    ("llama4_text-plain", "sigmoid, 1 of 8 experts, not normalised, weights on the experts' inputs, shared expert of width 24",
     "4 query heads and 2 key/value heads of 12, q/k norm without weights after rope, chunks of 8 in 2 of 3 layers,"
     " no rope in 1 of 3 layers", "default, theta 500000, 12 of 12 columns in pairs"),
    ("minimax_m2-hub", "sigmoid + bias, 3 of 8 experts, normalised",
     "6 query heads and 2 key/value heads of 12, q/k norm over all heads", "default, theta 5e+06, 6 of 12 columns"),
])  # fmt: skip
def test_inspect(checkpoint, name, router, attention, rope):
    facts = _C.inspect(checkpoint(name))
    assert (facts["router"], facts["attention"], facts["rope"]) == (router, attention, rope)
    assert facts["keys_not_understood"] == []


@pytest.mark.parametrize("name", [row.id for row in ROWS if row.name in ("hub", "vision")])
def test_all_keys_are_understood(checkpoint, name):
    assert _C.inspect(checkpoint(name))["keys_not_understood"] == []


@pytest.mark.parametrize("name", ["deepseek_v2-biases", "deepseek_v3-groups", "glm4_moe-norms", "ernie4_5_moe-plain", "minimax_m2-partial",
                                  "gpt_oss-plain", "llama4_text-interleaved"])  # fmt: skip
def test_dummy_weights(checkpoint, name):
    """A model without its file: the same sizes."""
    path = checkpoint(name)
    made_up, real = _C.Engine(path, load_format="dummy", max_num_seqs=4), _C.Engine(path, max_num_seqs=4)
    assert made_up.forward([3, 4, 5]).shape == real.forward([3, 4, 5]).shape
    assert made_up.model_info()["weight_bytes"] == real.model_info()["weight_bytes"]


def test_mxfp4_experts(checkpoint, tmp_path):
    """gpt-oss as the hub has it: bitwise the checkpoint that holds the decoded values."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    def decode(tensors):
        to_mxfp4(tensors)
        for name in [n.removesuffix("_blocks") for n in tensors if n.endswith("_blocks")]:
            blocks, scales = tensors.pop(name + "_blocks"), tensors.pop(name + "_scales")
            tensors[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16).contiguous()

    plain = write(replace(MXFP4, edit=None, edit_tensors=decode), tmp_path)
    for dtype in ("float32", "bfloat16"):
        ours, expected = (
            _C.Engine(p, dtype=dtype, num_threads=1, max_num_seqs=4, quantization="dequantize")
            for p in (checkpoint(MXFP4.id), plain)
        )
        np.testing.assert_array_equal(ours.forward([3, 4, 5, 6]), expected.forward([3, 4, 5, 6]))


def test_llama4_experts_one_by_one(checkpoint, tmp_path):
    name = "llama4_text-interleaved"
    split = write(replace(NAMES[name], edit_tensors=split_experts), tmp_path)
    ours, expected = (
        _C.Engine(p, num_threads=1, max_num_seqs=4).forward([3, 4, 5, 6]) for p in (split, checkpoint(name))
    )
    np.testing.assert_array_equal(ours, expected)


def test_keys_that_are_not_understood(changed):
    path = changed(
        "glm4_moe-plain", {"use_quantum_norm": True, "colour": "blue", "sliding_window": None, "aux_loss_alpha": 0.1}
    )
    assert _C.inspect(path)["keys_not_understood"] == ["colour", "use_quantum_norm"]


def test_keys_within_that_are_not_understood(changed):
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "mrope_section": [1, 2]}
    path = changed("glm4_moe-plain", {"rope_parameters": rope})
    assert _C.inspect(path)["keys_not_understood"] == ["rope_parameters.mrope_section"]
