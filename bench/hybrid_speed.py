"""Measures decode and prefill of a hybrid of 1.5 billion parameters with made-up weights, beside the same model with attention alone.

    python bench/hybrid_speed.py [--batch 1,8,32] [--prompt 512] [--rounds 3]

The shape is that of Qwen3.6-35B-A3B's text part, made small: 12 layers, of which every fourth attends and the others are gated DeltaNet
with 16 value heads of 128 x 128; 8 of 64 experts and a shared one. Decode is `lynx-rt bench decode`; its bytes count states once, as they
are read, and this script also prints the share of plain reading with states counted as read and written. Prefills take turns.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lynx_rt import _C

CONFIG = {
    "model_type": "qwen3_5_moe_text",
    "hidden_size": 1024,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "vocab_size": 32000,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-06,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "linear_num_key_heads": 8,
    "linear_num_value_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "rope_parameters": {"rope_theta": 1e7, "partial_rotary_factor": 0.25, "rope_type": "default"},
    "attn_output_gate": True,
    "dtype": "bfloat16",
}
KINDS = {"hybrid": (["linear_attention"] * 3 + ["full_attention"]) * 3, "attention": ["full_attention"] * 12}


def decode(folder: Path, batches: list[int]) -> None:
    command = [
        sys.executable,
        "-m",
        "lynx_rt",
        "bench",
        "decode",
        str(folder),
        "--load-format",
        "dummy",
        "--context",
        "16",
    ]
    command += ["--steps", "12", "--batch", ",".join(map(str, batches)), "--selection", "topk", "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    for row in json.loads(done.stdout)["rows"]:
        moved = row["bytes_per_step"] + row["ops"]["gated_delta"]["bytes"]
        rate = moved / row["median_ms"] / 1e6
        print(
            f"batch {row['batch']}: {row['median_ms']:.1f} ms, {rate:.1f} GB/s with states read and written, "
            f"{100 * rate / row['read_gb_per_s']:.1f} % of plain reading at {row['read_gb_per_s']:.1f} GB/s"
        )


def prefill(folders: dict[str, Path], length: int, rounds: int) -> None:
    engines = {}
    for kind, folder in folders.items():
        sizes = {"max_num_seqs": 2, "max_model_len": length + 16, "max_num_batched_tokens": length}
        engines[kind] = _C.Engine(str(folder), load_format="dummy", enable_prefix_caching=False, **sizes)
    taken: dict[str, list[float]] = {kind: [] for kind in engines}
    for turn in range(rounds + 1):
        for kind, engine in engines.items():
            params = _C.SamplingParams()
            params.max_tokens, params.temperature, params.ignore_eos = 1, 0, True
            draw = random.Random(turn)
            engine.add_request([draw.randrange(32000) for _ in range(length)], params)
            start = time.perf_counter()
            while engine.has_unfinished():
                engine.step()
            taken[kind].append(1e3 * (time.perf_counter() - start))
    for kind, times in taken.items():  # the first is a warm-up
        print(f"{kind}: {statistics.median(times[1:]):.0f} ms for {length} tokens, median of {rounds}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", default="1,8,32")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        folders = {kind: Path(root, kind) for kind in KINDS}
        for kind, folder in folders.items():
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps(CONFIG | {"layer_types": KINDS[kind]}))
        decode(folders["hybrid"], [int(batch) for batch in options.batch.split(",")])
        prefill(folders, options.prompt, options.rounds)


if __name__ == "__main__":
    main()
