"""Makes quantised weights in the formats of checkpoints: random codes and scales as tensors of a file, and their decoded values.

The decoders here are written from the formats' own descriptions, in numpy and float32, and share nothing with the runtime's.
Integers times scales are rounded to the scales' dtype, as compressed-tensors, AutoGPTQ and AutoAWQ multiply; FP8 with `fp8` is
multiplied in float32, as transformers does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
AWQ_COLUMN = [0, 2, 4, 6, 1, 3, 5, 7]  # column of the field at each place of a word, from the lowest
SPREAD = 0.3  # standard deviation of the weights, as in tiny_models.py

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Format:
    """`write(name, N, K, random)` -> the tensors that hold a weight of that name, and its values in the dtype of the product."""

    name: str
    config: dict[str, Any]
    write: Callable[[str, int, int, np.random.Generator], tuple[Tensors, torch.Tensor]]
    dtype: str = "bfloat16"  # the model's
    experts_only: bool = False
    extra: dict[str, Any] = field(default_factory=dict)


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def scales(
    random: np.random.Generator, shape: tuple[int, ...], dtype: torch.dtype, largest_code: float
) -> torch.Tensor:
    values = random.uniform(0.5, 2.0, shape) * SPREAD * 2 / largest_code
    return torch.tensor(values, dtype=torch.float32).to(dtype)


def product(codes: np.ndarray, scale: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """Multiplies, and rounds to `dtype` once: the factors have few enough bits for float32 to hold their product."""
    return torch.from_numpy(codes.astype(np.float32) * scale.astype(np.float32)).to(dtype)


def spread_blocks(grid: np.ndarray, block: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """Returns [n, k] with the value of each element's block in the grid."""
    rows, cols = np.arange(shape[0]) // block[0], np.arange(shape[1]) // block[1]
    return grid[np.ix_(rows, cols)]


def random_e4m3(random: np.random.Generator, n: int, k: int) -> torch.Tensor:
    codes = random.integers(0, 256, (n, k)).astype(np.uint8)
    codes[(codes & 0x7F) == 0x7F] = 0x80  # no NaN, but a negative zero
    return torch.from_numpy(codes).view(torch.float8_e4m3fn)


def pack(codes: np.ndarray, bits: int) -> torch.Tensor:
    """Packs along the last dimension into words of 32 bits, the first value in the lowest bits."""
    per_word = 32 // bits
    padded = np.zeros((*codes.shape[:-1], ceil_div(codes.shape[-1], per_word) * per_word), np.uint64)
    padded[..., : codes.shape[-1]] = codes
    words = padded.reshape(*codes.shape[:-1], -1, per_word) << (np.arange(per_word, dtype=np.uint64) * np.uint64(bits))
    return torch.from_numpy(np.ascontiguousarray(words.sum(-1).astype(np.uint32).view(np.int32)))


def fp8(block: tuple[int, int] | None = None, *, rows: bool = False, shape: str = "2d", scale_dtype: torch.dtype = torch.float32,
        suffix: str = "_scale_inv", padding: float | None = None, product_dtype: torch.dtype | None = torch.float32,
        extra: bool = False) -> Any:  # fmt: skip
    """block: of that size; else a scale to a row, or one. product_dtype None: the scales'."""

    def write(name: str, n: int, k: int, random: np.random.Generator) -> tuple[Tensors, torch.Tensor]:
        codes = random_e4m3(random, n, k)
        size = block or ((1, k) if rows else (n, k))
        grid_shape = (ceil_div(n, size[0]), ceil_div(k, size[1]))
        if scale_dtype == torch.float8_e8m0fnu:
            grid = torch.from_numpy(random.integers(115, 121, grid_shape).astype(np.uint8)).view(scale_dtype)
        else:
            grid = scales(random, grid_shape, scale_dtype, 448)
        dense = spread_blocks(grid.float().numpy(), size, (n, k))
        values = product(codes.float().numpy(), dense, product_dtype or scale_dtype)
        stored = grid
        if padding is not None:
            stored = torch.full((grid_shape[0] + 2, grid_shape[1] + 1), padding, dtype=scale_dtype)
            stored[: grid_shape[0], : grid_shape[1]] = grid
        if shape != "2d":
            stored = stored.reshape(() if shape == "scalar" else -1)
        tensors = {name: codes, name + suffix: stored.clone()}
        if extra:
            tensors[name.removesuffix("weight") + "input_scale"] = torch.ones(1)
        return tensors, values

    return write


