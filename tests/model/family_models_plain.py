"""Checkpoints of Mixtral, Qwen, OLMoE, Phi-MoE, Granite-MoE, Hunyuan, Llama, Mistral, and of every kind of rope."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from family_parity import Row, legacy_keys, legacy_rope

NO_WINDOW = {"sliding_window": None}
OLMOE = {"num_experts": 8, "num_experts_per_tok": 3}
QWEN = OLMOE | {"moe_intermediate_size": 20, "shared_expert_intermediate_size": 28}
HUNYUAN = {"num_experts": 8, "moe_topk": 2, "head_dim": 12}
MULTIPLIERS = ("embedding_multiplier", "residual_multiplier", "logits_scaling", "attention_multiplier")
GRANITE = {"num_local_experts": 8, "num_experts_per_tok": 3, "embedding_multiplier": 6.0, "logits_scaling": 4.0,
           "residual_multiplier": 0.6, "attention_multiplier": 0.2}  # fmt: skip


def rope(kind: str, theta: float = 10000.0, **keys: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta} | keys}


def longrope(pairs: int, original: int, **keys: Any) -> dict[str, Any]:
    short, long = [[1 + step * i for i in range(pairs)] for step in (0.1, 2.0)]
    return rope("longrope", short_factor=short, long_factor=long, original_max_position_embeddings=original, **keys)


def hub_mistral(config: dict[str, Any]) -> None:
    """A window that config.json leaves to the default, and a head size that it leaves to the other sizes."""
    legacy_keys(config)
    del config["sliding_window"], config["head_dim"]


def hub_qwen(config: dict[str, Any]) -> None:
    """As Qwen2 configs are: windows described, but switched off."""
    legacy_keys(config)
    config |= {"use_sliding_window": False, "sliding_window": 4, "max_window_layers": 1}
    config.pop("layer_types")


def hub_hunyuan(config: dict[str, Any]) -> None:
    """As the authors' own code wrote it: lists with an entry per layer, alpha under the name of another kind of rope."""
    legacy_keys(config, {})
    layers = config["num_hidden_layers"]
    config["rope_scaling"] = {"type": "dynamic", "alpha": 1000.0, "factor": 1.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0,
                              "mscale_all_dim": 0.0}  # fmt: skip
    config |= {"moe_topk": [config["moe_topk"]] * layers, "moe_intermediate_size": [config["intermediate_size"]] * layers,
               "num_shared_expert": [1] * layers, "use_qk_norm": True, "norm_topk_prob": True, "use_mla": False, "use_cla": False,
               "use_mixed_mlp_moe": True, "moe_layer_num_skipped": 0, "group_limited_greedy": False, "n_group": False,
               "routed_scaling_factor": False, "attention_head_dim": config["head_dim"], "mlp_bias": False}  # fmt: skip


def hub_phi(config: dict[str, Any]) -> None:
    """As Phi-3.5-MoE's, which says twice what the original length is."""
    legacy_rope(config, {})
    config["original_max_position_embeddings"] = config["rope_scaling"]["original_max_position_embeddings"]


def without(*keys: str) -> Callable[[dict[str, Any]], None]:
    """Takes keys away, so that both sides take the family's own defaults."""

    def edit(config: dict[str, Any]) -> None:
        for key in keys:
            del config[key]

    return edit


# With weights as small as these, what is added to a variance of their size shows.
NO_EPS = {"spread": 0.05, "edit": without("rms_norm_eps")}


def long_angles(model: torch.nn.Module) -> None:
    """transformers' Phi-MoE takes the factors of long contexts for cosines and sines but never for the angles; its authors' code
    does for both."""
    embedding = model.model.rotary_emb
    embedding.rope_init_fn = partial(embedding.rope_init_fn, seq_len=embedding.config.max_position_embeddings)


