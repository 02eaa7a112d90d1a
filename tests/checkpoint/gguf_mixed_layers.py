"""What llama.cpp's conversion scripts change in Qwen3-Next, Qwen3.5 and Gemma 4, whose layers are of two kinds: values, and metadata."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

HYBRID = {
    "qwen3_next": "qwen3next",
    "qwen3_5_text": "qwen35",
    "qwen3_5_moe_text": "qwen35moe",
}
GEMMA = {"gemma4_text": "gemma4"}
STILL = np.float32(1e30)  # the factor of pairs that proportional rope does not rotate


def _ordered(values: np.ndarray, before: tuple[int, int], width: int) -> np.ndarray:
    """Orders the value heads, `width` rows each: (kh, r) -> tiled, (r, kh) -> by key head."""
    return values.reshape(*before, width, *values.shape[1:]).swapaxes(0, 1).reshape(values.shape)


def _value_heads(config: dict[str, Any], name: str, values: np.ndarray, tile: bool) -> np.ndarray:
    """Returns a tensor of Qwen3.5's linear_attn with its value heads in the file's order, or with `tile` unset back in the model's."""
    keys, heads = config["linear_num_key_heads"], config["linear_num_value_heads"]
    before = (keys, heads // keys) if tile else (heads // keys, keys)
    width, first = config["linear_value_head_dim"], 2 * keys * config["linear_key_head_dim"]
    part = name.split("linear_attn.")[-1]
    if part.startswith(("in_proj_qkv.", "conv1d.")):
        return np.concatenate([values[:first], _ordered(values[first:], before, width)])
    if part.startswith("in_proj_z."):
        return _ordered(values, before, width)
    if part.startswith("out_proj."):
        return _ordered(values.T, before, width).T
    if part.startswith(("in_proj_a.", "in_proj_b.", "A_log", "dt_")):
        return _ordered(values, before, 1)
    return values


def _is_offset_norm(name: str) -> bool:
    return name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight")


def changed_hybrid(
    config: dict[str, Any], name: str, values: np.ndarray, old: bool
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields a tensor of Qwen3-Next or Qwen3.5 as it is written. old: as in Qwen3-Next's files of 2025, with qkvz in one tensor."""
    layers = config["num_hidden_layers"]
    if name.startswith("mtp."):  # the layer that predicts a further token is the last block
        own = {"mtp.fc.weight": "nextn.eh_proj.weight", "mtp.norm.weight": "nextn.shared_head_norm.weight"}
        yield f"blk.{layers}.{own.get(name, 'ffn_gate.weight')}", values
        return
    if config["model_type"] != "qwen3_next" and "linear_attn." in name:
        values = _value_heads(config, name, values, True)
    if name.endswith("A_log"):
        values = -np.exp(values)
    elif name.endswith("dt_bias"):
        name = name.replace("dt_bias", "dt_proj.bias")
    elif "conv1d" in name:
        values = values.squeeze(1)
    elif _is_offset_norm(name):
        values = values + np.float32(1)
    if name.endswith("in_proj_qkvz.weight") and not old:
        of_kind = np.split(values.reshape(config["linear_num_key_heads"], -1, values.shape[1]), _qkvz(config), 1)
        rows = [part.reshape(-1, values.shape[1]) for part in of_kind]
        yield name.replace("qkvz", "qkv"), np.concatenate(rows[:3])
        yield name.replace("qkvz", "z"), rows[3]
    elif name.endswith("experts.gate_up_proj"):
        half = values.shape[1] // 2
        yield name.replace("gate_up_proj", "gate_proj.weight"), values[:, :half]
        yield name.replace("gate_up_proj", "up_proj.weight"), values[:, half:]
    elif name.endswith("experts.down_proj"):
        yield f"{name}.weight", values
    else:
        yield name, values


def _qkvz(config: dict[str, Any]) -> list[int]:
    """Returns where k, v and z of a key head begin in Qwen3-Next's in_proj_qkvz."""
    keys, dk = config["linear_num_key_heads"], config["linear_key_head_dim"]
    of_values = config["linear_num_value_heads"] // keys * config["linear_value_head_dim"]
    return [dk, 2 * dk, 2 * dk + of_values]


def restored_hybrid(config: dict[str, Any], name: str, values: np.ndarray) -> np.ndarray:
    """Returns a tensor of Qwen3.5 as it was before changed_hybrid()."""
    if _is_offset_norm(name):
        return values - np.float32(1)
    if name.endswith("A_log"):
        values = np.log(-values.astype(np.float64)).astype(np.float32)
    return _value_heads(config, name, values, False) if "linear_attn." in name else values


def changed_name(config: dict[str, Any], name: str) -> str:
    """Returns the name under which a tensor that stays one is written, for the package's table or the file."""
    if config["model_type"] in GEMMA:
        return changed_gemma(name, np.zeros(0))[0]
    return name.replace("dt_bias", "dt_proj.bias")


def hybrid_keys(config: dict[str, Any], rope: dict[str, Any], mtp: bool) -> dict[str, Any]:
    layers, dense = config["num_hidden_layers"], config["model_type"] == "qwen3_5_text"
    keys: dict[str, Any] = {
        "block_count": layers + mtp,
        "rope.dimension_count": int(
            config["head_dim"] * rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 0.25))
        ),
        "ssm.conv_kernel": config["linear_conv_kernel_dim"],
        "ssm.state_size": config["linear_key_head_dim"],
        "ssm.group_count": config["linear_num_key_heads"],
        "ssm.time_step_rank": config["linear_num_value_heads"],
        "ssm.inner_size": config["linear_value_head_dim"] * config["linear_num_value_heads"],
        "full_attention_interval": config.get("full_attention_interval", 4),
    }
    if types := config.get("layer_types"):
        keys["attention.recurrent_layers"] = [kind == "linear_attention" for kind in types] + [False] * mtp
    if config["model_type"] != "qwen3_next":
        keys["rope.dimension_sections"] = [*rope.get("mrope_section", [11, 11, 10]), 0][:4]
    if mtp:
        keys["nextn_predict_layers"] = 1
    if not dense:
        keys |= {
            "expert_feed_forward_length": config["moe_intermediate_size"],
            "expert_shared_feed_forward_length": config["shared_expert_intermediate_size"],
        }
    return keys


