"""Rows of family_parity.py: LFM2 with short convolutions, Nemotron-H with Mamba2, Kimi Linear with Kimi delta attention."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from family_parity import Row as AnyRow
from family_parity import legacy_keys

Row = partial(AnyRow, spread=0.15)  # as in family_models_hybrid.py


def kinds(letters: str) -> list[str]:
    """c: short convolution, f: full attention, l: linear attention or Mamba2, m: MLP, e: experts."""
    names = {"c": "conv", "f": "full_attention", "l": "linear_attention", "m": "mlp", "e": "moe"}
    return [names[letter] for letter in letters]


def lfm2(
    letters: str, experts: int = 8, top_k: int = 2, width: int = 24, dense: int = 1, **more: Any
) -> dict[str, Any]:
    return {
        "layer_types": kinds(letters),
        "num_hidden_layers": len(letters),
        "num_experts": experts,
        "num_experts_per_tok": top_k,
        "moe_intermediate_size": width,
        "num_dense_layers": dense,
        **more,
    }


def nemotron(letters: str, heads: tuple[int, int, int, int] = (4, 6, 2, 8), **more: Any) -> dict[str, Any]:
    """heads: of Mamba2, their columns, groups, and the size of a state."""
    return {
        "layers_block_type": kinds(letters),
        "mamba_num_heads": heads[0],
        "mamba_head_dim": heads[1],
        "n_groups": heads[2],
        "ssm_state_size": heads[3],
        "head_dim": 16,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "moe_shared_expert_intermediate_size": 20,
        "time_step_min": 1e-30,  # below which transformers 5.23 lets no time step be, for time_step_limit[0]; 0 fails in it
        **more,
    }


def limited(model: torch.nn.Module) -> None:
    """Time steps have the bounds of the config, as in the authors' code (the hub's modeling_nemotron_h.py)."""
    for layer in model.model.layers:
        if layer.block_type == "linear_attention":
            layer.mixer.time_step_limit = tuple(model.config.time_step_limit)


def kimi(letters: str, heads: int = 3, columns: int = 8, dense: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "layer_types": kinds(letters),
        "num_hidden_layers": len(letters),
        "linear_num_heads": heads,
        "linear_head_dim": columns,
        "mlp_layer_types": ["dense"] * dense + ["sparse"] * (len(letters) - dense),
        "num_key_value_heads": 4,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 6,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 20,
        **more,
    }


def old_lfm2(config: dict[str, Any]) -> None:
    legacy_keys(config, {"tie_word_embeddings": "tie_embedding"})
    config.pop("rope_scaling")


def pattern(config: dict[str, Any]) -> None:
    """The hub's keys: a letter for each layer, and infinity as Python writes it."""
    letters = {"linear_attention": "M", "full_attention": "*", "moe": "E", "mlp": "-"}
    config["hybrid_override_pattern"] = "".join(letters[kind] for kind in config.pop("layers_block_type"))
    config["num_hidden_layers"] = len(config["hybrid_override_pattern"])
    config["time_step_limit"] = [0.0, float("inf")]
    config["torch_dtype"] = config.pop("dtype")


def hub_kimi(config: dict[str, Any]) -> None:
    """The hub's keys: layers are numbered from 1 on."""
    types = config.pop("layer_types")
    config["linear_attn_config"] = {
        "full_attn_layers": [i + 1 for i, kind in enumerate(types) if kind == "full_attention"],
        "kda_layers": [i + 1 for i, kind in enumerate(types) if kind == "linear_attention"],
        "head_dim": config.pop("linear_head_dim"),
        "num_heads": config.pop("linear_num_heads"),
        "short_conv_kernel_size": config.pop("linear_conv_kernel_dim"),
    }
    config["first_k_dense_replace"] = config.pop("mlp_layer_types").count("dense")
    config.update(mla_use_nope=True, moe_layer_freq=1, moe_router_activation_func="sigmoid", use_grouped_topk=True,
                  rope_theta=10000.0, rope_scaling=None, num_nextn_predict_layers=0)  # fmt: skip


