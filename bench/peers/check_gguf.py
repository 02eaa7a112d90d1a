"""Checks that llama.cpp computes with a converted file what lynx_rt computes with the checkpoint: the logits after one prompt.

    python bench/peers/check_gguf.py MODEL FILE.gguf --llama-cpp BUILD_DIR [--tokens 64]

Needs llama.cpp's example `llama-debug` and lynx_rt. Prints the largest difference and the correlation of the two rows of logits, and the
five likeliest tokens of each.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import tempfile
from pathlib import Path

import numpy as np


def llama_cpp_logits(build: Path, gguf: Path, tokens: list[int]) -> np.ndarray:
    with tempfile.TemporaryDirectory() as out:
        prompt = "".join(f"<{token}>" for token in tokens)  # tokens of to_gguf.py's dummy vocabulary
        command = [build / "bin" / "llama-debug", "-m", gguf, "-p", prompt, "--save-logits", "--logits-output-dir", out]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        (path,) = Path(out).glob("llamacpp-*-tokens.bin")
        seen = np.fromfile(path, np.int32).tolist()
        if seen != tokens:
            raise SystemExit(f"llama.cpp read other tokens: {seen}")
        path.unlink()
        (path,) = Path(out).glob("llamacpp-*.bin")
        return np.fromfile(path, np.float32)


def lynx_logits(model: Path, tokens: list[int]) -> np.ndarray:
    from lynx_rt import _C

    engine = _C.Engine(os.fspath(model), device="cpu", dtype="bfloat16", max_model_len=len(tokens) + 1)
    try:
        return engine.forward(tokens)[-1]
    finally:
        engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", type=Path)
    parser.add_argument("gguf", metavar="FILE.gguf", type=Path)
    parser.add_argument("--llama-cpp", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    vocab_size = json.loads((args.model / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    generator = random.Random(0)
    tokens = [generator.randrange(3, vocab_size) for _ in range(args.tokens)]
    ours, theirs = lynx_logits(args.model, tokens), llama_cpp_logits(args.llama_cpp, args.gguf, tokens)
    print(f"{ours.size} logits from {ours.min():.3f} to {ours.max():.3f}, standard deviation {ours.std():.3f}")
    print(f"largest difference {np.abs(ours - theirs).max():.4f}, correlation {np.corrcoef(ours, theirs)[0, 1]:.6f}")
    for name, row in (("lynx_rt", ours), ("llama.cpp", theirs)):
        print(f"{name}: " + ", ".join(f"{token} ({row[token]:.3f})" for token in np.argsort(-row)[:5]))


if __name__ == "__main__":
    main()
