"""Write a checkpoint of random weights with the shapes and the quantised format of a published one (for speed and memory, not quality).
usage: make_random_quantized.py MODEL OUT [--layers N]
models: gpt-oss-20b (MXFP4, 24 layers, 13.8 GB), qwen3-30b-a3b-awq (int4 with zero points, 48 layers, 16.9 GB),
qwen3-30b-a3b-fp8 (e4m3, a scale for 128 x 128, 48 layers, 31 GB)"""

import argparse
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Tensors = dict[str, tuple[str, tuple[int, ...]]]  # dtype and shape
SIZES = {"BF16": 2, "F16": 2, "I32": 4, "U8": 1, "F8_E4M3": 1, "F32": 4}


class Model(NamedTuple):
    config: Callable[[int], dict[str, Any]]  # of so many layers
    layer: Callable[[int], Tensors]
    outer: Tensors
    layers: int


def embeddings(dtype: str, vocab: int, hidden: int) -> Tensors:
    return {
        "model.embed_tokens.weight": (dtype, (vocab, hidden)),
        "model.norm.weight": (dtype, (hidden,)),
        "lm_head.weight": (dtype, (vocab, hidden)),
    }


def gpt_oss_config(layers: int) -> dict[str, Any]:
    yarn = dict(
        rope_type="yarn",
        factor=32.0,
        beta_fast=32.0,
        beta_slow=1.0,
        truncate=False,
        original_max_position_embeddings=4096,
    )
    plain = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    return dict(
        architectures=["GptOssForCausalLM"],
        model_type="gpt_oss",
        hidden_size=2880,
        intermediate_size=2880,
        num_hidden_layers=layers,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=64,
        num_local_experts=32,
        num_experts_per_tok=4,
        vocab_size=201088,
        layer_types=["sliding_attention" if i % 2 == 0 else "full_attention" for i in range(layers)],
        sliding_window=128,
        max_position_embeddings=131072,
        rope_theta=150000,
        rope_scaling=yarn,
        attention_bias=True,
        hidden_act="silu",
        swiglu_limit=7.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        torch_dtype="bfloat16",
        eos_token_id=2,
        quantization_config=dict(quant_method="mxfp4", modules_to_not_convert=plain),
    )


