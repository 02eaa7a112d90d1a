"""Checkpoints of GLM-4.7-Flash, DeepSeek-V3.2 and GLM-5: multi-head latent attention and the router of DeepSeek-V3. The attention of the
last two is sparse beyond index_topk tokens, which their rows stay below."""

from __future__ import annotations

from functools import partial
from typing import Any

from family_models_special import DEEPSEEK_ADDED, add_mtp_layer, default_rope, experts, hub_keys, mla, with_yarn
from family_parity import Row

DENSE, SPARSE = "dense", "sparse"
HUB = {
    "num_nextn_predict_layers": 1,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "moe_layer_freq": 1,
    "ep_size": 1,
}
LITE_DEFAULTS = (*DEEPSEEK_ADDED, "rms_norm_eps", "n_group", "topk_group", "norm_topk_prob", "routed_scaling_factor", "attention_bias",
                 "mlp_layer_types")  # fmt: skip
# Defaults of groups need as many experts as the published models have.
DSA_DEFAULTS = (
    *DEEPSEEK_ADDED,
    "rms_norm_eps",
    "norm_topk_prob",
    "routed_scaling_factor",
    "attention_bias",
    "layer_types",
    "mlp_layer_types",
)


def indexer(
    heads: int, dim: int, top: int = 2048, dense: int = 1, groups: int = 1, top_groups: int = 1, **keys: Any
) -> dict[str, Any]:
    return {"index_n_heads": heads, "index_head_dim": dim, "index_topk": top, "first_k_dense_replace": dense, "n_group": groups,
            "topk_group": top_groups} | keys  # fmt: skip


# fmt: off
GLM4_MOE_LITE = [
    Row("glm4_moe_lite", "plain", mla(12, 8, 10, 20, 14) | experts(8, 2, 24)),
    Row("glm4_moe_lite", "groups", mla(16, 4, 16, 24, None, 3) | experts(12, 3, 17, 2) | {"n_group": 4, "topk_group": 2,
        "routed_scaling_factor": 1.3, "num_hidden_layers": 3, "mlp_layer_types": [SPARSE, DENSE, SPARSE]}, fused=True),
    Row("glm4_moe_lite", "hub", mla(8, 6, 12, 16, 12, 2) | experts(8, 4, 20) | default_rope(1e6), dtype="bfloat16",
        edit=partial(hub_keys, drop=LITE_DEFAULTS, first_k_dense_replace=1, partial_rotary_factor=1.0, **HUB),
        edit_tensors=partial(add_mtp_layer, 2)),
    Row("glm4_moe_lite", "halves", mla(5, 4, 7, 9, 11, 6) | experts(9, 4, 13, 3) | {"rope_interleave": False, "norm_topk_prob": False,
        "n_group": 3, "topk_group": 3, "mlp_layer_types": [SPARSE, SPARSE]} | with_yarn(mscale=0.9, mscale_all_dim=0.6)),
    Row("glm4_moe_lite", "biases", mla(6, 10, 4, 12, 18, 1) | experts(8, 1, 24) | {"attention_bias": True, "tie_word_embeddings": True,
        "num_hidden_layers": 3, "mlp_layer_types": [DENSE, DENSE, SPARSE]}),
    # A norm's epsilon large enough to be seen, which those of the latent vectors do not take.
    Row("glm4_moe_lite", "epsilon", mla(12, 8, 10, 33, None) | experts(10, 10, 16) | {"rms_norm_eps": 0.05, "n_group": 5, "topk_group": 5},
        dtype="float16", sharded=True),
]
DEEPSEEK_V32 = [
    Row("deepseek_v32", "plain", mla(12, 8, 10, 20, 14) | experts(8, 2, 24) | indexer(2, 12)),
    Row("deepseek_v32", "groups", mla(16, 4, 16, 24, 20, 3) | experts(12, 3, 17, 2) | indexer(3, 8, 100, 0, 4, 2,
        routed_scaling_factor=1.7, num_hidden_layers=3), fused=True),
    Row("deepseek_v32", "hub", mla(8, 6, 12, 16, 12, 2) | experts(32, 8, 9) | indexer(1, 16, 2048, 1, 8, 4, num_hidden_layers=4)
        | with_yarn(mscale=1.0, mscale_all_dim=1.0, beta_fast=32, beta_slow=1), edit=partial(hub_keys, drop=DSA_DEFAULTS, **HUB),
        edit_tensors=partial(add_mtp_layer, 4), dtype="bfloat16"),
    Row("deepseek_v32", "layer_types", mla(5, 4, 7, 9, 11, 6) | experts(9, 4, 13, 3) | indexer(2, 5, 97, 0, 3, 3, norm_topk_prob=False,
        mlp_layer_types=[SPARSE, DENSE]), sharded=True),
    Row("deepseek_v32", "biases", mla(6, 10, 4, 12, 18, 1) | experts(8, 1, 24) | indexer(4, 10, 128, 2, attention_bias=True,
        num_hidden_layers=3, num_key_value_heads=1)),
    Row("deepseek_v32", "epsilon", mla(12, 8, 10, 33, 12) | experts(10, 10, 16) | indexer(2, 11, 2048, 1, 5, 5, rms_norm_eps=0.05,
        tie_word_embeddings=True), dtype="float16"),
]
GLM_MOE_DSA = [
    Row("glm_moe_dsa", "plain", mla(12, 8, 10, 20, 14) | experts(8, 2, 24) | indexer(2, 12)),
    Row("glm_moe_dsa", "shared", mla(16, 4, 16, 24, 20, 3) | experts(12, 3, 17, 2) | indexer(3, 8, 100, 0, 4, 2,
        routed_scaling_factor=1.7, num_hidden_layers=4, indexer_types=["full", "shared", "full", "shared"]), fused=True),
    Row("glm_moe_dsa", "hub", mla(8, 6, 12, 16, 12, 2) | experts(16, 8, 20) | indexer(1, 16, 2048, 3, num_hidden_layers=5)
        | default_rope(1e6), edit=partial(hub_keys, drop=(*DSA_DEFAULTS, "n_group", "topk_group", "index_topk", "first_k_dense_replace"),
        indexer_rope_interleave=True, **HUB), edit_tensors=partial(add_mtp_layer, 5), dtype="bfloat16"),
    Row("glm_moe_dsa", "layer_types", mla(5, 4, 7, 9, 11, 6) | experts(9, 4, 13, 3) | indexer(2, 5, 97, 0, 3, 3, norm_topk_prob=False,
        mlp_layer_types=[SPARSE, DENSE]), sharded=True),
    Row("glm_moe_dsa", "biases", mla(6, 10, 4, 12, 18, 1) | experts(8, 1, 24) | indexer(4, 10, 128, 2, attention_bias=True,
        num_hidden_layers=3, num_key_value_heads=1, index_topk_freq=2)),
    Row("glm_moe_dsa", "epsilon", mla(12, 8, 10, 33, 12) | experts(10, 10, 16) | indexer(2, 11, 2048, 1, 5, 5, rms_norm_eps=0.05,
        tie_word_embeddings=True, index_topk_pattern="FS"), dtype="float16"),
]
# fmt: on
ROWS = GLM4_MOE_LITE + DEEPSEEK_V32 + GLM_MOE_DSA
