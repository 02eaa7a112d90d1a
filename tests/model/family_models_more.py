"""Checkpoints of dots.llm1, Solar Open, K-EXAONE, Mellum 2, Hunyuan 3, Granite with a shared expert and FlexOlmo: families on the ops of
others."""

from __future__ import annotations

from typing import Any

import torch
from family_models_special import experts
from family_parity import Row

FULL, SLIDING = "full_attention", "sliding_attention"


def rope(kind: str = "default", theta: float = 1e4, **keys: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": theta} | keys


def drop(*keys: str, **changes: Any):
    """Takes keys away, so that both sides take the family's own defaults."""

    def edit(config: dict[str, Any]) -> None:
        for key in keys:
            config.pop(key)
        config.update(changes)

    return edit


def exaone(count: int, k: int, width: int, shared: int = 1, **keys: Any) -> dict[str, Any]:
    return {"num_experts": count, "num_experts_per_tok": k, "moe_intermediate_size": width, "num_shared_experts": shared, "n_group": 1,
            "topk_group": 1, "sliding_window": 7, "num_hidden_layers": 4, "head_dim": 12, "first_k_dense_replace": 1} | keys  # fmt: skip


def mellum(count: int, k: int, width: int, **keys: Any) -> dict[str, Any]:
    return {
        "num_experts": count,
        "num_experts_per_tok": k,
        "moe_intermediate_size": width,
        "head_dim": 12,
        "sliding_window": 7,
    } | keys


def hy_v3(count: int, k: int, width: int, shared: int = 1, **keys: Any) -> dict[str, Any]:
    return {"num_experts": count, "num_experts_per_tok": k, "moe_intermediate_size": width, "num_shared_experts": shared,
            "head_dim": 12} | keys  # fmt: skip


# fmt: off
DOTS1 = [
    Row("dots1", "plain", experts(8, 2, 24) | {"first_k_dense_replace": 1}),
    Row("dots1", "groups", experts(12, 3, 17, 2) | {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 1.7, "norm_topk_prob": True,
        "attention_bias": True, "head_dim": 16}, fused=True),
    Row("dots1", "window", experts(9, 4, 13) | {"sliding_window": 6, "max_window_layers": 1, "num_hidden_layers": 3, "norm_topk_prob": True},
        edit=drop("layer_types")),
    Row("dots1", "hub", experts(8, 3, 20) | {"num_attention_heads": 6, "num_key_value_heads": 3, "first_k_dense_replace": 1},
        dtype="bfloat16", edit=drop("layer_types", "sliding_window", "max_window_layers", "rms_norm_eps", "n_group", "topk_group",
                                    "norm_topk_prob", "routed_scaling_factor", scoring_func="sigmoid")),
    Row("dots1", "layer_types", experts(10, 1, 24) | {"layer_types": [SLIDING, FULL], "sliding_window": 3, "num_key_value_heads": 4},
        dtype="float16", sharded=True),
    Row("dots1", "tied", experts(8, 8, 16, 3) | {"tie_word_embeddings": True, "num_key_value_heads": 1, "rms_norm_eps": 0.01}),
]
SOLAR_OPEN = [
    Row("solar_open", "plain", experts(8, 2, 24) | {"head_dim": 12}),
    Row("solar_open", "groups", experts(12, 3, 17, 2) | {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 1.7, "head_dim": 16,
        "attention_bias": True, "num_hidden_layers": 3}, fused=True),
    Row("solar_open", "hub", experts(8, 3, 20) | {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 10}, dtype="bfloat16",
        edit=drop("rms_norm_eps", "n_group", "topk_group", "norm_topk_prob", "routed_scaling_factor", "n_shared_experts", "rope_parameters")),
    Row("solar_open", "yarn", experts(9, 4, 13, 3) | {"head_dim": 12, "norm_topk_prob": False, "rope_parameters": rope("yarn", 1e4, factor=4.0,
        original_max_position_embeddings=32)}),
    Row("solar_open", "f16", experts(10, 1, 24) | {"head_dim": 18, "num_key_value_heads": 4}, dtype="float16", sharded=True),
    Row("solar_open", "tied", experts(8, 8, 16) | {"tie_word_embeddings": True, "num_key_value_heads": 1, "head_dim": 8,
        "rms_norm_eps": 0.01}),
]
EXAONE_MOE = [
    Row("exaone_moe", "plain", exaone(8, 2, 24)),
    Row("exaone_moe", "groups", exaone(12, 3, 17, 2, n_group=4, topk_group=2, routed_scaling_factor=1.7, head_dim=16,
        mlp_layer_types=["sparse", "dense", "sparse", "sparse"]), fused=True),
    Row("exaone_moe", "pattern", exaone(9, 4, 13, 3, sliding_window_pattern=2, norm_topk_prob=False), edit=drop("layer_types")),
    Row("exaone_moe", "hub", exaone(8, 3, 20, num_attention_heads=6, num_key_value_heads=3, num_hidden_layers=5), dtype="bfloat16",
        edit=drop("layer_types", "mlp_layer_types", "rms_norm_eps", "routed_scaling_factor", "norm_topk_prob", "n_group", "topk_group"),
        edit_tensors=lambda t: t.update({"mtp.norm.weight": torch.ones(48)})),
    Row("exaone_moe", "layer_types", exaone(10, 1, 24, num_hidden_layers=3, layer_types=[FULL, SLIDING, FULL], sliding_window=3),
        dtype="float16", sharded=True),
    Row("exaone_moe", "tied", exaone(8, 8, 16, tie_word_embeddings=True, num_key_value_heads=1, rms_norm_eps=0.01, num_hidden_layers=2,
        layer_types=[FULL, FULL])),
]
MELLUM = [
    Row("mellum", "plain", mellum(8, 2, 24)),
    Row("mellum", "windows", mellum(9, 4, 13, num_hidden_layers=3, layer_types=[SLIDING, FULL, SLIDING], mlp_layer_types=["dense", "sparse",
        "sparse"], rope_parameters={FULL: rope("yarn", 1e4, factor=4.0, original_max_position_embeddings=32), SLIDING: rope("default", 1e3)}),
        fused=True),
    Row("mellum", "hub", mellum(8, 3, 20, num_attention_heads=6, num_key_value_heads=3), dtype="bfloat16",
        edit=drop("layer_types", "mlp_layer_types", "rope_parameters", "rms_norm_eps", "norm_topk_prob"),
        edit_tensors=lambda t: t.update({"mtp.layers.0.norm.weight": torch.ones(48)})),
    Row("mellum", "biases", mellum(12, 3, 17, attention_bias=True, norm_topk_prob=False, layer_types=[SLIDING, SLIDING], sliding_window=1)),
    Row("mellum", "f16", mellum(10, 1, 24, head_dim=18, num_key_value_heads=4, layer_types=[FULL, SLIDING], sliding_window=16),
        dtype="float16", sharded=True),
    Row("mellum", "tied", mellum(8, 8, 16, tie_word_embeddings=True, num_key_value_heads=1, rms_norm_eps=0.01)),
]
HY_V3 = [
    Row("hy_v3", "plain", hy_v3(8, 2, 24)),
    Row("hy_v3", "fused", hy_v3(12, 3, 17, 2, num_hidden_layers=3, mlp_layer_types=["sparse", "dense", "sparse"], head_dim=16,
        attention_bias=True), fused=True),
    Row("hy_v3", "hub", hy_v3(8, 3, 20, num_attention_heads=6, num_key_value_heads=3), dtype="bfloat16",
        edit=drop("mlp_layer_types", "rope_parameters", "rms_norm_eps", "router_scaling_factor", "num_shared_experts")),
    Row("hy_v3", "biases", hy_v3(9, 4, 13, 3, mlp_bias=True, router_scaling_factor=0.7, mlp_layer_types=["sparse", "dense"])),
    Row("hy_v3", "f16", hy_v3(10, 1, 24, head_dim=18, num_key_value_heads=4, enable_moe_fp32_combine=False), dtype="float16", sharded=True),
    Row("hy_v3", "tied", hy_v3(8, 8, 16, tie_word_embeddings=True, num_key_value_heads=1, rms_norm_eps=0.01, num_hidden_layers=3)),
]
GRANITE = {"num_local_experts": 8, "num_experts_per_tok": 3, "embedding_multiplier": 6.0, "logits_scaling": 4.0, "residual_multiplier": 0.6,
           "attention_multiplier": 0.2, "shared_intermediate_size": 28}
GRANITEMOESHARED = [
    Row("granitemoeshared", "plain", GRANITE),
    Row("granitemoeshared", "renamed", GRANITE | {"shared_intermediate_size": 17, "num_hidden_layers": 3}, fused=True),
    Row("granitemoeshared", "none", GRANITE | {"shared_intermediate_size": 0, "attention_bias": True, "num_local_experts": 5}),
    Row("granitemoeshared", "hub", GRANITE | {"num_attention_heads": 6, "num_key_value_heads": 3, "residual_multiplier": 0.22},
        dtype="bfloat16", edit=drop("num_experts_per_tok", "rope_parameters", "rms_norm_eps", "attention_bias", num_experts_per_tok=2)),
    Row("granitemoeshared", "no_multipliers", GRANITE | {"residual_multiplier": 1.0, "embedding_multiplier": 1.0, "logits_scaling": 1.0,
        "tie_word_embeddings": True, "num_key_value_heads": 1}),
    Row("granitemoeshared", "f16", GRANITE | {"num_experts_per_tok": 1, "num_key_value_heads": 4, "rms_norm_eps": 0.01}, dtype="float16",
        sharded=True),
]
FLEX = {"num_experts": 7, "num_experts_per_tok": 3, "num_hidden_layers": 3}
FLEX_OLMO = [
    Row("flex_olmo", "plain", FLEX),
    Row("flex_olmo", "fused", FLEX | {"norm_topk_prob": True, "attention_bias": True, "intermediate_size": 17, "num_experts": 12}, fused=True),
    Row("flex_olmo", "hub", FLEX | {"num_attention_heads": 6, "num_key_value_heads": 3, "num_experts_per_tok": 5}, dtype="bfloat16",
        edit=drop("rope_parameters", "rms_norm_eps", "attention_bias", "norm_topk_prob", "num_experts_per_tok")),
    Row("flex_olmo", "llama3", FLEX | {"num_key_value_heads": 4, "num_experts_per_tok": 7, "rope_parameters": rope("llama3", 1e4, factor=4.0,
        low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)}, sharded=True),
    Row("flex_olmo", "tied", FLEX | {"tie_word_embeddings": True, "num_key_value_heads": 1, "rms_norm_eps": 0.01, "num_experts": 9}),
    Row("flex_olmo", "f16", FLEX | {"num_experts_per_tok": 1, "num_experts": 5, "intermediate_size": 33, "num_hidden_layers": 1},
        dtype="float16"),
]
# fmt: on
ROWS = FLEX_OLMO + GRANITEMOESHARED + DOTS1 + SOLAR_OPEN + EXAONE_MOE + MELLUM + HY_V3
