"""lynx-nano written in quantised formats: products with the codes as they lie hardly change what it answers, beside decoded weights."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
import quantized_formats as qf

from lynx_rt import _C

pytestmark = pytest.mark.slow

GROUP = 32
Text = tuple[list[int], int]  # token ids, and where the answer begins


def in_groups(w: torch.Tensor) -> torch.Tensor:
    return w.reshape(w.shape[0], -1, GROUP)


def packed(codes: torch.Tensor) -> torch.Tensor:
    return qf.pack(codes.flatten(1).numpy().astype(np.uint8), 4)


def int4(name: str, w: torch.Tensor) -> qf.Tensors:
    groups = in_groups(w)
    scale = (groups.abs().amax(-1) / 7).to(torch.bfloat16)
    codes = (groups / scale.float()[..., None]).round().clamp(-8, 7) + 8
    return {f"{name}_packed": packed(codes), f"{name}_scale": scale, f"{name}_shape": torch.tensor(w.shape)}


def int4_with_zeros(name: str, w: torch.Tensor) -> qf.Tensors:
    """AWQ's layout."""
    groups = in_groups(w)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scale = ((high - low) / 15).to(torch.float16)
    zero = (-low / scale.float()).round()
    codes = ((groups / scale.float()[..., None]).round() + zero[..., None]).clamp(0, 15).flatten(1)

    def shuffle(values: torch.Tensor) -> torch.Tensor:
        rows = np.ascontiguousarray(values.T.numpy().astype(np.uint8))
        return qf.pack(rows.reshape(rows.shape[0], -1, 8)[:, :, qf.AWQ_COLUMN].reshape(rows.shape), 4)

    module = name.removesuffix(".weight")
    return {f"{module}.qweight": shuffle(codes), f"{module}.qzeros": shuffle(zero), f"{module}.scales": scale.T.contiguous()}  # fmt: skip


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


FORMATS: dict[str, tuple[Callable[[str, torch.Tensor], qf.Tensors], dict[str, Any]]] = {
    "int4": (int4, qf.ct("pack-quantized", qf.ints(4, "group", GROUP))),
    "awq": (int4_with_zeros, qf.AWQ),
    "mxfp4": (mxfp4, qf.ct("mxfp4-pack-quantized", qf.floats(4, "group", group_size=GROUP))),
    "int8": (int8, qf.ct("int-quantized", qf.ints(8, "channel"))),
}


@pytest.fixture(scope="module")
def texts() -> list[Text]:
    from lynx_rt import Engine, shipped_model

    with Engine(shipped_model()) as e:
        tokenizer = e.get_tokenizer()
    out = []
    for file in sorted((Path(__file__).parents[2] / "bench" / "tasks").glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines()[:6]:
            item = json.loads(line)
            out.append((tokenizer.encode(f"{item['prompt']} {item['answer']}"), len(tokenizer.encode(item["prompt"]))))
    return out


@pytest.mark.parametrize("name", FORMATS)
def test_answers(nano_path: str, tmp_path: Path, texts: list[Text], name: str) -> None:
    """The most likely token of the answers is the same for 99 of 100, in every linear layer's format, as with decoded weights."""
    write, config = FORMATS[name]
    tensors: qf.Tensors = {}
    for tensor, values in load_file(Path(nano_path) / "model.safetensors").items():
        linear = tensor.endswith("_proj.weight")
        tensors |= write(tensor, values.float()) if linear else {tensor: values}
    save_file({n: t.contiguous() for n, t in tensors.items()}, tmp_path / "model.safetensors")
    of_nano = json.loads((Path(nano_path) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(of_nano | {"quantization_config": config}))
    as_it_lies, decoded = (_C.Engine(str(tmp_path), quantization=q) for q in ("none", "dequantize"))
    assert as_it_lies.model_info()["weight_bytes"] < 0.6 * decoded.model_info()["weight_bytes"]
    same = []
    for tokens, start in texts:
        first, second = (np.array(e.forward(tokens))[start - 1 : -1].argmax(1) for e in (as_it_lies, decoded))
        same += (first == second).tolist()
    assert len(same) > 500 and np.mean(same) >= 0.99, np.mean(same)