def changed_gemma(name: str, values: np.ndarray) -> tuple[str, np.ndarray]:
    if name.endswith("router.scale"):
        return f"blk.{name.split('.')[2]}.ffn_gate_inp.scale", values
    if name.endswith("router.per_expert_scale"):
        return f"blk.{name.split('.')[2]}.ffn_down_exps.scale", values
    whole = name.endswith(("layer_scalar", "experts.gate_up_proj", "experts.down_proj"))
    return (f"{name}.weight" if whole else name), values


def _full_layers(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the keys of the heads of full layers."""
    overrides = config.get("per_layer_config") or {}
    full = [overrides[k] for k in overrides if config["layer_types"][int(k)] == "full_attention"]
    return {
        "head_dim": config.get("global_head_dim") or next(one["head_dim"] for one in full if "head_dim" in one),
        "kv_heads": next((one["num_key_value_heads"] for one in full if "num_key_value_heads" in one), None),
    }


def gemma_keys(config: dict[str, Any]) -> dict[str, Any]:
    sliding = [kind == "sliding_attention" for kind in config["layer_types"]]
    full, ropes, kv_heads = _full_layers(config), config["rope_parameters"], config["num_key_value_heads"]
    windowed = config["head_dim"]
    keys: dict[str, Any] = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": kv_heads,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "attention.key_length": full["head_dim"],
        "attention.value_length": full["head_dim"],
        "attention.key_length_swa": windowed,
        "attention.value_length_swa": windowed,
        "attention.sliding_window": config["sliding_window"],
        "attention.sliding_window_pattern": sliding,
        "attention.shared_kv_layers": 0,
        "embedding_length_per_layer_input": 0,
        "rope.freq_base": float(ropes["full_attention"]["rope_theta"]),
        "rope.freq_base_swa": float(ropes["sliding_attention"]["rope_theta"]),
        "rope.dimension_count": full["head_dim"],
        "rope.dimension_count_swa": windowed,
    }
    if full["kv_heads"] is not None:
        keys["attention.head_count_kv"] = [kv_heads if windowed else full["kv_heads"] for windowed in sliding]
    if config.get("final_logit_softcapping"):
        keys["final_logit_softcapping"] = float(config["final_logit_softcapping"])
    if config.get("enable_moe_block"):
        keys |= {
            "expert_count": config["num_experts"],
            "expert_used_count": config["top_k_experts"],
            "expert_feed_forward_length": config["moe_intermediate_size"],
        }
    return keys


def gemma_rope(config: dict[str, Any]) -> np.ndarray:
    """Returns the factors by which full layers divide the frequencies of their pairs."""
    pairs = _full_layers(config)["head_dim"] // 2
    part = config["rope_parameters"]["full_attention"].get("partial_rotary_factor", 0.25)
    rotated = int(2 * pairs * part / 2)
    return np.array([1] * rotated + [STILL] * (pairs - rotated), np.float32)
