"""Writes the linear layers of a checkpoint in FP8 as published models have them: E4M3 with a scale to each block of 128 x 128.

usage: to_fp8.py MODEL OUT
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

BLOCK, LARGEST = 128, 448.0


def quantise(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the codes of a matrix and its scales, [rows of blocks, columns of blocks], in float32."""
    n, k = w.shape
    padded = torch.zeros(-(-n // BLOCK) * BLOCK, -(-k // BLOCK) * BLOCK)
    padded[:n, :k] = w.float()
    blocks = padded.reshape(padded.shape[0] // BLOCK, BLOCK, -1, BLOCK)
    scale = (blocks.abs().amax((1, 3)) / LARGEST).clamp(min=1e-12)
    codes = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn).reshape(padded.shape)
    return codes[:n, :k].contiguous(), scale


def main(model: Path, out: Path) -> None:
    out.mkdir(exist_ok=True)
    index: dict[str, str] = {}
    for file in sorted(model.glob("*.safetensors")):
        tensors = {}
        for name, tensor in load_file(file).items():
            if name.endswith("_proj.weight"):
                tensors[name], tensors[f"{name}_scale_inv"] = quantise(tensor)
            else:
                tensors[name] = tensor
        save_file(tensors, out / file.name)
        index |= dict.fromkeys(tensors, file.name)
    (out / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}  # fmt: skip
    (out / "config.json").write_text(json.dumps(config, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