def packed(bits: int, group: int | None, *, symmetric: bool = True, g_idx: str = "", scale_dtype: torch.dtype = torch.bfloat16,
           shape_dtype: torch.dtype = torch.int64) -> Any:  # fmt: skip
    def write(name: str, n: int, k: int, random: np.random.Generator) -> tuple[Tensors, torch.Tensor]:
        codes = random.integers(0, 1 << bits, (n, k))
        groups = ceil_div(k, group or k)
        scale = scales(random, (n, groups), scale_dtype, 1 << (bits - 1))
        zeros = random.integers(0, 1 << bits, (n, groups))
        index = np.arange(k) // (group or k)
        if g_idx == "shuffled":
            index = random.permutation(index)
        half = 1 << (bits - 1)
        shift = zeros[:, index] - half if not symmetric else 0
        values = product(codes - half - shift, scale.float().numpy()[:, index], scale_dtype)
        tensors = {
            name + "_packed": pack(codes, bits),
            name + "_scale": scale,
            name + "_shape": torch.tensor([n, k], dtype=shape_dtype),
        }
        if not symmetric:
            tensors[name + "_zero_point"] = pack(np.ascontiguousarray(zeros.T), bits).T.contiguous()
        if g_idx:
            stored = index if g_idx == "shuffled" else np.full(k, -1)
            tensors[name + "_g_idx"] = torch.tensor(stored, dtype=torch.int32)
        return tensors, values

    return write


def int8(strategy: str, *, symmetric: bool = True, scale_dtype: torch.dtype = torch.bfloat16, bits: int = 8) -> Any:
    def write(name: str, n: int, k: int, random: np.random.Generator) -> tuple[Tensors, torch.Tensor]:
        half = 1 << (bits - 1)
        codes = random.integers(-half, half, (n, k)).astype(np.int8)
        scale = scales(random, (n, 1) if strategy == "channel" else (1,), scale_dtype, half)
        zeros = random.integers(-128, 128, scale.shape).astype(np.int8)
        shift = 0 if symmetric else zeros.astype(np.int64)
        values = product(codes - shift, scale.float().numpy(), scale_dtype)
        tensors = {name: torch.from_numpy(codes), name + "_scale": scale}
        return (tensors if symmetric else tensors | {name + "_zero_point": torch.from_numpy(zeros)}), values

    return write


