"""Measures the vision tower of Qwen3-VL beside transformers' on made-up weights, both bfloat16, in turns.

    PYTHONPATH=. python bench/vision_tower.py [--size 512] [--depth 7] [--rounds 5] [--ops]

The shape is that of Qwen3-VL-30B-A3B's tower with fewer blocks: 7 and the one merger are the proportion of its 27 blocks and 4 mergers. An
image of S x S pixels has (S / 16)^2 patches. Needs torch and transformers, and lynx_rt._C_testing of a source build.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from lynx_rt import _C_testing

TOWER = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_heads": 16,
    "out_hidden_size": 2048,
    "deepstack_visual_indexes": [],
}
TEXT = {"hidden_size": 2048, "num_hidden_layers": 1, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128,
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "vocab_size": 256}  # fmt: skip


def write_model(folder: str, depth: int) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model("qwen3_vl_moe", text_config=TEXT, vision_config=TOWER | {"depth": depth})
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16).eval()
    model.save_pretrained(folder)
    return model.model.visual


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="pixels of the image's side")
    parser.add_argument("--depth", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="of both; 0: as many as there are cores")
    parser.add_argument("--quantization", default="none", help="of lynx_rt's weights")
    parser.add_argument("--ops", action="store_true", help="what each op takes")
    options = parser.parse_args()
    side = options.size // 16
    patches = np.random.default_rng(0).uniform(-1, 1, (side * side, 1536)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        theirs = write_model(folder, options.depth)
        threads = options.threads or torch.get_num_threads()
        torch.set_num_threads(threads)
        ours = _C_testing.VisionTower(folder, "bfloat16", num_threads=threads, quantization=options.quantization,
                                      max_patches=side * side)  # fmt: skip
        pixels, grid = torch.from_numpy(patches).bfloat16(), torch.tensor([[1, side, side]])

        def transformers() -> Any:
            with torch.inference_mode():
                return theirs(pixels, grid).pooler_output.float().numpy()

        times: dict[str, list[float]] = {"lynx_rt": [], "transformers": []}
        for turn in range(options.rounds + 1):
            if turn == 1:
                ours.profile()  # forgets the warm-up
            seconds, mine = timed(lambda: ours.encode(patches, side, side, blocks=options.depth))
            times["lynx_rt"].append(seconds)
            seconds, other = timed(transformers)
            times["transformers"].append(seconds)
    print(f"{ours.description()}; {side * side} patches, {options.depth} blocks, median of {options.rounds}")
    for name, values in times.items():
        print(
            f"{name}: {1e3 * statistics.median(values[1:]):.0f} ms ({', '.join(f'{1e3 * v:.0f}' for v in values[1:])})"
        )
    ratios = [b / a for a, b in zip(times["lynx_rt"][1:], times["transformers"][1:], strict=True)]
    print(f"ratio: {statistics.median(ratios):.2f} ({', '.join(f'{r:.2f}' for r in ratios)})")
    print(f"largest difference: {np.abs(mine - other).max() / np.abs(other).max():.4f} of the largest value")
    if options.ops:
        for name, seconds in sorted(ours.profile().items(), key=lambda item: -item[1]):
            print(f"  {name}: {1e3 * seconds / options.rounds:.1f} ms")


if __name__ == "__main__":
    main()
