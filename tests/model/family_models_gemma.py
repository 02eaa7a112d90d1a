"""Checkpoints of Gemma 4: two kinds of layers with heads, ropes and windows of their own, norms on both sides of every block, a dense MLP
beside the experts."""

from __future__ import annotations

from typing import Any

import torch
from family_parity import Row

FULL, SLIDING = "full_attention", "sliding_attention"


def gemma4(experts: int = 8, k: int = 2, width: int = 24, **keys: Any) -> dict[str, Any]:
    """A model of three layers; no experts where `experts` is 0."""
    moe = {"num_experts": experts, "top_k_experts": k, "moe_intermediate_size": width, "enable_moe_block": True}
    return {"hidden_size_per_layer_input": 0, "head_dim": 12, "global_head_dim": 20, "sliding_window": 7, "num_hidden_layers": 3,
            "layer_types": [SLIDING, FULL, FULL]} | (moe if experts else {}) | keys  # fmt: skip


def ropes(sliding: dict[str, Any], full: dict[str, Any]) -> dict[str, Any]:
    return {"rope_parameters": {SLIDING: sliding, FULL: full}}


def hub(config: dict[str, Any]) -> None:
    """Heads of the full layers as the hub has them, and what is left to defaults."""
    full = next(iter(config.pop("per_layer_config").values()))
    config["global_head_dim"] = full["head_dim"]
    config["num_global_key_value_heads"] = full.get("num_key_value_heads")
    for key in (
        "layer_types",
        "rope_parameters",
        "rms_norm_eps",
        "final_logit_softcapping",
        "tie_word_embeddings",
        "attention_bias",
    ):
        config.pop(key)


def nest(config_or_tensors: dict[str, Any]) -> None:
    """A gemma4_text checkpoint becomes the text part of one with a vision tower (model_type gemma4)."""
    old = dict(config_or_tensors)
    config_or_tensors.clear()
    if "model_type" in old:
        vision = {"model_type": "gemma4_vision", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "head_dim": 8,
                  "num_attention_heads": 1, "num_key_value_heads": 1, "position_embedding_size": 16}  # fmt: skip
        config_or_tensors.update({"model_type": "gemma4", "dtype": old["dtype"], "text_config": old, "vision_config": vision,
                                  "audio_config": None, "tie_word_embeddings": True})  # fmt: skip
    else:
        config_or_tensors.update({name.replace("model.", "model.language_model.", 1): t for name, t in old.items()})
        config_or_tensors["model.vision_tower.patch_embedder.input_proj.weight"] = torch.ones(8, 768)
        config_or_tensors["model.embed_vision.embedding_projection.weight"] = torch.ones(48, 8)


# fmt: off
GEMMA4 = [
    Row("gemma4_text", "plain", gemma4()),
    Row("gemma4_text", "k_eq_v", gemma4(9, 3, 17, attention_k_eq_v=True, num_global_key_value_heads=1, num_key_value_heads=4,
        final_logit_softcapping=6.0, attention_bias=True, global_head_dim=26), sharded=True),
    Row("gemma4_text", "dense", gemma4(0, attention_k_eq_v=True, final_logit_softcapping=3.0, sliding_window=1,
        use_bidirectional_attention="vision", intermediate_size=33)),
    Row("gemma4_text", "hub", gemma4(12, 4, 20, num_hidden_layers=7, layer_types=None, attention_k_eq_v=True, sliding_window=9,
        num_global_key_value_heads=2, num_attention_heads=6, num_key_value_heads=3), dtype="bfloat16", edit=hub),
    Row("gemma4_text", "silu", gemma4(8, 8, 16, hidden_activation="silu", layer_types=[FULL] * 3, rms_norm_eps=0.01,
        tie_word_embeddings=False, **ropes({"rope_type": "default", "rope_theta": 1e4},
        {"rope_type": "proportional", "rope_theta": 1e5, "partial_rotary_factor": 0.63, "factor": 2.0}))),
    Row("gemma4_text", "f16", gemma4(10, 1, 24, num_key_value_heads=1, sliding_window=16, global_head_dim=8, head_dim=18,
        layer_types=[SLIDING, SLIDING, FULL], **ropes({"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
        {"rope_type": "default", "rope_theta": 1e6})), dtype="float16"),
    # num_global_key_value_heads has no effect where keys are not values.
    Row("gemma4_text", "kv_heads", gemma4(7, 2, 9, num_global_key_value_heads=1, final_logit_softcapping=30.0, head_dim=16,
        global_head_dim=16, hidden_size=40, sliding_window=3)),
    Row("gemma4_text", "vision", gemma4(6, 2, 20, attention_k_eq_v=True, pad_token_id=0, num_global_key_value_heads=1, final_logit_softcapping=9.0),
        dtype="bfloat16", edit=nest, edit_tensors=nest),
]
# fmt: on
ROWS = GEMMA4
