"""Families refuse variants that would be computed wrongly: the error names the key, before any weight is read."""

import json

import family_parity as fp
import numpy as np
import pytest
import tiny_models as tm
from transformers import AutoConfig

from lynx_rt import _C, CheckpointError, UnsupportedModelError

SIZES = {
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2, "head_dim": 12},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "shared_expert_intermediate_size": 8,
    },
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
}
MISSING = object()


def folder_of(tmp_path, model_type, **changes):
    """A folder with a config.json alone."""
    AutoConfig.for_model(model_type, **fp.SIZES | SIZES.get(model_type, {})).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not MISSING}))
    return str(tmp_path)


def load_dummy(folder):
    return _C.Engine(folder, num_threads=1, load_format="dummy")


MODEL_TYPES = ["mixtral", "qwen2_moe", "olmoe", "phimoe", "granitemoe", "hunyuan_v1_moe", "llama", "mistral", "qwen2"]
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 6,
    "long_factor": [2.0] * 6,
    "original_max_position_embeddings": 64,
}

UNSUPPORTED = [
    ("mixtral", {"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]}, ["layer_types", "same for all layers"]),
    ("mistral", {"sliding_window": 8, "layer_types": ["full_attention", "full_attention"]}, ["layer_types", "same for all layers"]),
    ("phimoe", {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}, ["layer_types", "same for all layers"]),
    ("qwen2", {"layer_types": ["full_attention", "chunked_attention"]}, ["layer_types", "chunked_attention", "sliding_attention"]),
    ("qwen2_moe", {"layer_types": ["linear_attention", "full_attention"]}, ["layer_types", "linear_attention"]),
    ("phimoe", {"num_experts_per_tok": 1}, ["num_experts_per_tok 1", "supported: 2"]),
    ("phimoe", {"num_experts_per_tok": 3}, ["num_experts_per_tok 3", "supported: 2"]),
    ("phimoe", {"rope_parameters": YARN}, ["rope_type", "default, longrope"]),
    ("hunyuan_v1_moe", {"moe_topk": [2, 3]}, ["moe_topk", "2 and 3", "same for all layers"]),
    ("hunyuan_v1_moe", {"num_experts": [4, 8]}, ["num_experts", "4 and 8"]),
    ("hunyuan_v1_moe", {"num_shared_expert": [2, 2]}, ["num_shared_expert 2", "supported: 1"]),
    ("hunyuan_v1_moe", {"moe_intermediate_size": [20, 20]}, ["moe_intermediate_size 20", "supported: 40"]),
    ("hunyuan_v1_moe", {"attention_head_dim": 16}, ["attention_head_dim 16", "supported: 12"]),
    ("hunyuan_v1_moe", {"moe_layer_num_skipped": 1}, ["moe_layer_num_skipped 1", "supported: 0"]),
    *[("hunyuan_v1_moe", {key: False}, [f"{key} false", "supported: true"])
      for key in ("use_qk_norm", "norm_topk_prob", "use_mixed_mlp_moe", "use_rotary_pos_emb")],
    *[("hunyuan_v1_moe", {key: True}, [f"{key} true", "supported: false"])
      for key in ("use_mla", "use_cla", "mlp_bias", "group_limited_greedy", "position_embedding_xdrope")],
    *[(t, {"hidden_act": "gelu"}, ["hidden_act", "gelu", "silu"]) for t in MODEL_TYPES],
    *[(t, {"partial_rotary_factor": 0.5}, ["partial_rotary_factor 0.5", "supported: 1"]) for t in MODEL_TYPES],
    *[(t, {"rope_scaling": {"type": "mrope"}}, ["rope_type", "mrope", "yarn"]) for t in MODEL_TYPES],
]  # fmt: skip

WRONG = [
    ("mixtral", {"sliding_window": -1}, ["sliding_window", "-1"]),
    ("mixtral", {"num_local_experts": [4, 4]}, ["num_local_experts", "integer"]),
    ("mixtral", {"layer_types": ["sliding_attention"] * 2}, ["sliding_window", "layer_types"]),
    ("mixtral", {"layer_types": ["full_attention"] * 3}, ["layer_types", "2", "3"]),
    ("qwen2", {"use_sliding_window": False, "layer_types": ["sliding_attention"] * 2}, ["sliding_window", "layer_types"]),
    ("qwen2", {"max_window_layers": -1}, ["max_window_layers"]),
    ("qwen2", {"use_sliding_window": 1}, ["use_sliding_window", "true or false"]),
    ("qwen2_moe", {"shared_expert_intermediate_size": 0}, ["shared_expert_intermediate_size", "0"]),
    ("qwen2_moe", {"shared_expert_intermediate_size": MISSING}, ["shared_expert_intermediate_size", "missing"]),
    ("qwen2_moe", {"qkv_bias": "no"}, ["qkv_bias"]),
    ("olmoe", {"clip_qkv": 0}, ["clip_qkv", "0"]),
    ("olmoe", {"clip_qkv": "8"}, ["clip_qkv", "number"]),
    ("olmoe", {"intermediate_size": MISSING}, ["intermediate_size", "missing"]),
    ("granitemoe", {"logits_scaling": 0}, ["logits_scaling", "0"]),
    ("granitemoe", {"residual_multiplier": "1"}, ["residual_multiplier", "number"]),
    ("phimoe", {"router_jitter_noise": -0.5}, ["router_jitter_noise"]),
    ("phimoe", {"rope_parameters": LONGROPE}, ["short_mscale", "missing"]),
    ("phimoe", {"rope_parameters": LONGROPE | {"short_mscale": 1.0}}, ["long_mscale", "missing"]),
    ("hunyuan_v1_moe", {"moe_topk": 5}, ["moe_topk", "5"]),
    ("hunyuan_v1_moe", {"moe_topk": []}, ["moe_topk"]),
    ("hunyuan_v1_moe", {"num_experts": [4, 4, "4"]}, ["num_experts", "item 2"]),
    ("llama", {"mlp_bias": "yes"}, ["mlp_bias"]),
    ("llama", {"intermediate_size": MISSING}, ["intermediate_size", "missing"]),
    ("mistral", {"head_dim": 7}, ["head_dim", "even", "7"]),
]  # fmt: skip


@pytest.mark.parametrize(
    "model_type, keys, words", UNSUPPORTED, ids=lambda v: "+".join(v) if isinstance(v, dict) else str(v)[:20]
)
def test_unsupported(tmp_path, model_type, keys, words):
    with pytest.raises(UnsupportedModelError) as caught:
        load_dummy(folder_of(tmp_path, model_type, **keys))
    assert caught.value.field
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    "model_type, keys, words", WRONG, ids=lambda v: "+".join(v) if isinstance(v, dict) else str(v)[:20]
)
def test_contradictions(tmp_path, model_type, keys, words):
    with pytest.raises(CheckpointError) as caught:
        load_dummy(folder_of(tmp_path, model_type, **keys))
    assert type(caught.value) is CheckpointError and caught.value.field
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("model_type, keys", [
    ("mistral", {"sliding_window": 8, "layer_types": ["sliding_attention"] * 2}),
    ("mistral", {"sliding_window": None, "layer_types": ["full_attention"] * 2}),
    ("mixtral", {"router_jitter_noise": 0.1, "router_aux_loss_coef": 0.02, "output_router_logits": True}),
    ("phimoe", {"input_jitter_noise": 0.1, "hidden_dropout": 0.0}),
    ("granitemoe", {"embedding_multiplier": None, "logits_scaling": 16}),
    ("llama", {"pretraining_tp": 2, "attention_dropout": 0.1, "rope_scaling": {}, "sliding_window": 5}),
    ("olmoe", {"clip_qkv": 8}),
    ("qwen2_moe", {"sliding_window": 0, "use_sliding_window": False}),
    ("hunyuan_v1_moe", {"num_experts": [4, 4], "moe_topk": [2, 2], "n_group": False, "routed_scaling_factor": False}),
    *[(t, {"hidden_act": "swish", "partial_rotary_factor": 1.0, "colour": "blue"}) for t in MODEL_TYPES],
], ids=lambda v: "+".join(v) if isinstance(v, dict) else v)  # fmt: skip
def test_keys_that_do_no_harm(tmp_path, model_type, keys):
    """Keys for training, keys that say what is so anyway, and unknown ones."""
    e = load_dummy(folder_of(tmp_path, model_type, **keys))
    assert np.isfinite(e.forward([3, 4, 5])).all()


@pytest.mark.parametrize("absent", [True, False])
def test_window_of_mistral_by_default(tmp_path, absent):
    """4096 tokens where config.json has no sliding_window; null is none."""
    row = fp.Row("mistral", "long", {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "num_key_value_heads": 1,
                                     "max_position_embeddings": 8192, "sliding_window": None, "initializer_range": 1.0},
                 edit=(lambda config: config.pop("sliding_window")) if absent else None)  # fmt: skip
    path = fp.write(row, tmp_path)
    ids = np.random.default_rng(1).integers(0, 97, 4100).tolist()
    want = tm.reference_logits(fp.reference(row, path), ids)[-2:]
    got = fp.engine(path, dtype="float32").forward(ids, 512)[-2:]
    assert (np.abs(got - want).max(1) <= fp.F32_BOUND * np.abs(want).max(1)).all()


@pytest.mark.parametrize("factor, expected", [(1.5, 128), (4.0, 256)])
def test_longest_context_with_yarn(tmp_path, factor, expected):
    """yarn added to a model by hand: max_position_embeddings (128) is that of the original, and no limit."""
    rope = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": 64}
    e = load_dummy(folder_of(tmp_path, "qwen2", rope_scaling=rope))
    assert e.model_info()["max_model_len"] == expected
