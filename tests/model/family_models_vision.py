"""Checkpoints of Qwen3-VL, with experts and without, whose text models are run."""

from __future__ import annotations

from typing import Any

import torch
from family_models_hybrid import VISION
from family_parity import Row, legacy_keys

TOWER = VISION | {"deepstack_visual_indexes": [0]}


def moe(experts: int, k: int, width: int, **keys: Any) -> dict[str, Any]:
    return {
        "num_experts": experts,
        "num_experts_per_tok": k,
        "moe_intermediate_size": width,
        "mlp_only_layers": [],
    } | keys


def mrope(theta: float, section: list[int], **keys: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": theta, "mrope_section": section, "mrope_interleaved": True}
    return {"rope_parameters": rope | keys}


def hub(config: dict[str, Any]) -> None:
    """The keys of the hub: num_experts, rope_theta and rope_scaling, and tie_word_embeddings beside the text part alone."""
    text = config["text_config"]
    text.setdefault("dtype", config["dtype"])
    legacy_keys(text, {"num_local_experts": "num_experts"})
    text["rope_scaling"] = {"rope_type": "default", "mrope_section": [2, 2, 2], "mrope_interleaved": True}
    text["norm_topk_prob"] = True
    config.pop("tie_word_embeddings")
    config["vision_config"]["model_type"] = config["model_type"]


def transpose(tensors: dict[str, torch.Tensor]) -> None:
    """Experts as the hub has them: [E, H, 2I] and [E, I, H]."""
    for name, tensor in tensors.items():
        if ".experts." in name:
            tensors[name] = tensor.transpose(1, 2).contiguous()


def drop(*keys: str):
    def edit(config: dict[str, Any]) -> None:
        for key in keys:
            config["text_config"].pop(key)

    return edit


# fmt: off
MOE = [
    Row("qwen3_vl_moe", "plain", moe(8, 2, 17) | mrope(1e4, [2, 2, 2]), vision=TOWER),
    Row("qwen3_vl_moe", "hub", moe(10, 3, 20, head_dim=12) | mrope(5e6, [2, 2, 2]), vision=TOWER, dtype="bfloat16", edit=hub,
        edit_tensors=transpose),
    Row("qwen3_vl_moe", "dense_layers", moe(9, 4, 13, num_hidden_layers=4, mlp_only_layers=[3], decoder_sparse_step=2, attention_bias=True)
        | mrope(1e4, [3, 2, 1]), vision=TOWER, sharded=True),
    # 2 I = H: the shape says nothing, and the tensors are not transposed.
    Row("qwen3_vl_moe", "square", moe(7, 7, 24, num_key_value_heads=1, head_dim=16) | mrope(1e6, [4, 2, 2]), vision=TOWER),
    Row("qwen3_vl_moe", "defaults", moe(6, 4, 11) | mrope(5e5, [2, 2, 2]), vision=TOWER,
        edit=drop("rope_parameters", "rms_norm_eps", "num_experts_per_tok", "attention_bias")),
    Row("qwen3_vl_moe", "float16", moe(5, 1, 33, num_key_value_heads=4, rms_norm_eps=0.01, head_dim=10) | mrope(1e4, [2, 2, 1]),
        vision=TOWER, dtype="float16"),
]
DENSE = [
    Row("qwen3_vl", "plain", {"head_dim": 12} | mrope(1e4, [2, 2, 2]), vision=TOWER),
    Row("qwen3_vl", "hub", {"head_dim": 12, "intermediate_size": 33} | mrope(5e6, [2, 2, 2]), vision=TOWER, dtype="bfloat16", edit=hub),
    Row("qwen3_vl", "bias", {"head_dim": 16, "attention_bias": True, "num_hidden_layers": 3} | mrope(1e4, [4, 3, 1]), vision=TOWER, sharded=True),
    Row("qwen3_vl", "one_head", {"head_dim": 10, "num_key_value_heads": 1} | mrope(1e6, [3, 1, 1]), vision=TOWER),
    Row("qwen3_vl", "defaults", {"head_dim": 12} | mrope(5e5, [2, 2, 2]), vision=TOWER,
        edit=drop("rope_parameters", "rms_norm_eps", "attention_bias")),
    Row("qwen3_vl", "float16", {"head_dim": 18, "num_key_value_heads": 4, "rms_norm_eps": 0.01} | mrope(1e4, [3, 3, 3]), vision=TOWER,
        dtype="float16"),
]
# fmt: on
ROWS = MOE + DENSE