def gpt_oss_layer(i: int) -> Tensors:
    q, hidden, experts = f"model.layers.{i}.", 2880, 32
    tensors: Tensors = {q + f"{n}_layernorm.weight": ("BF16", (hidden,)) for n in ("input", "post_attention")}
    tensors[q + "self_attn.sinks"] = ("BF16", (64,))
    for name, rows, columns in (("q", 4096, hidden), ("k", 512, hidden), ("v", 512, hidden), ("o", hidden, 4096)):
        tensors[q + f"self_attn.{name}_proj.weight"] = ("BF16", (rows, columns))
        tensors[q + f"self_attn.{name}_proj.bias"] = ("BF16", (rows,))
    tensors[q + "mlp.router.weight"] = ("BF16", (experts, hidden))
    tensors[q + "mlp.router.bias"] = ("BF16", (experts,))
    for name, rows in (("gate_up_proj", 2 * 2880), ("down_proj", hidden)):
        tensors[q + f"mlp.experts.{name}_blocks"] = ("U8", (experts, rows, 2880 // 32, 16))
        tensors[q + f"mlp.experts.{name}_scales"] = ("U8", (experts, rows, 2880 // 32))
        tensors[q + f"mlp.experts.{name}_bias"] = ("BF16", (experts, rows))
    return tensors


def qwen_config(dtype: str, quantization: dict[str, Any]) -> Callable[[int], dict[str, Any]]:
    return lambda layers: dict(
        architectures=["Qwen3MoeForCausalLM"],
        model_type="qwen3_moe",
        hidden_size=2048,
        intermediate_size=6144,
        moe_intermediate_size=768,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        vocab_size=151936,
        hidden_act="silu",
        max_position_embeddings=40960,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        attention_bias=False,
        tie_word_embeddings=False,
        torch_dtype=dtype,
        eos_token_id=2,
        quantization_config=quantization,
    )


def awq(name: str, rows: int, columns: int) -> Tensors:
    return {
        name + ".qweight": ("I32", (columns, rows // 8)),
        name + ".qzeros": ("I32", (columns // 128, rows // 8)),
        name + ".scales": ("F16", (columns // 128, rows)),
    }


def fp8(name: str, rows: int, columns: int) -> Tensors:
    return {
        name + ".weight": ("F8_E4M3", (rows, columns)),
        name + ".weight_scale_inv": ("BF16", (-(-rows // 128), -(-columns // 128))),
    }


def qwen_layer(plain: str, linear: Callable[[str, int, int], Tensors]) -> Callable[[int], Tensors]:
    def tensors_of(i: int) -> Tensors:
        q = f"model.layers.{i}."
        tensors: Tensors = {q + f"{n}_layernorm.weight": (plain, (2048,)) for n in ("input", "post_attention")}
        tensors |= {q + f"self_attn.{n}_norm.weight": (plain, (128,)) for n in "qk"}
        for name, rows, columns in (("q", 4096, 2048), ("k", 512, 2048), ("v", 512, 2048), ("o", 2048, 4096)):
            tensors |= linear(q + f"self_attn.{name}_proj", rows, columns)
        tensors[q + "mlp.gate.weight"] = (plain, (128, 2048))
        for e in range(128):
            for name, rows, columns in (("gate", 768, 2048), ("up", 768, 2048), ("down", 2048, 768)):
                tensors |= linear(q + f"mlp.experts.{e}.{name}_proj", rows, columns)
        return tensors

    return tensors_of


AWQ = dict(bits=4, group_size=128, quant_method="awq", version="gemm", zero_point=True, modules_to_not_convert=["gate"])
FP8 = dict(
    activation_scheme="dynamic",
    fmt="e4m3",
    quant_method="fp8",
    weight_block_size=[128, 128],
    modules_to_not_convert=["lm_head", "gate"],
)
MODELS = {
    "gpt-oss-20b": Model(gpt_oss_config, gpt_oss_layer, embeddings("BF16", 201088, 2880), 24),
    "qwen3-30b-a3b-awq": Model(
        qwen_config("float16", AWQ), qwen_layer("F16", awq), embeddings("F16", 151936, 2048), 48
    ),
    "qwen3-30b-a3b-fp8": Model(
        qwen_config("bfloat16", FP8), qwen_layer("BF16", fp8), embeddings("BF16", 151936, 2048), 48
    ),
}


def values(name: str, dtype: str, shape: tuple[int, ...], normal: np.ndarray, rng: np.random.Generator) -> bytes:
    """The bytes of a tensor. `normal` are float32 values of which 16-bit tensors are made, again and again."""
    count = math.prod(shape)
    if name.endswith("_scales"):  # exponents, so that weights have about the spread 1 / sqrt(columns)
        return rng.integers(119, 121, count, dtype=np.uint8).tobytes()
    if dtype == "F8_E4M3":  # up to 15, and no code is NaN
        return (rng.integers(0, 256, count, dtype=np.uint8) & 0xDF).tobytes()
    if dtype in ("U8", "I32"):
        return rng.bytes(count * SIZES[dtype])
    if name.endswith("norm.weight"):
        chosen = np.ones(count, np.float32)
    elif name.endswith((".scales", "_scale_inv")):
        chosen = np.full(count, 0.004, np.float32)
    else:
        spread = shape[-1] ** -0.5 if len(shape) == 2 and not name.endswith("bias") else 0.02
        chosen = np.resize(np.roll(normal, int(rng.integers(normal.size))), count) * np.float32(spread)
    return (
        chosen.astype(np.float16).tobytes()
        if dtype == "F16"
        else (chosen.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    )


def write(path: Path, tensors: Tensors, normal: np.ndarray, rng: np.random.Generator) -> int:
    header, at = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * SIZES[dtype]
        header[name] = dict(dtype=dtype, shape=list(shape), data_offsets=[at, at + size])
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (dtype, shape) in tensors.items():
            file.write(values(name, dtype, shape, normal, rng))
    return at


def files(model: Model, layers: int) -> Iterator[Tensors]:
    for i in range(layers):
        yield model.layer(i)
    yield model.outer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, help="default: all of the model's")
    arguments = parser.parse_args()
    model, out = MODELS[arguments.model], arguments.out
    layers = arguments.layers or model.layers
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(model.config(layers), indent=1))
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(1 << 22).astype(np.float32)
    places: dict[str, str] = {}
    total = 0
    for i, tensors in enumerate(files(model, layers)):
        name = f"model-{i + 1:05d}-of-{layers + 1:05d}.safetensors"
        total += write(out / name, tensors, normal, rng)
        places |= dict.fromkeys(tensors, name)
    index = dict(metadata=dict(total_size=total), weight_map=places)
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    print(f"{out}: {layers} layers, {total / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
