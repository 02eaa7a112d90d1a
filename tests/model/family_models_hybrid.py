"""Rows of family_parity.py: Qwen3-Next and Qwen3.5, whose layers are gated DeltaNet or gated attention."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from family_parity import Row as AnyRow
from family_parity import legacy_keys

# Weights are smaller than those of other families. DeltaNet's output is normed whatever its size, and where it nearly cancels, float32
# alone is off by more: at 0.3 up to 1e-4 of a row's largest logit on either side, by a float64 computation of the same models.
Row = partial(AnyRow, spread=0.15)
VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2,
          "temporal_patch_size": 2, "out_hidden_size": 48, "num_position_embeddings": 36, "in_channels": 3}  # fmt: skip
HALF = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}


def linear(keys: int, values: int, dk: int, dv: int, width: int = 4, **more: Any) -> dict[str, Any]:
    return {
        "linear_num_key_heads": keys,
        "linear_num_value_heads": values,
        "linear_key_head_dim": dk,
        "linear_value_head_dim": dv,
        "linear_conv_kernel_dim": width,
        "num_hidden_layers": 4,
        "head_dim": 16,
        **more,
    }


def moe(experts: int = 8, top_k: int = 2, width: int = 24, shared: int = 20, **more: Any) -> dict[str, Any]:
    return {
        "num_experts": experts,
        "num_experts_per_tok": top_k,
        "moe_intermediate_size": width,
        "shared_expert_intermediate_size": shared,
        **more,
    }


def mrope(theta: float, section: list[int], factor: float = 0.5) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": factor, "mrope_section": section,
            "mrope_interleaved": True}  # fmt: skip
    return {"rope_parameters": rope}


def kinds(letters: str) -> dict[str, Any]:
    """l: linear attention, f: full attention."""
    names = {"l": "linear_attention", "f": "full_attention"}
    return {"layer_types": [names[letter] for letter in letters], "num_hidden_layers": len(letters)}


def by_interval(config: dict[str, Any]) -> None:
    """The keys of checkpoints from before layer_types."""
    config.pop("layer_types")
    config["full_attention_interval"] = 4
    legacy_keys(config, {})
    config["partial_rotary_factor"] = 0.5
    config.pop("rope_scaling")


def hub_qwen(config: dict[str, Any]) -> None:
    """Keys beside those that transformers writes."""
    config.update(attn_output_gate=True, mamba_ssm_dtype="float32", output_gate_type="swish", mtp_num_hidden_layers=1,
                  mtp_use_dedicated_embeddings=False, full_attention_interval=4)  # fmt: skip


def add_mtp(tensors: dict[str, torch.Tensor]) -> None:
    """Tensors of the layer that predicts a further token."""
    hidden = tensors["model.norm.weight"].shape[0]
    tensors["mtp.fc.weight"] = torch.ones(hidden, 2 * hidden)
    tensors["mtp.norm.weight"] = torch.ones(hidden)
    tensors["mtp.layers.0.mlp.experts.0.gate_proj.weight"] = torch.ones(3, hidden)


# fmt: off
NEXT = [
    Row("qwen3_next", "plain", linear(2, 4, 8, 12) | moe() | HALF),
    Row("qwen3_next", "fused", linear(3, 3, 10, 6, 3) | moe(7, 3, 13, 9, norm_topk_prob=False, tie_word_embeddings=True) | HALF, fused=True),
    Row("qwen3_next", "three", linear(2, 6, 8, 8, 2, attention_bias=True) | moe(16, 4, 9) | kinds("lflf"), sharded=True),
    Row("qwen3_next", "interval", linear(1, 2, 16, 33) | moe(6, 6) | HALF, edit=by_interval),
    Row("qwen3_next", "dense_layers", linear(4, 4, 5, 7, mlp_only_layers=[1], num_key_value_heads=1) | moe() | HALF, edit_tensors=add_mtp),
    Row("qwen3_next", "bfloat16", linear(2, 4, 12, 40) | moe(10, 3, 17) | kinds("flll") | HALF, dtype="bfloat16"),
    Row("qwen3_next", "float16", linear(1, 3, 9, 11, 3, num_key_value_heads=4) | moe(5, 1) | kinds("lf") | HALF, dtype="float16", fused=True),
]
MOE_TEXT = [
    Row("qwen3_5_moe_text", "plain", linear(2, 4, 8, 12) | moe() | HALF),
    Row("qwen3_5_moe_text", "fused", linear(3, 3, 10, 6, 3) | moe(7, 3, 13, 9, tie_word_embeddings=True) | mrope(1e7, [2, 1, 1]), fused=True),
    Row("qwen3_5_moe_text", "three", linear(2, 6, 8, 8, 2, attention_bias=True) | moe(16, 4, 9) | kinds("lflf"), sharded=True),
    Row("qwen3_5_moe_text", "hub", linear(1, 2, 16, 33) | moe(6, 6) | mrope(1e4, [1, 1, 0], 0.25), edit=hub_qwen, edit_tensors=add_mtp,
        seed=1),  # with seed 0, q and k of a first token are nearly orthogonal: 1.2e-4 off here, 6e-5 in transformers
    Row("qwen3_5_moe_text", "bfloat16", linear(2, 4, 12, 40, num_key_value_heads=1) | moe(10, 3, 17) | kinds("flll") | HALF, dtype="bfloat16"),
    Row("qwen3_5_moe_text", "float16", linear(1, 3, 9, 11, 3, num_key_value_heads=4) | moe(5, 1) | kinds("lf") | HALF, dtype="float16", fused=True),
]
MOE_WITH_VISION = [
    Row("qwen3_5_moe", "plain", linear(2, 4, 8, 12) | moe() | mrope(1e7, [2, 1, 1]), vision=VISION),
    Row("qwen3_5_moe", "fused", linear(1, 3, 10, 6, 3) | moe(7, 3, 13, 9) | mrope(1e4, [2, 1, 1]), vision=VISION, fused=True),
    Row("qwen3_5_moe", "bias", linear(2, 4, 8, 8, 2, attention_bias=True) | moe(16, 4, 9) | kinds("lflf") | HALF, vision=VISION, sharded=True),
    Row("qwen3_5_moe", "one_key_head", linear(1, 2, 16, 33, num_key_value_heads=1) | moe(6, 6) | HALF, vision=VISION),
    Row("qwen3_5_moe", "bfloat16", linear(3, 3, 12, 40) | moe(10, 3, 17) | kinds("flll") | HALF, vision=VISION, dtype="bfloat16"),
    Row("qwen3_5_moe", "float16", linear(1, 3, 9, 11, 3) | moe(5, 1) | kinds("lf") | HALF, vision=VISION, dtype="float16", fused=True),
]
DENSE_TEXT = [
    Row("qwen3_5_text", "plain", linear(2, 4, 8, 12) | HALF),
    Row("qwen3_5_text", "tied", linear(3, 3, 10, 6, 3, tie_word_embeddings=True) | mrope(1e7, [2, 1, 1])),
    Row("qwen3_5_text", "three", linear(2, 6, 8, 8, 2, attention_bias=True, intermediate_size=33) | kinds("lflf"), sharded=True),
    Row("qwen3_5_text", "hub", linear(1, 2, 16, 33) | mrope(1e4, [1, 1, 0], 0.25), edit=hub_qwen, edit_tensors=add_mtp),
    Row("qwen3_5_text", "bfloat16", linear(2, 4, 12, 40, num_key_value_heads=1) | kinds("flll") | HALF, dtype="bfloat16"),
    Row("qwen3_5_text", "float16", linear(1, 3, 9, 11, 3, num_key_value_heads=4) | kinds("lf") | HALF, dtype="float16"),
]
DENSE_WITH_VISION = [
    Row("qwen3_5", "plain", linear(2, 4, 8, 12) | mrope(1e7, [2, 1, 1]), vision=VISION),
    Row("qwen3_5", "width3", linear(1, 3, 10, 6, 3) | mrope(1e4, [2, 1, 1]), vision=VISION),
    Row("qwen3_5", "bias", linear(2, 4, 8, 8, 2, attention_bias=True) | kinds("lflf") | HALF, vision=VISION, sharded=True),
    Row("qwen3_5", "one_key_head", linear(1, 2, 16, 33, num_key_value_heads=1) | HALF, vision=VISION),
    Row("qwen3_5", "bfloat16", linear(3, 3, 12, 40) | kinds("flll") | HALF, vision=VISION, dtype="bfloat16"),
    Row("qwen3_5", "float16", linear(1, 3, 9, 11, 3) | kinds("lf") | HALF, vision=VISION, dtype="float16"),
]
# fmt: on
ROWS = NEXT + MOE_TEXT + MOE_WITH_VISION + DENSE_TEXT + DENSE_WITH_VISION