# fmt: off
MIXTRAL = [
    Row("mixtral", "plain"),
    Row("mixtral", "no_eps", **NO_EPS),
    Row("mixtral", "no_theta", edit=without("rope_parameters")),
    Row("mixtral", "fused", {"num_local_experts": 5, "num_experts_per_tok": 3, "head_dim": 10, "tie_word_embeddings": True}, fused=True),
    Row("mixtral", "window", {"sliding_window": 7, "num_key_value_heads": 4, "hidden_size": 40, "intermediate_size": 33}, fused=True),
    Row("mixtral", "legacy", {"num_key_value_heads": 1, "num_local_experts": 4, "num_experts_per_tok": 1} | rope("default", 1e6),
        dtype="bfloat16", edit=partial(legacy_keys, renamed={})),
    Row("mixtral", "sharded", {"num_experts_per_tok": 8, "num_hidden_layers": 3, "rms_norm_eps": 1e-2}, sharded=True, dtype="float16"),
    Row("mixtral", "legacy_window", {"sliding_window": 20, "head_dim": 16, "num_attention_heads": 3, "num_key_value_heads": 3} |
        rope("linear", factor=2.0), edit=partial(legacy_keys, renamed={}), sharded=True),
]
QWEN2_MOE = [
    Row("qwen2_moe", "plain", QWEN),
    Row("qwen2_moe", "fused", QWEN | {"norm_topk_prob": True, "tie_word_embeddings": True, "num_experts": 7}, fused=True),
    Row("qwen2_moe", "no_bias", QWEN | {"qkv_bias": False, "shared_expert_intermediate_size": 5, "num_key_value_heads": 4}, dtype="float16"),
    Row("qwen2_moe", "dense_layers", QWEN | {"num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [3]}, sharded=True),
    Row("qwen2_moe", "hub", QWEN | {"num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 9, "num_key_value_heads": 1},
        dtype="bfloat16", edit=hub_qwen),
    Row("qwen2_moe", "window", QWEN | {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2},
        edit=without("layer_types")),
    Row("qwen2_moe", "layer_types", QWEN | {"use_sliding_window": True, "sliding_window": 9, "norm_topk_prob": True,
                                            "layer_types": ["full_attention", "sliding_attention"]}, fused=True),
]
OLMOE_ROWS = [
    Row("olmoe", "plain", OLMOE),
    Row("olmoe", "no_eps", OLMOE, **NO_EPS),
    Row("olmoe", "clip", OLMOE | {"clip_qkv": 0.7, "norm_topk_prob": True, "num_key_value_heads": 4}),
    Row("olmoe", "bias", OLMOE | {"attention_bias": True, "num_key_value_heads": 1, "hidden_size": 40, "intermediate_size": 17}, fused=True),
    Row("olmoe", "clip_bias", OLMOE | {"clip_qkv": 1.5, "attention_bias": True, "num_hidden_layers": 3}, sharded=True, dtype="bfloat16"),
    Row("olmoe", "legacy", OLMOE | {"num_experts": 64, "num_experts_per_tok": 8, "intermediate_size": 6}, dtype="bfloat16",
        edit=legacy_keys),
    Row("olmoe", "tied", OLMOE | {"tie_word_embeddings": True, "norm_topk_prob": True, "rms_norm_eps": 1e-2}, dtype="float16", fused=True),
]
PHIMOE = [
    Row("phimoe", "plain", {"num_local_experts": 8}),
    Row("phimoe", "no_eps", {"num_local_experts": 8}, **NO_EPS),
    Row("phimoe", "no_theta", {"num_local_experts": 4}, edit=without("rope_parameters")),
    Row("phimoe", "biases", {"num_local_experts": 16, "attention_bias": True, "lm_head_bias": True, "intermediate_size": 11}),
    Row("phimoe", "fused", {"num_local_experts": 5, "lm_head_bias": True, "num_key_value_heads": 1, "router_jitter_noise": 0.2}, fused=True),
    Row("phimoe", "longrope", {"num_local_experts": 4, "attention_bias": True} | longrope(6, 64, short_mscale=1.2, long_mscale=1.5),
        edit=hub_phi, dtype="bfloat16", options={"max_model_len": 64}),
    Row("phimoe", "longrope_long", {"num_local_experts": 2} | longrope(6, 16, short_mscale=1.2, long_mscale=1.5), fused=True,
        prompts=(17, 20, 31), edit_reference=long_angles),
    Row("phimoe", "window", {"num_local_experts": 8, "sliding_window": 6, "rms_norm_eps": 1e-2, "router_jitter_noise": 0.5}, sharded=True),
    Row("phimoe", "tied", {"num_local_experts": 9, "tie_word_embeddings": True, "hidden_size": 40, "num_hidden_layers": 3}, dtype="float16"),
]
GRANITEMOE = [
    Row("granitemoe", "plain", GRANITE),
    Row("granitemoe", "renamed", GRANITE | {"tie_word_embeddings": True, "attention_multiplier": 1 / 12, "num_key_value_heads": 4}, fused=True),
    Row("granitemoe", "bias", GRANITE | {"attention_bias": True, "num_experts_per_tok": 8, "logits_scaling": 0.3}, sharded=True),
    Row("granitemoe", "defaults", GRANITE | dict.fromkeys(MULTIPLIERS, 1.0), edit=without(*MULTIPLIERS)),
    Row("granitemoe", "legacy", GRANITE | {"num_local_experts": 40, "intermediate_size": 7, "num_key_value_heads": 1}, dtype="bfloat16",
        edit=partial(legacy_keys, renamed={}), fused=True),
    Row("granitemoe", "three_layers", GRANITE | {"num_hidden_layers": 3, "residual_multiplier": 0.22, "num_experts_per_tok": 1,
                                                 "hidden_size": 40, "intermediate_size": 31}, dtype="float16"),
]
HUNYUAN_ROWS = [
    Row("hunyuan_v1_moe", "plain", HUNYUAN),
    Row("hunyuan_v1_moe", "no_eps", HUNYUAN, **NO_EPS),
    Row("hunyuan_v1_moe", "fused", HUNYUAN | {"attention_bias": True, "num_key_value_heads": 1, "head_dim": 22}, fused=True),
    Row("hunyuan_v1_moe", "hub", HUNYUAN | {"tie_word_embeddings": True}, edit=hub_hunyuan, dtype="bfloat16"),
    Row("hunyuan_v1_moe", "one_expert", HUNYUAN | {"num_experts": 1, "moe_topk": 1, "num_key_value_heads": 4}, dtype="float16"),
    Row("hunyuan_v1_moe", "all_experts", HUNYUAN | {"num_experts": 3, "moe_topk": 3, "intermediate_size": 13, "hidden_size": 56}, fused=True),
    Row("hunyuan_v1_moe", "lists", HUNYUAN | {"num_hidden_layers": 3, "moe_topk": [4, 4, 4], "attention_bias": True}, sharded=True),
]
LLAMA = [
    Row("llama", "plain"),
    Row("llama", "no_eps", **NO_EPS),
    Row("llama", "no_theta", edit=without("rope_parameters")),
    Row("llama", "biases", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1, "intermediate_size": 37}),
    Row("llama", "attention_bias", {"attention_bias": True, "head_dim": 20, "tie_word_embeddings": True}, dtype="bfloat16", sharded=True),
    Row("llama", "legacy", {"mlp_bias": True, "num_hidden_layers": 4}, edit=legacy_keys, dtype="float16"),
    Row("llama", "eos_list", {"eos_token_id": [2, 5], "num_attention_heads": 8, "num_key_value_heads": 8, "rms_norm_eps": 1e-2}),
    Row("llama", "linear", rope("linear", factor=3.0)),
    Row("llama", "llama3", rope("llama3", 5e4, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32),
        edit=legacy_keys),
    Row("llama", "yarn", {"head_dim": 32} | rope("yarn", factor=4.0, original_max_position_embeddings=32)),
    Row("llama", "yarn_mscale", {"head_dim": 32} | rope("yarn", factor=40.0, original_max_position_embeddings=16, mscale=0.7,
                                                        mscale_all_dim=0.5, beta_fast=8), edit=legacy_rope),
    Row("llama", "yarn_truncate", {"head_dim": 24} | rope("yarn", factor=32.0, original_max_position_embeddings=16, truncate=False)),
    Row("llama", "dynamic", {"max_position_embeddings": 64} | rope("dynamic", factor=4.0), edit=legacy_rope),
    Row("llama", "longrope_short", longrope(6, 64, attention_factor=1.1), options={"max_model_len": 64}),
    Row("llama", "longrope_long", longrope(6, 16), edit=legacy_rope, prompts=(17, 20, 31)),
]
MISTRAL = [
    Row("mistral", "plain", NO_WINDOW),
    Row("mistral", "window", {"sliding_window": 5}),
    Row("mistral", "window_of_one", {"sliding_window": 1, "num_key_value_heads": 4}, dtype="float16"),
    Row("mistral", "head_dim", NO_WINDOW | {"head_dim": 18, "tie_word_embeddings": True}, sharded=True, edit=without("rope_parameters")),
    Row("mistral", "hub", {"num_key_value_heads": 1, "num_hidden_layers": 3}, edit=hub_mistral, dtype="bfloat16"),
    Row("mistral", "legacy_window", {"sliding_window": 16, "rms_norm_eps": 1e-2} | rope("default", 1e6), edit=legacy_keys),
]
QWEN2 = [
    Row("qwen2", "plain"),
    Row("qwen2", "tied", {"tie_word_embeddings": True, "num_key_value_heads": 1, "intermediate_size": 21}, dtype="bfloat16"),
    Row("qwen2", "hub", {"num_hidden_layers": 3} | rope("default", 1e6), edit=hub_qwen, sharded=True),
    Row("qwen2", "window", {"num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
        edit=without("layer_types")),
    Row("qwen2", "layer_types", {"use_sliding_window": True, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
        dtype="float16"),
    Row("qwen2", "yarn", rope("yarn", 1e6, factor=4.0, original_max_position_embeddings=32) | {"num_attention_heads": 3,
        "num_key_value_heads": 3}, edit=legacy_rope),
]
QWEN3 = [  # what tiny_models.py does not have
    Row("qwen3", "bias", {"head_dim": 10, "attention_bias": True, "num_hidden_layers": 3, "vocab_size": 61}, dtype="bfloat16", edit=legacy_keys),
    Row("qwen3", "yarn", {"head_dim": 16, "num_key_value_heads": 1, "tie_word_embeddings": True, "hidden_size": 33,
                          "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32}},
        sharded=True),
    Row("qwen3", "window", {"num_hidden_layers": 3, "head_dim": 12, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2},
        edit=without("layer_types")),
    Row("qwen3_moe", "window", QWEN | {"head_dim": 12, "use_sliding_window": True, "sliding_window": 11}),
    Row("qwen3_moe", "yarn", QWEN | {"head_dim": 16} | rope("yarn", 1e6, factor=4.0, original_max_position_embeddings=32), edit=legacy_rope),
]
# fmt: on
ROWS = MIXTRAL + QWEN2_MOE + OLMOE_ROWS + PHIMOE + GRANITEMOE + HUNYUAN_ROWS + LLAMA + MISTRAL + QWEN2 + QWEN3