def dense_as_mlp(tensors: dict[str, torch.Tensor]) -> None:
    """The hub's name of a dense layer's MLP."""
    for name in [name for name in tensors if name.startswith("model.layers.0.block_sparse_moe.")]:
        tensors[name.replace("block_sparse_moe", "mlp")] = tensors.pop(name)


# fmt: off
LFM2 = [
    Row("lfm2_moe", "plain", lfm2("ccfc")),
    Row("lfm2_moe", "fused", lfm2("cfcf", 7, 3, 13, dense=2, conv_bias=True, norm_topk_prob=False, tie_word_embeddings=False), fused=True),
    Row("lfm2_moe", "no_bias", lfm2("fccc", 6, 6, 9, dense=0, use_expert_bias=False, routed_scaling_factor=1.7, conv_L_cache=4), sharded=True),
    Row("lfm2_moe", "old", lfm2("cccf", 5, 1, 17, dense=3, conv_L_cache=2, num_key_value_heads=1), edit=old_lfm2),
    Row("lfm2_moe", "odd", lfm2("cf", 9, 4, 11, dense=0, conv_L_cache=5, conv_bias=True, hidden_size=40, num_key_value_heads=4)),
    Row("lfm2_moe", "bfloat16", lfm2("ccfc", 10, 3, 17), dtype="bfloat16"),
    Row("lfm2_moe", "float16", lfm2("fc", 5, 2, conv_bias=True), dtype="float16", fused=True),
]
NEMOTRON = [
    Row("nemotron_h", "plain", nemotron("lefm")),
    Row("nemotron_h", "fused", nemotron("lelefe", (6, 5, 3, 7), use_bias=True, mlp_bias=True, use_conv_bias=False, norm_topk_prob=False,
                                        moe_intermediate_size=13), fused=True),
    Row("nemotron_h", "groups", nemotron("flel", (4, 33, 1, 16), n_group=4, topk_group=2, routed_scaling_factor=2.5, conv_kernel=2,
                                         num_key_value_heads=1), sharded=True),
    Row("nemotron_h", "pattern", nemotron("llemefl", (3, 9, 3, 20), num_experts_per_tok=1, conv_kernel=3), edit=pattern),
    Row("nemotron_h", "dense", nemotron("lmfml", (2, 16, 2, 12), mlp_bias=True, intermediate_size=33, num_key_value_heads=4)),
    Row("nemotron_h", "limits", nemotron("lfeem", (4, 6, 4, 5), time_step_limit=[0.5, 0.8], use_bias=True, head_dim=10), edit_reference=limited),
    Row("nemotron_h", "bfloat16", nemotron("lefm", (4, 12, 2, 40)), dtype="bfloat16"),
    Row("nemotron_h", "float16", nemotron("elf", (2, 7, 1, 9), mlp_bias=True), dtype="float16", fused=True),
]
KIMI = [
    Row("kimi_linear", "plain", kimi("lflf")),
    Row("kimi_linear", "fused", kimi("lllf", 2, 10, dense=0, moe_renormalize=False, num_experts=7, tie_word_embeddings=True), fused=True),
    Row("kimi_linear", "queries", kimi("flll", 1, 33, q_lora_rank=12, attention_bias=True, linear_conv_kernel_dim=2), sharded=True),
    Row("kimi_linear", "hub", kimi("llfl", 4, 6, dense=1, linear_conv_kernel_dim=3), edit=hub_kimi, edit_tensors=dense_as_mlp),
    Row("kimi_linear", "groups", kimi("lf", 5, 7, dense=0, num_expert_group=4, topk_group=2, num_shared_experts=2, routed_scaling_factor=1.0)),
    Row("kimi_linear", "bfloat16", kimi("lllf", 2, 16, num_experts_per_token=3), dtype="bfloat16"),
    Row("kimi_linear", "float16", kimi("fll", 3, 5, dense=2), dtype="float16", fused=True),
]
# fmt: on
ROWS = LFM2 + NEMOTRON + KIMI
