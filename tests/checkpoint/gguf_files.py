"""Converts tiny Hugging Face checkpoints to GGUF as llama.cpp's conversion scripts do (which keys, which names, which values change).

Names come from the tables of the `gguf` package, so that they are not our own idea of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import gguf_mixed_layers as mixed
import numpy as np
from gguf import GGMLQuantizationType as Type
from safetensors.torch import load_file

Tensors = dict[str, np.ndarray]
ARCHITECTURES = {
    "llama": "llama",
    "mixtral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "olmoe": "olmoe",
    "phimoe": "phimoe",
    "gpt_oss": "gpt-oss",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "glm4_moe": "glm4moe",
    **mixed.HYBRID,
    **mixed.GEMMA,
}


def read(folder: Path) -> tuple[dict[str, Any], Tensors]:
    """Returns the config and the tensors, as float32, of a checkpoint."""
    tensors: Tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= {name: t.float().numpy() for name, t in load_file(file).items()}
    return json.loads((folder / "config.json").read_text()), tensors


def permuted(weights: np.ndarray, heads: int) -> np.ndarray:
    """Orders the rows of q or k so that columns (2 i, 2 i + 1) of a head rotate together: llama.cpp does so for `llama`."""
    rows = weights.shape[0]
    return weights.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(weights.shape)


def restored(weights: np.ndarray, heads: int) -> np.ndarray:
    rows = weights.shape[0]
    return weights.reshape(heads, rows // heads // 2, 2, -1).swapaxes(1, 2).reshape(weights.shape)


def changed(
    config: dict[str, Any], tensors: Tensors, one_each: bool = False, old_qkvz: bool = False
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the tensors as they are written, under names that the package's table knows, or under the file's.

    one_each: a tensor for each expert, as Mixtral's first files have.  old_qkvz: as in Qwen3-Next's first files.
    """
    kind, heads = config["model_type"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    stacks: dict[str, dict[int, np.ndarray]] = {}
    for name, values in tensors.items():
        if ".experts." in name and name.split(".experts.")[1][0].isdigit() and "mtp." not in name and not one_each:
            before, after = name.split(".experts.")
            expert, rest = after.split(".", 1)
            stacks.setdefault(f"{before}.experts.{rest}", {})[int(expert)] = values
        elif kind in mixed.HYBRID:
            yield from mixed.changed_hybrid(config, name, values, old_qkvz)
        elif kind in mixed.GEMMA:
            yield mixed.changed_gemma(name, values)
        elif kind in ("llama", "mixtral") and ".q_proj." in name:
            yield name, permuted(values, heads)
        elif kind in ("llama", "mixtral") and ".k_proj." in name:
            yield name, permuted(values, kv_heads)
        elif name.endswith("kv_b_proj.weight"):
            nope, v = config["qk_nope_head_dim"], config["v_head_dim"]
            parts = values.reshape(heads, nope + v, -1)
            yield name.replace("kv_b_proj", "k_b_proj"), parts[:, :nope].swapaxes(1, 2)
            yield name.replace("kv_b_proj", "v_b_proj"), parts[:, nope:]
        elif name.endswith("sinks"):
            yield f"{name}.weight", values
        elif kind == "gpt_oss" and name.endswith("gate_up_proj"):
            rows = values.swapaxes(1, 2)
            yield name.replace("gate_up_proj", "gate_proj.weight"), rows[:, ::2]
            yield name.replace("gate_up_proj", "up_proj.weight"), rows[:, 1::2]
        elif kind == "gpt_oss" and name.endswith("gate_up_proj_bias"):
            yield name.replace("gate_up_proj_bias", "gate_proj.bias"), values[:, ::2]
            yield name.replace("gate_up_proj_bias", "up_proj.bias"), values[:, 1::2]
        elif kind == "gpt_oss" and name.endswith("down_proj"):
            yield f"{name}.weight", values.swapaxes(1, 2)
        elif kind == "gpt_oss" and name.endswith("down_proj_bias"):
            yield name.replace("_bias", ".bias"), values
        else:
            yield name, values
    for name, experts in stacks.items():
        yield name, np.stack([experts[i] for i in range(len(experts))])


def gguf_name(table: gguf.TensorNameMap, name: str) -> str:
    if name.startswith("blk."):
        return name
    # The converter renames Mixtral's stacks to a name that the table has.
    for own, known in (("w1", "w1"), ("w2", "w2"), ("w3", "w3")):
        if name.endswith(f"block_sparse_moe.experts.{own}.weight"):
            name = f"layers.{name.split('.')[2]}.feed_forward.experts.{known}.weight"
    name = name.replace("e_score_correction_bias", "e_score_correction.bias")
    found = table.get_name(name, try_suffixes=(".weight", ".bias"))
    assert found, name
    return found


def number_keys(config: dict[str, Any], mtp: bool = False) -> dict[str, Any]:
    """Returns the metadata under the architecture's name. mtp: the file has a layer that predicts a further token."""
    c = dict(config)
    kind = c["model_type"]
    if kind in mixed.GEMMA:
        return mixed.gemma_keys(c)
    rope = c.get("rope_parameters") or (c.get("rope_scaling") or {}) | {"rope_theta": c.get("rope_theta", 1e4)}
    head = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    count = c.get("num_experts") or c.get("num_local_experts") or c.get("n_routed_experts") or 0
    keys: dict[str, Any] = {
        "context_length": c["max_position_embeddings"],
        "embedding_length": c["hidden_size"],
        "block_count": c["num_hidden_layers"],
        "feed_forward_length": c.get("intermediate_size", 0),
        "attention.head_count": c["num_attention_heads"],
        "attention.head_count_kv": c["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": float(c["rms_norm_eps"]),
        "rope.freq_base": float(rope["rope_theta"]),
        "attention.key_length": head,
        "attention.value_length": head,
        "rope.dimension_count": head,
        "vocab_size": c["vocab_size"],
    }
    if count:
        keys |= {"expert_count": count, "expert_used_count": c["num_experts_per_tok"]}
    if kind in ("qwen2_moe", "qwen3_moe", "glm4_moe", "deepseek_v2", "deepseek_v3"):
        keys["expert_feed_forward_length"] = c["moe_intermediate_size"]
    if kind == "qwen2_moe":
        keys["expert_shared_feed_forward_length"] = c["shared_expert_intermediate_size"]
    if kind == "gpt_oss":
        keys |= {"expert_feed_forward_length": c["intermediate_size"], "attention.sliding_window": c["sliding_window"]}
    if kind == "olmoe" and c.get("clip_qkv"):
        keys["attention.clamp_kqv"] = float(c["clip_qkv"])
    if kind in ("glm4_moe", "deepseek_v2", "deepseek_v3"):
        keys |= {
            "expert_shared_count": c["n_shared_experts"],
            "leading_dense_block_count": c["first_k_dense_replace"],
            "expert_weights_scale": float(c["routed_scaling_factor"]),
            "expert_weights_norm": bool(c.get("norm_topk_prob")),
            "expert_gating_func": 1 if kind == "deepseek_v2" else 2,
        }
        if c.get("n_group", 1) and c.get("n_group", 1) > 1:
            keys |= {"expert_group_count": c["n_group"], "expert_group_used_count": c["topk_group"]}
    if kind == "glm4_moe":
        keys["rope.dimension_count"] = int(
            head * rope.get("partial_rotary_factor", c.get("partial_rotary_factor", 0.5))
        )
    if kind.startswith("deepseek"):
        rotated = c["qk_rope_head_dim"]
        keys |= {
            "attention.head_count_kv": 1,
            "attention.kv_lora_rank": c["kv_lora_rank"],
            "attention.key_length": c["kv_lora_rank"] + rotated,
            "attention.value_length": c["kv_lora_rank"],
            "attention.key_length_mla": c["qk_nope_head_dim"] + rotated,
            "attention.value_length_mla": c["v_head_dim"],
            "rope.dimension_count": rotated,
        }
        if c.get("q_lora_rank"):
            keys["attention.q_lora_rank"] = c["q_lora_rank"]
    if kind in mixed.HYBRID:
        keys |= mixed.hybrid_keys(c, rope, mtp)
    kind_of_rope = rope.get("rope_type", "default")
    if kind_of_rope in ("linear", "yarn"):
        keys |= {"rope.scaling.type": kind_of_rope, "rope.scaling.factor": float(rope["factor"])}
    if kind_of_rope == "yarn":
        keys["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
        for name in ("beta_fast", "beta_slow"):
            if name in rope:
                keys[f"rope.scaling.yarn_{name}"] = float(rope[name])
        if rope.get("mscale_all_dim"):
            keys["rope.scaling.yarn_log_multiplier"] = 0.1 * rope["mscale_all_dim"]
    if kind_of_rope == "longrope":
        keys["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
        keys["rope.scaling.attn_factor"] = float(rope["short_mscale"])
    return keys


def rope_tensors(config: dict[str, Any]) -> Tensors:
    """Returns the factors by which rope frequencies are divided."""
    rope = config.get("rope_parameters") or {}
    if config["model_type"] in mixed.GEMMA:
        return {"rope_freqs.weight": mixed.gemma_rope(config)}
    if rope.get("rope_type") == "longrope":
        return {f"rope_factors_{side}.weight": np.float32(rope[f"{side}_factor"]) for side in ("long", "short")}
    if rope.get("rope_type") != "llama3":
        return {}
    head, original = config["head_dim"], rope["original_max_position_embeddings"]
    low, high = original / rope["low_freq_factor"], original / rope["high_freq_factor"]
    factors = []
    for frequency in 1.0 / rope["rope_theta"] ** (np.arange(0, head, 2) / head):
        wave = 2 * np.pi / frequency
        smooth = (original / wave - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
        between = 1 / ((1 - smooth) / rope["factor"] + smooth)
        factors.append(1.0 if wave < high else rope["factor"] if wave > low else between)
    return {"rope_freqs.weight": np.float32(factors)}


def random_blocks(kind: Type, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Returns random blocks [..., bytes of a row] whose values are about 0.1: scales are small, the rest is any bytes."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    assert shape[-1] % values == 0, (kind, shape)
    blocks = rng.integers(0, 256, (*shape[:-1], shape[-1] // values, size), dtype=np.uint8)

    def set_half(at: int, scale: float) -> None:
        d = (scale * rng.uniform(0.5, 1, blocks.shape[:-1])).astype("<f2")
        blocks[..., at : at + 2] = d[..., None].view(np.uint8)

    match kind:
        case Type.Q8_0:
            set_half(0, 2e-3)
        case Type.Q4_0:
            set_half(0, 3e-2)
        case Type.IQ4_NL:
            set_half(0, 2e-3)
        case Type.IQ4_XS:
            set_half(0, 1e-4)
        case Type.Q4_K | Type.Q5_K:
            set_half(0, 5e-4 if kind == Type.Q4_K else 2.5e-4)
            set_half(2, 4e-3)
        case Type.Q6_K:
            set_half(208, 1e-4)
        case Type.MXFP4:
            blocks[..., 0] = rng.integers(121, 125, blocks.shape[:-1])
        case _:
            raise AssertionError(kind)
    return blocks.reshape(*shape[:-1], -1)


def is_small(name: str, values: np.ndarray) -> bool:
    """Returns whether the converter keeps the tensor in F32: vectors, routers and convolutions."""
    return values.ndim == 1 or "ffn_gate_inp" in name or "ssm_conv1d" in name or name.endswith(".bias")


def convert(
    folder: Path,
    out: Path,
    kind: Type | Callable[[str], Type] = Type.F32,
    *,
    metadata: dict[str, Any] | None = None,
    tokenizer: Callable[[gguf.GGUFWriter], None] | None = None,
    one_each: bool = False,
    old_latent: bool = False,
    old_qkvz: bool = False,
    seed: int | None = None,
    parts: int = 0,
    quantize: Callable[[np.ndarray, Type], np.ndarray] = gguf.quants.quantize,
) -> Tensors:
    """Writes the checkpoint as GGUF; returns its tensors under the file's names, with the values that the file has.

    kind: type of the matrices, for all or by name; vectors and routers stay F32.  metadata: further keys, or None to leave one out.
    seed: random blocks instead of quantised values, for types that the package does not quantise.  parts: tensors of a split file.
    quantize: float32 [..., K] -> the bytes of blocks.
    """
    config, tensors = read(folder)
    architecture = ARCHITECTURES[config["model_type"]]
    writer = gguf.GGUFWriter(out, architecture, split_max_tensors=parts)
    keys = {
        f"{architecture}.{key}": value
        for key, value in number_keys(config, any(n.startswith("mtp.") for n in tensors)).items()
    }
    for key, value in (keys | (metadata or {})).items():
        if value is not None:
            add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
            add.get(type(value), writer.add_array)(key, value)
    if tokenizer:
        tokenizer(writer)
    table = gguf.get_tensor_name_map(
        next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture),
        config["num_hidden_layers"] + 1,
    )
    rng = np.random.default_rng(seed)
    stored: Tensors = {}
    if old_latent:
        named = {gguf_name(table, n): v for n, v in tensors.items() if n.endswith("kv_b_proj.weight")}
        tensors = {n: v for n, v in tensors.items() if not n.endswith("kv_b_proj.weight")}
    else:
        named = {}
    for name, values in changed(config, tensors, one_each, old_qkvz):
        if one_each and ".experts." in name:
            layer, expert, own = name.split(".")[2], name.split(".")[5], name.split(".")[6]
            part = {"w1": "gate", "w2": "down", "w3": "up"}[own]
            named[f"blk.{layer}.ffn_{part}.{expert}.weight"] = values
        else:
            named[gguf_name(table, name)] = values
    for name, values in (named | rope_tensors(config)).items():
        of = Type.F32 if is_small(name, values) else kind(name) if callable(kind) else kind
        if seed is not None and of not in (Type.F32, Type.F16, Type.BF16):
            blocks = random_blocks(of, values.shape, rng)
        else:
            blocks = quantize(np.ascontiguousarray(values, np.float32), of)
        writer.add_tensor(name, blocks, raw_dtype=None if of in (Type.F32, Type.F16) else of)
        stored[name] = gguf.quants.dequantize(blocks, of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def originals(folder: Path, stored: Tensors) -> Tensors:
    """Returns the checkpoint's tensors with the values that the file has: what convert() returned, with its changes undone.

    For families whose tensors the converter stacks, permutes or leaves alone, and Qwen3.5.
    """
    config, tensors = read(folder)
    architecture = ARCHITECTURES[config["model_type"]]
    key = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(key, config["num_hidden_layers"] + 1)
    out = {}
    for name, values in tensors.items():
        if ".experts." in name and name.split(".experts.")[1][0].isdigit():
            before, after = name.split(".experts.")
            expert, rest = after.split(".", 1)
            found = stored[gguf_name(table, f"{before}.experts.{rest}")][int(expert)]
        else:
            found = stored[gguf_name(table, mixed.changed_name(config, name))]
        if config["model_type"] in mixed.HYBRID:
            found = mixed.restored_hybrid(config, name, found)
        if architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
            query = ".q_proj." in name
            found = restored(found, config["num_attention_heads" if query else "num_key_value_heads"])
        out[name] = found.reshape(values.shape)
    return out
