"""Rows of family_parity.py: DeepSeek-V2 and V3, gpt-oss, GLM-4.5, ERNIE 4.5, MiniMax-M2, Llama 4."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from family_parity import Row, legacy_keys

Tensors = dict[str, torch.Tensor]


def hub_keys(
    config: dict[str, Any], drop: tuple[str, ...] = (), rename: dict[str, str] | None = None, **more: Any
) -> None:
    """A config as the hub has it: older names, without what transformers 5 adds, with what training left behind."""
    kind = config["rope_parameters"]["rope_type"]
    legacy_keys(config, rename or {})
    if config["rope_scaling"]:
        config["rope_scaling"].pop("rope_type", None)
        config["rope_scaling"]["type"] = kind
    for key in drop:
        config.pop(key, None)
    config.update(more)


def with_yarn(original: int = 16, **keys: Any) -> dict[str, Any]:
    rope = {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": original,
        **keys,
    }
    return {"rope_parameters": rope}


def default_rope(theta: float = 10000.0, **keys: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **keys}}


def add_mtp_layer(layer: int, tensors: Tensors) -> None:
    """A layer after the last that predicts a further token, some of its tensors as DeepSeek-V3 and GLM-4.5 have them."""
    name = f"model.layers.{layer}."
    hidden = tensors["model.norm.weight"].shape[0]
    for norm in ("enorm", "hnorm", "shared_head.norm", "input_layernorm"):
        tensors[f"{name}{norm}.weight"] = torch.ones(hidden)
    tensors[f"{name}eh_proj.weight"] = torch.ones(hidden, 2 * hidden)
    tensors[f"{name}embed_tokens.weight"] = torch.zeros_like(tensors["model.embed_tokens.weight"])
    tensors[f"{name}mlp.experts.0.gate_proj.weight"] = torch.ones(3, hidden)


# nope, rope, v, latent of the keys and values, latent of the queries (None: none)
def mla(nope: int, rope: int, v: int, kv: int, q: int | None, heads: int = 4) -> dict[str, Any]:
    return {"qk_nope_head_dim": nope, "qk_rope_head_dim": rope, "v_head_dim": v, "kv_lora_rank": kv, "q_lora_rank": q,
            "num_attention_heads": heads, "num_key_value_heads": heads}  # fmt: skip


def experts(count: int, k: int, width: int, shared: int = 1) -> dict[str, Any]:
    return {
        "n_routed_experts": count,
        "num_experts_per_tok": k,
        "moe_intermediate_size": width,
        "n_shared_experts": shared,
    }


DEEPSEEK_V2_HUB = {"aux_loss_alpha": 0.001, "seq_aux": True, "ep_size": 1, "pretraining_tp": 1, "moe_layer_freq": 1,
                   "scoring_func": "softmax", "norm_topk_prob": False, "use_cache": True}  # fmt: skip
DEEPSEEK_V3_HUB = {"ep_size": 1, "moe_layer_freq": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "aux_loss_alpha": 0.001,
                   "seq_aux": True, "num_nextn_predict_layers": 1}  # fmt: skip
DEEPSEEK_ADDED = ("head_dim", "rope_interleave", "num_mtp_layers", "qk_head_dim")

# fmt: off
DEEPSEEK_V2 = [
    Row("deepseek_v2", "lite", mla(12, 8, 10, 20, None) | experts(8, 2, 24, 2) | {"first_k_dense_replace": 1}),
    Row("deepseek_v2", "groups", mla(16, 4, 16, 24, 20, 3) | experts(12, 3, 17) | {"topk_method": "group_limited_greedy", "n_group": 4,
        "topk_group": 2, "routed_scaling_factor": 1.7, "num_hidden_layers": 3}, fused=True),
    Row("deepseek_v2", "hub", mla(8, 6, 12, 16, None, 2) | experts(6, 3, 20) | {"first_k_dense_replace": 1}
        | with_yarn(mscale=0.707, mscale_all_dim=0.707, beta_fast=32, beta_slow=1), sharded=True,
        edit=partial(hub_keys, drop=(*DEEPSEEK_ADDED, "routed_scaling_factor", "topk_method", "rms_norm_eps", "mlp_bias"),
                     **DEEPSEEK_V2_HUB)),
    Row("deepseek_v2", "mscale", mla(6, 2, 7, 10, 11, 6) | experts(9, 4, 13, 3) | with_yarn(mscale=1.0, mscale_all_dim=0.6)
        | {"routed_scaling_factor": 0.8}),
    Row("deepseek_v2", "bf16", mla(8, 8, 8, 34, 15, 4) | experts(8, 8, 16, 1) | {"mlp_bias": True, "first_k_dense_replace": 1},
        dtype="bfloat16", fused=True),
    # A norm's epsilon large enough to be seen, which those of the latent vectors do not take.
    Row("deepseek_v2", "epsilon", mla(12, 8, 10, 20, 12) | experts(10, 1, 24) | {"rms_norm_eps": 0.05, "tie_word_embeddings": True,
        "topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1}, dtype="float16"),
    Row("deepseek_v2", "biases", mla(6, 10, 4, 12, 18, 1) | experts(8, 2, 24) | {"attention_bias": True, "mlp_bias": True,
        "num_hidden_layers": 3, "first_k_dense_replace": 2} | with_yarn(mscale_all_dim=0), sharded=True),
]
DEEPSEEK_V3 = [
    Row("deepseek_v3", "plain", mla(12, 8, 10, 20, 14) | experts(8, 2, 24, 1) | {"first_k_dense_replace": 1, "n_group": 1,
        "topk_group": 1}),
    Row("deepseek_v3", "groups", mla(16, 4, 16, 24, None, 3) | experts(12, 3, 17, 2) | {"n_group": 4, "topk_group": 2,
        "routed_scaling_factor": 1.7, "num_hidden_layers": 3, "first_k_dense_replace": 0}, fused=True),
    Row("deepseek_v3", "hub", mla(8, 6, 12, 16, 12, 2) | experts(8, 3, 20) | {"first_k_dense_replace": 1, "n_group": 2, "topk_group": 1}
        | with_yarn(mscale=1.0, mscale_all_dim=1.0, beta_fast=32, beta_slow=1), edit_tensors=partial(add_mtp_layer, 2),
        edit=partial(hub_keys, drop=(*DEEPSEEK_ADDED, "routed_scaling_factor", "norm_topk_prob", "rms_norm_eps", "attention_bias"), **DEEPSEEK_V3_HUB)),
    Row("deepseek_v3", "halves", mla(5, 4, 7, 9, 11, 6) | experts(9, 4, 13, 3) | {"rope_interleave": False, "norm_topk_prob": False,
        "n_group": 3, "topk_group": 3, "first_k_dense_replace": 0} | with_yarn(mscale=0.9, mscale_all_dim=0.6)),
    Row("deepseek_v3", "bf16", mla(8, 8, 8, 33, 15) | experts(8, 8, 16) | {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
        "norm_topk_prob": False}, dtype="bfloat16", fused=True),
    Row("deepseek_v3", "epsilon", mla(12, 8, 10, 20, None) | experts(10, 1, 24) | {"rms_norm_eps": 0.05, "tie_word_embeddings": True,
        "n_group": 5, "topk_group": 1, "first_k_dense_replace": 1}, dtype="float16", sharded=True),
    Row("deepseek_v3", "biases", mla(6, 10, 4, 12, 18, 1) | experts(8, 2, 24) | {"attention_bias": True, "n_group": 2, "topk_group": 2,
        "num_hidden_layers": 3, "first_k_dense_replace": 2, "num_key_value_heads": 1}),
]
GLM4_MOE = [
    Row("glm4_moe", "plain", experts(8, 2, 24) | default_rope(partial_rotary_factor=0.5)),
    Row("glm4_moe", "norms", experts(12, 3, 17, 2) | default_rope(partial_rotary_factor=0.25) | {"use_qk_norm": True, "n_group": 4,
        "attention_bias": True, "head_dim": 16, "topk_group": 2, "routed_scaling_factor": 1.7, "first_k_dense_replace": 0}, fused=True),
    Row("glm4_moe", "hub", experts(8, 3, 20) | default_rope(1e6, partial_rotary_factor=0.5) | {"attention_bias": True,
        "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 12}, edit_tensors=partial(add_mtp_layer, 2),
        edit=partial(hub_keys, num_nextn_predict_layers=1, drop=("num_mtp_layers", "rms_norm_eps", "norm_topk_prob", "n_group",
        "topk_group", "use_qk_norm", "first_k_dense_replace", "routed_scaling_factor"))),
    # The factor that nobody wrote down is 0.5.
    Row("glm4_moe", "half", experts(9, 4, 13, 3) | default_rope() | {"norm_topk_prob": False, "n_group": 3, "topk_group": 2,
        "first_k_dense_replace": 2, "num_hidden_layers": 3},
        edit=lambda c: (hub_keys(c), c.pop("partial_rotary_factor", None), c["rope_scaling"] and c["rope_scaling"].clear())),
    Row("glm4_moe", "bf16", experts(8, 8, 16) | default_rope(partial_rotary_factor=1.0) | {"use_qk_norm": True, "num_key_value_heads": 1,
        "tie_word_embeddings": True}, dtype="bfloat16", fused=True),
    Row("glm4_moe", "f16", experts(10, 1, 24) | default_rope(partial_rotary_factor=0.5) | {"n_group": 5, "topk_group": 3,
        "num_key_value_heads": 4, "rms_norm_eps": 0.01}, dtype="float16", sharded=True),
]


def ernie(count: int, k: int, width: int, shared: int = 2, begin: int = 1, end: int = -1, interval: int = 1) -> dict[str, Any]:
    return {"moe_num_experts": count, "moe_k": k, "moe_intermediate_size": width, "moe_num_shared_experts": shared,
            "moe_layer_start_index": begin, "moe_layer_end_index": end, "moe_layer_interval": interval}  # fmt: skip


ERNIE4_5_MOE = [
    Row("ernie4_5_moe", "plain", ernie(8, 2, 24)),
    Row("ernie4_5_moe", "interval", ernie(12, 3, 17, 0, 0, 3, 2) | {"num_hidden_layers": 5, "use_bias": True,
        "tie_word_embeddings": False}, fused=True),
    # Sums of probabilities on both sides of the least divisor.
    Row("ernie4_5_moe", "least_sum", ernie(9, 2, 20, 1, 0) | {"moe_norm_min": 0.6, "head_dim": 10}),
    Row("ernie4_5_moe", "hub", ernie(8, 6, 20, 3) | {"num_attention_heads": 6, "num_key_value_heads": 3, **default_rope(5e5)},
        edit=partial(hub_keys, drop=("rope_theta", "rms_norm_eps", "moe_norm_min", "moe_layer_start_index", "moe_layer_end_index",
        "moe_layer_interval", "use_bias", "tie_word_embeddings"), moe_gate="topk", moe_use_aux_free=True, moe_capacity=[64, 64, 64], num_nextn_predict_layers=1),
        edit_tensors=lambda t: t.update({"model.mtp_block.0.input_layernorm.weight": torch.ones(48),
                                         "model.mtp_linear_proj.0.weight": torch.ones(48, 96)})),
    Row("ernie4_5_moe", "bf16", ernie(8, 8, 16, 1, 0) | {"use_bias": True}, dtype="bfloat16", fused=True),
    Row("ernie4_5_moe", "f16", ernie(10, 1, 24, 2, 1, 1) | {"num_hidden_layers": 3, "tie_word_embeddings": False}, dtype="float16",
        sharded=True),
]


def minimax(count: int, k: int, width: int) -> dict[str, Any]:
    return {"num_local_experts": count, "num_experts_per_tok": k, "intermediate_size": width}


MINIMAX_HUB = {"rotary_dim": 6, "use_qk_norm": True, "qk_norm_type": "per_layer", "use_routing_bias": True, "scoring_func": "sigmoid",
               "attn_type_list": [1, 1], "shared_intermediate_size": 0, "use_mtp": True, "num_mtp_modules": 3}  # fmt: skip
MINIMAX_M2 = [
    Row("minimax_m2", "plain", minimax(8, 2, 24) | {"head_dim": 12}),
    Row("minimax_m2", "partial", minimax(12, 3, 17) | {"head_dim": 20} | default_rope(partial_rotary_factor=0.5), fused=True),
    Row("minimax_m2", "hub", minimax(8, 3, 20) | {"head_dim": 12, "num_attention_heads": 6} | default_rope(5e6),
        edit=partial(hub_keys, drop=("rope_theta",), **MINIMAX_HUB)),
    Row("minimax_m2", "tied", minimax(9, 4, 13) | {"head_dim": 16, "num_key_value_heads": 1, "tie_word_embeddings": True,
        "rms_norm_eps": 0.01, "num_hidden_layers": 3}),
    Row("minimax_m2", "bf16", minimax(8, 8, 16) | {"head_dim": 14, "num_key_value_heads": 4}, dtype="bfloat16", fused=True),
    Row("minimax_m2", "f16", minimax(10, 1, 24) | {"head_dim": 8} | default_rope(partial_rotary_factor=0.25), dtype="float16",
        sharded=True),
]


def gpt_oss(count: int, k: int, width: int, window: int | None = 7, head_dim: int = 12) -> dict[str, Any]:
    return {"num_local_experts": count, "num_experts_per_tok": k, "intermediate_size": width, "sliding_window": window,
            "head_dim": head_dim}  # fmt: skip


def to_mxfp4(config_or_tensors: dict[str, Any]) -> None:
    """The hub's form of the experts: transposed, 32 weights in 16 bytes and a scale. The values are random, so that nothing is
    rounded."""
    if "model_type" in config_or_tensors:
        config_or_tensors["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": [
            "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]}  # fmt: skip
        return
    tensors, generator = config_or_tensors, torch.Generator().manual_seed(7)
    for name in [n for n in tensors if n.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        count, columns, rows = tensors.pop(name).shape
        tensors[name + "_blocks"] = torch.randint(0, 256, (count, rows, columns // 32, 16), generator=generator).byte()
        tensors[name + "_scales"] = torch.randint(122, 126, (count, rows, columns // 32), generator=generator).byte()


GPT_OSS = [
    Row("gpt_oss", "plain", gpt_oss(8, 2, 24) | with_yarn(truncate=False)),
    Row("gpt_oss", "windows", gpt_oss(9, 4, 13, 3, 14) | default_rope() | {"layer_types": ["full_attention", "sliding_attention",
        "sliding_attention"], "num_hidden_layers": 3, "swiglu_limit": 1.5}, fused=True),
    Row("gpt_oss", "hub", gpt_oss(8, 3, 20, 16) | with_yarn(truncate=False, rope_theta=150000.0) | {"num_attention_heads": 6, "num_key_value_heads": 1},
        edit=partial(hub_keys, drop=("swiglu_alpha", "layer_types", "rope_theta", "rms_norm_eps", "attention_bias"), experts_per_token=3, initial_context_length=16, swiglu_limit=7.0)),
    Row("gpt_oss", "no_bias", gpt_oss(8, 8, 16, 5) | with_yarn(truncate=True) | {"attention_bias": False, "swiglu_alpha": 0.9,
        "tie_word_embeddings": True}),
    Row("gpt_oss", "bf16", gpt_oss(12, 1, 24, 1) | with_yarn(truncate=False), dtype="bfloat16", sharded=True),
    Row("gpt_oss", "f16", gpt_oss(10, 3, 17, 9) | default_rope(150000.0) | {"layer_types": ["full_attention"] * 2},
        dtype="float16"),
]
MXFP4 = Row("gpt_oss", "mxfp4", gpt_oss(5, 2, 32) | with_yarn(truncate=False) | {"hidden_size": 64}, dtype="bfloat16", edit=to_mxfp4,
            edit_tensors=to_mxfp4)


def llama4(count: int, k: int, width: int, **keys: Any) -> dict[str, Any]:
    return {"num_local_experts": count, "num_experts_per_tok": k, "intermediate_size": width, "intermediate_size_mlp": 40,
            "head_dim": 12, "attention_chunk_size": 8, "floor_scale": 4, "num_hidden_layers": 3, "no_rope_layer_interval": 3} | keys  # fmt: skip


def nest(config_or_tensors: dict[str, Any]) -> None:
    """A llama4_text checkpoint becomes the text part of one with a vision tower (model_type llama4)."""
    old = dict(config_or_tensors)
    config_or_tensors.clear()
    if "model_type" in old:
        dtype = old.pop("dtype")
        config_or_tensors.update({"model_type": "llama4", "torch_dtype": dtype, "text_config": old, "vision_config": {"hidden_size": 16}})
    else:
        config_or_tensors.update({f"language_model.{name}": tensor for name, tensor in old.items()})
        config_or_tensors.update({"vision_model.class_embedding": torch.ones(3), "multi_modal_projector.linear_1.weight": torch.ones(2, 3)})


def split_experts(tensors: Tensors) -> None:
    """Llama 4's experts one by one, as tools that quantise write them."""
    for name in [n for n in tensors if n.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        prefix, fused = name.rsplit(".", 1)
        names = ("gate_proj", "up_proj") if fused == "gate_up_proj" else ("down_proj",)
        for e, matrix in enumerate(tensors.pop(name)):
            for which, part in zip(names, matrix.T.chunk(len(names))):
                tensors[f"{prefix}.{e}.{which}.weight"] = part.contiguous()


LLAMA4_TEXT = [
    Row("llama4_text", "plain", llama4(8, 1, 24)),
    Row("llama4_text", "interleaved", llama4(9, 2, 17, interleave_moe_layer_step=2, num_hidden_layers=4, no_rope_layers=[1, 0, 0, 1],
        attention_chunk_size=5, attn_scale=0.4), fused=True),
    Row("llama4_text", "no_norm", llama4(8, 3, 20, use_qk_norm=False, attn_temperature_tuning=False, moe_layers=[1], head_dim=10,
        attention_bias=True)),
    Row("llama4_text", "hub", llama4(8, 1, 24, num_attention_heads=6, layer_types=["chunked_attention", "full_attention",
        "chunked_attention"], rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 1.0, "original_max_position_embeddings": 32}), edit=partial(hub_keys, drop=("layer_types", "rope_theta",
        "use_qk_norm", "attn_temperature_tuning", "attn_scale", "moe_layers", "interleave_moe_layer_step", "attention_bias"),
        no_rope_layers=[], for_llm_compressor=False, router_aux_loss_coef=0.001, output_router_logits=False)),
    Row("llama4_text", "bf16", llama4(8, 8, 16, rms_norm_eps=0.01, num_key_value_heads=1), dtype="bfloat16"),
    Row("llama4_text", "f16", llama4(10, 1, 24, no_rope_layers=[0, 0, 0], tie_word_embeddings=True), dtype="float16", sharded=True),
    Row("llama4_text", "vision", llama4(6, 1, 20), dtype="bfloat16", edit=nest, edit_tensors=nest),
]
# fmt: on
ROWS = DEEPSEEK_V2 + DEEPSEEK_V3 + GLM4_MOE + ERNIE4_5_MOE + MINIMAX_M2 + GPT_OSS + LLAMA4_TEXT