def mxfp4(*, blocks: bool) -> Any:
    def write(name: str, n: int, k: int, random: np.random.Generator) -> tuple[Tensors, torch.Tensor]:
        codes = random.integers(0, 16, (n, k)).astype(np.uint8)
        exponents = random.integers(122, 127, (n, k // 32)).astype(np.uint8)
        dense = np.exp2(exponents.astype(np.float32) - 127).repeat(32, axis=1)
        packed_codes = torch.from_numpy(codes[:, 0::2] | (codes[:, 1::2] << 4))
        values = torch.from_numpy(E2M1[codes] * dense)
        if blocks:
            return {
                name + "_blocks": packed_codes.reshape(n, k // 32, 16),
                name + "_scales": torch.from_numpy(exponents),
            }, values
        return {name + "_packed": packed_codes, name + "_scale": torch.from_numpy(exponents)}, values

    return write


def gptq(
    bits: int, group: int, *, less_one: bool = True, g_idx: str = "", bias: bool = False, zero: int | None = None
) -> Any:
    """group -1: all of K. zero: the zero point of all; random where None."""

    def write(name: str, n: int, k: int, random: np.random.Generator) -> tuple[Tensors, torch.Tensor]:
        size = k if group == -1 else group
        groups, mask = ceil_div(k, size), (1 << bits) - 1
        codes, zeros = random.integers(0, mask + 1, (k, n)), random.integers(0, mask + 1, (groups, n))
        if zero is not None:
            zeros[:] = zero
        scale = scales(random, (groups, n), torch.float16, 1 << (bits - 1))
        index = random.permutation(np.arange(k) // size) if g_idx == "shuffled" else np.arange(k) // size
        values = product((codes - zeros[index]).T, scale.float().numpy()[index].T, torch.float16)
        stored = (zeros - 1) & mask if less_one else zeros
        module = name.removesuffix(".weight")
        tensors = {module + ".qweight": pack(np.ascontiguousarray(codes.T), bits).T.contiguous(), module + ".qzeros": pack(stored, bits),
                   module + ".scales": scale}  # fmt: skip
        if g_idx:
            tensors[module + ".g_idx"] = torch.tensor(index, dtype=torch.int32)
        if bias:
            tensors[module + ".bias"] = torch.zeros(n, dtype=torch.float16)
        return tensors, values

    return write


def awq(group: int) -> Any:
    def shuffle(codes: np.ndarray) -> torch.Tensor:
        return pack(codes.reshape(codes.shape[0], -1, 8)[:, :, AWQ_COLUMN].reshape(codes.shape), 4)

    def write(name: str, n: int, k: int, random: np.random.Generator) -> tuple[Tensors, torch.Tensor]:
        size = k if group == -1 else group
        codes, zeros = random.integers(0, 16, (k, n)), random.integers(0, 16, (ceil_div(k, size), n))
        scale = scales(random, zeros.shape, torch.float16, 8)
        index = np.arange(k) // size
        values = product((codes - zeros[index]).T, scale.float().numpy()[index].T, torch.float16)
        module = name.removesuffix(".weight")
        return {
            module + ".qweight": shuffle(codes),
            module + ".qzeros": shuffle(zeros),
            module + ".scales": scale,
        }, values

    return write


def ct(form: str, weights: dict[str, Any], **more: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}, "ignore": ["lm_head"],
            "quantization_status": "compressed", "kv_cache_scheme": None} | more  # fmt: skip


def ints(bits: int, strategy: str, group: int | None = None, symmetric: bool = True) -> dict[str, Any]:
    return {"num_bits": bits, "type": "int", "strategy": strategy, "group_size": group, "symmetric": symmetric, "actorder": None,
            "dynamic": False, "block_structure": None}  # fmt: skip


def floats(bits: int, strategy: str, **more: Any) -> dict[str, Any]:
    return {"num_bits": bits, "type": "float", "strategy": strategy, "symmetric": True} | more


F32, BF16, F16, E8M0 = torch.float32, torch.bfloat16, torch.float16, torch.float8_e8m0fnu
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [16, 40],
       "modules_to_not_convert": ["lm_head", "mlp.gate"]}  # fmt: skip
GPTQ = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": 32,
    "desc_act": False,
    "sym": False,
    "lm_head": False,
    "true_sequential": True,
}
AWQ = {
    "quant_method": "awq",
    "bits": 4,
    "group_size": 32,
    "zero_point": True,
    "version": "GEMM",
    "modules_to_not_convert": None,
}

# fmt: off
FORMATS = [
    Format("fp8_block", FP8, fp8((16, 40))),
    Format("fp8_block_f32_model", FP8, fp8((16, 40)), "float32"),
    Format("fp8_block_f16_model", FP8, fp8((16, 40)), "float16"),
    Format("fp8_block_bf16_scale", FP8, fp8((16, 40), scale_dtype=BF16), "float16"),
    Format("fp8_block_plural", FP8, fp8((16, 40), suffix="_scales_inv")),
    Format("fp8_block_mistral_name", FP8, fp8((16, 40), suffix="_scale")),
    Format("fp8_block_e8m0", FP8, fp8((16, 40), scale_dtype=E8M0)),
    Format("fp8_padded_with_0", FP8, fp8((16, 40), padding=0)),
    Format("fp8_padded_with_1", FP8, fp8((16, 40), padding=1)),
    Format("fp8_row", FP8 | {"weight_block_size": None}, fp8(rows=True, suffix="_scale")),
    Format("fp8_row_1d", FP8, fp8(rows=True, suffix="_scale", shape="1d", scale_dtype=BF16)),
    Format("fp8_tensor", FP8 | {"weight_block_size": None, "activation_scheme": "static"}, fp8(suffix="_scale", shape="scalar", extra=True)),
    Format("ct_int4_group", ct("pack-quantized", ints(4, "group", 32)), packed(4, 32)),
    Format("ct_int4_group_asymmetric", ct("pack-quantized", ints(4, "group", 16, False)), packed(4, 16, symmetric=False)),
    Format("ct_int4_group_f16_scale", ct("pack-quantized", ints(4, "group", 32)), packed(4, 32, scale_dtype=F16)),
    Format("ct_int4_group_f32_model", ct("pack-quantized", ints(4, "group", 32)), packed(4, 32, shape_dtype=torch.int32), "float32"),
    Format("ct_int4_channel", ct("pack-quantized", ints(4, "channel")), packed(4, None)),
    Format("ct_int4_act_order", ct("pack-quantized", ints(4, "group", 16, False)), packed(4, 16, symmetric=False, g_idx="shuffled")),
    Format("ct_int4_order_not_set", ct("pack-quantized", ints(4, "group", 16)), packed(4, 16, g_idx="unset")),
    Format("ct_int8_group", ct("pack-quantized", ints(8, "group", 16)), packed(8, 16)),
    Format("ct_int8_channel_asymmetric", ct("pack-quantized", ints(8, "channel", None, False)), packed(8, None, symmetric=False)),
    Format("ct_int8_w8a8", ct("int-quantized", ints(8, "channel")), int8("channel")),
    Format("ct_int8_w8a8_asymmetric", ct("int-quantized", ints(8, "channel", None, False)), int8("channel", symmetric=False)),
    Format("ct_int8_w8a8_tensor", ct("int-quantized", ints(8, "tensor")), int8("tensor", scale_dtype=F32)),
    Format("ct_naive_int8", ct("naive-quantized", ints(8, "tensor")), int8("tensor")),
    Format("ct_naive_int4", ct("naive-quantized", ints(4, "channel")), int8("channel", bits=4)),
    Format("ct_naive_fp8", ct("naive-quantized", floats(8, "channel")), fp8(rows=True, suffix="_scale", scale_dtype=BF16, product_dtype=None)),
    Format("ct_fp8_channel", ct("float-quantized", floats(8, "channel")), fp8(rows=True, suffix="_scale", scale_dtype=BF16, product_dtype=None)),
    Format("ct_fp8_tensor", ct("float-quantized", floats(8, "tensor")), fp8(suffix="_scale", shape="1d", extra=True, product_dtype=None)),
    Format("ct_fp8_block", ct("float-quantized", floats(8, "block", block_structure=[16, 40])),
           fp8((16, 40), suffix="_scale", scale_dtype=BF16, product_dtype=None), "float16"),
    Format("ct_mxfp4", ct("mxfp4-pack-quantized", floats(4, "group", group_size=32)), mxfp4(blocks=False), experts_only=True),
    Format("mxfp4", {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, mxfp4(blocks=True), experts_only=True),
    Format("gptq", GPTQ, gptq(4, 32), "float16"),
    Format("gptq_bf16_model", GPTQ, gptq(4, 32)),
    Format("gptq_v2", GPTQ | {"checkpoint_format": "gptq_v2"}, gptq(4, 32, less_one=False), "float16"),
    Format("gptq_act_order", GPTQ | {"group_size": 16, "desc_act": True, "dynamic": {"-:.*gate.*": {}}},
           gptq(4, 16, g_idx="shuffled", bias=True), "float16"),
    Format("gptq_int8_one_group", GPTQ | {"bits": 8, "group_size": -1}, gptq(8, -1, g_idx="plain"), "float16"),
    Format("awq", AWQ, awq(32), "float16"),
    Format("awq_one_group", AWQ | {"group_size": -1, "version": "gemm"}, awq(-1), "float32"),
]
# fmt: on
