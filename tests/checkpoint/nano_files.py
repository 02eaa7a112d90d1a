"""Writes lynx-nano in the quantised formats of safetensors files: linear layers by plain rounding, without calibration."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import quantized_formats as qf
import torch
from safetensors.torch import load_file, save_file

GROUP = 32
Write = Callable[[str, torch.Tensor], qf.Tensors]  # of one matrix [n, k]


def in_groups(w: torch.Tensor, group: int = GROUP) -> torch.Tensor:
    """[n, k] -> [n, groups, columns of a group]: one group where `group` does not divide k."""
    return w.reshape(w.shape[0], -1, w.shape[1] if w.shape[1] % group else group)


def packed(codes: torch.Tensor) -> torch.Tensor:
    return qf.pack(codes.flatten(1).numpy().astype(np.uint8), 4)


def symmetric(w: torch.Tensor, group: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns codes 0..15 [n, groups, columns of a group], of which 8 is zero, and scales [n, groups]."""
    groups = in_groups(w, group)
    scale = (groups.abs().amax(-1) / 7).to(dtype)
    return (groups / scale.float()[..., None]).round().clamp(-8, 7) + 8, scale


def int4(name: str, w: torch.Tensor, group: int = GROUP) -> qf.Tensors:
    codes, scale = symmetric(w, group, torch.bfloat16)
    return {f"{name}_packed": packed(codes), f"{name}_scale": scale, f"{name}_shape": torch.tensor(w.shape)}


def transposed(values: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(values.flatten(1).T.numpy().astype(np.uint8))


def awq(name: str, w: torch.Tensor) -> qf.Tensors:
    groups = in_groups(w)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scale = ((high - low) / 15).to(torch.float16)
    zero = (-low / scale.float()).round()
    codes = ((groups / scale.float()[..., None]).round() + zero[..., None]).clamp(0, 15)

    def shuffle(values: torch.Tensor) -> torch.Tensor:
        rows = transposed(values)
        return qf.pack(rows.reshape(rows.shape[0], -1, 8)[:, :, qf.AWQ_COLUMN].reshape(rows.shape), 4)

    module = name.removesuffix(".weight")
    return {f"{module}.qweight": shuffle(codes), f"{module}.qzeros": shuffle(zero), f"{module}.scales": scale.T.contiguous()}  # fmt: skip


def gptq(name: str, w: torch.Tensor) -> qf.Tensors:
    codes, scale = symmetric(w, GROUP, torch.float16)
    words = qf.pack(np.ascontiguousarray(transposed(codes).T), 4).T.contiguous()
    zeros = qf.pack(np.full(scale.T.shape, 7), 4)  # less one, as version 1 of the format stores them
    module = name.removesuffix(".weight")
    return {f"{module}.qweight": words, f"{module}.qzeros": zeros, f"{module}.scales": scale.T.contiguous()}


def mxfp4(name: str, w: torch.Tensor) -> qf.Tensors:
    groups = in_groups(w)
    exponent = (groups.abs().amax(-1).clamp(min=2.0**-100).log2().floor() - 2).clamp(-127, 127)
    levels = torch.tensor(qf.E2M1[:8])
    scaled = groups / torch.exp2(exponent)[..., None]
    codes = (scaled.abs()[..., None] - levels).abs().argmin(-1).to(torch.uint8) | (scaled < 0).to(torch.uint8) << 3
    pairs = codes.flatten(1)
    return {f"{name}_packed": pairs[:, 0::2] | pairs[:, 1::2] << 4, f"{name}_scale": (exponent + 127).to(torch.uint8)}


def int8(name: str, w: torch.Tensor) -> qf.Tensors:
    scale = (w.abs().amax(-1, keepdim=True) / 127).to(torch.bfloat16)
    return {name: (w / scale.float()).round().clamp(-128, 127).to(torch.int8), f"{name}_scale": scale}


def fp8(name: str, w: torch.Tensor, block: tuple[int, int] | None = None, suffix: str = "_scale") -> qf.Tensors:
    """block: rows and columns with one scale; rows or columns of 0 mean all. None: the whole matrix, with a scalar."""
    n, k = w.shape
    rows, cols = (min(size or whole, whole) for size, whole in zip(block or (0, 0), (n, k)))
    grid = torch.nn.functional.pad(w, (0, -k % cols, 0, -n % rows)).reshape(-(-n // rows), rows, -(-k // cols), cols)
    scale = (grid.abs().amax((1, 3)) / 448).clamp(min=1e-12)
    codes = (grid / scale[:, None, :, None]).flatten(2).flatten(0, 1)[:n, :k].to(torch.float8_e4m3fn)
    return {name: codes.contiguous(), name + suffix: scale if block else scale.flatten()}


def int4_config(group: int) -> dict[str, Any]:
    """Two groups where lynx-nano's expert columns (96) are no multiple: "down" then has a scale to a row."""
    config = qf.ct("pack-quantized", qf.ints(4, "group", group))
    if 96 % group:
        down = {"targets": ["re:.*down_proj$"], "weights": qf.ints(4, "channel"), "input_activations": None}
        config["config_groups"]["group_0"]["targets"] = ["re:.*(q|k|v|o|gate|up)_proj$"]
        config["config_groups"]["group_1"] = down
    return config


FORMATS: dict[str, tuple[Write, dict[str, Any]]] = {
    "int8": (int8, qf.ct("int-quantized", qf.ints(8, "channel"))),
    "int4": (int4, int4_config(GROUP)),
    "int4_g128": (partial(int4, group=128), int4_config(128)),
    "awq": (awq, qf.AWQ),
    "gptq": (gptq, qf.GPTQ | {"sym": True}),
    "mxfp4": (mxfp4, qf.ct("mxfp4-pack-quantized", qf.floats(4, "group", group_size=GROUP))),
    "fp8_block": (partial(fp8, block=(128, 128), suffix="_scale_inv"), qf.FP8 | {"weight_block_size": [128, 128]}),
    "fp8_channel": (partial(fp8, block=(1, 0)), qf.ct("float-quantized", qf.floats(8, "channel"))),
    "fp8_tensor": (fp8, qf.ct("float-quantized", qf.floats(8, "tensor"))),
}


def write(nano: str | Path, name: str, out: Path) -> Path:
    """Writes config.json and model.safetensors of lynx-nano in that format into a new folder; returns it."""
    matrix, config = FORMATS[name]
    tensors: qf.Tensors = {}
    for tensor, values in load_file(Path(nano) / "model.safetensors").items():
        tensors |= matrix(tensor, values.float()) if tensor.endswith("_proj.weight") else {tensor: values}
    out.mkdir()
    save_file({n: t.contiguous() for n, t in tensors.items()}, out / "model.safetensors")
    of_nano = json.loads((Path(nano) / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(of_nano | {"quantization_config": config}))
    return out
