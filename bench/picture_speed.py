"""Measures requests with a picture on a MoE model beside dense models of equal active and of equal total size, with and without selection.

    python bench/picture_speed.py --out DIR --tasks pictures [--model bench/models/lynx-nano-vl] [--batch 1,4,8,16,32]

The text models are those of dense_against_moe.py, with the 6 layers of lynx-nano-vl: 1.2 billion parameters, made up, 4 of 32 experts, and
dense models that differ in the width of their MLP alone. All have the tower of Qwen3-VL-2B, and every request has a picture of its own. B requests arrive together.
Then they decode together, each policy in turn, with the routing of a trained model: --model answers --tasks in full batches under the
policy, and its routing is replayed.

tokens/s of answers of n tokens: B n / (time until each request has a token + (n - 1) median steps). Writes DIR/picture-speed.json and .md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from dense_against_moe import SHAPE, models
from picture_study import table
from recorded_routing import record

from lynx_rt import _C
from lynx_rt.cli.bench import timed_turns
from lynx_rt.cli.options import positive_ints, selections

LAYERS, WIDTH = 6, 2048  # of an expert
SIDE, MERGE = 32, 2  # patches of a side of 16 pixels: 512 x 512 pixels; those of a side that become one token
TOWER = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_heads": 16,
    "patch_size": 16,
    "temporal_patch_size": 2,
    "in_channels": 3,
    "spatial_merge_size": MERGE,
    "num_position_embeddings": 2304,
    "out_hidden_size": SHAPE["hidden_size"],
    "deepstack_visual_indexes": [5, 11, 17],
    "hidden_act": "gelu_pytorch_tanh",
}
IMAGE_TOKEN = 31000
ANSWERS = (3, 64)  # tokens: those of the trained model's task sets, and a sentence or three
WARMUP = 2  # untimed decode steps


@dataclass
class Row:
    model: str
    batch: int
    policy: str
    ttft_ms: float  # mean over the requests
    prompts_s: float  # until each request has a token
    tower_share: float  # of prompts_s
    step_ms: float  # median
    experts: float  # read per layer and step

    def tokens_per_s(self, length: int) -> float:
        return self.batch * length / (self.prompts_s + (length - 1) * self.step_ms / 1e3)


def config(text: dict[str, Any]) -> dict[str, Any]:
    kind = "qwen3_vl_moe" if "num_experts" in text else "qwen3_vl"
    shape = {
        key: value for key, value in SHAPE.items() if key not in ("rope_theta", "torch_dtype", "tie_word_embeddings")
    }
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [12, 10, 10], "mrope_interleaved": True}
    return {
        "model_type": kind,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": True,
        "image_token_id": IMAGE_TOKEN,
        "video_token_id": IMAGE_TOKEN + 1,
        "vision_start_token_id": IMAGE_TOKEN + 2,
        "vision_end_token_id": IMAGE_TOKEN + 3,
        "text_config": {
            **shape,
            **text,
            "num_hidden_layers": LAYERS,
            "model_type": f"{kind}_text",
            "rope_parameters": rope,
        },
        "vision_config": {"model_type": kind, **TOWER},
    }


def request(seed: list[int]) -> tuple[list[int], list[dict[str, Any]]]:
    generator = np.random.default_rng(seed)
    prompt = [IMAGE_TOKEN + 2, *[IMAGE_TOKEN] * (SIDE // MERGE) ** 2, IMAGE_TOKEN + 3]
    prompt += [int(token) for token in generator.integers(IMAGE_TOKEN, size=24)]
    patches = generator.uniform(-1, 1, (SIDE * SIDE, 3 * 2 * 16 * 16)).astype(np.float32)
    image = {"position": 1, "grid_height": SIDE, "grid_width": SIDE, "patches": patches, "digest": repr(seed).encode()}
    return prompt, [image]


def measure(core: Any, name: str, batch: int, policies: dict[str, str], steps: int) -> list[Row]:
    params = _C.SamplingParams()
    params.temperature, params.ignore_eos = 0.0, True
    # The first ones decode while the last ones' prompts are read.
    params.max_tokens = 2 * batch + WARMUP + steps * len(policies) + 1
    core.set_expert_selection("topk")
    core.reset_stats()
    requests = [request([batch, number]) for number in range(batch)]  # none is in the encoder cache
    start = time.perf_counter()
    waiting = {core.add_request(prompt, params, images=images) for prompt, images in requests}
    ids, ttft = list(waiting), []
    while waiting:
        for output in core.step():
            if output.error:
                raise RuntimeError(output.error)
            if output.request_id in waiting:
                waiting.remove(output.request_id)
                ttft.append(time.perf_counter() - start)
    prompts_s = time.perf_counter() - start
    tower_share = core.stats()["encoder_seconds"] / prompts_s
    for _ in range(WARMUP):
        core.step()
    times: dict[str, list[float]] = {policy: [] for policy in policies}
    active: dict[str, list[float]] = {policy: [] for policy in policies}
    names = {selection: policy for policy, selection in policies.items()}
    for selection, seconds, stats in timed_turns(core, names, batch, steps):
        times[names[selection]] += seconds
        active[names[selection]] += [layer["active"] / layer["steps"] for layer in stats["layers"]]
    for number in ids:
        core.abort(number)
    mean = {policy: statistics.fmean(values) if values else 0.0 for policy, values in active.items()}
    return [
        Row(name, batch, p, 1e3 * statistics.fmean(ttft), prompts_s, tower_share, 1e3 * statistics.median(times[p]), mean[p])
        for p in policies
    ]  # fmt: skip


def report_of(rows: list[Row]) -> str:
    header = [
        "model",
        "B",
        "policy",
        "TTFT ms",
        "tower %",
        "ms/step",
        "experts",
        *[f"tok/s, {n} tokens" for n in ANSWERS],
    ]
    cells = [
        [row.model, str(row.batch), row.policy, f"{row.ttft_ms:.0f}", f"{100 * row.tower_share:.0f}", f"{row.step_ms:.1f}",
         f"{row.experts:.1f}", *[f"{row.tokens_per_s(n):.2f}" for n in ANSWERS]]
        for row in rows
    ]  # fmt: skip
    return "\n".join(table(header, cells))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--tasks", type=Path, required=True, help="of tools/training/picture_tasks.py")
    parser.add_argument("--model", default="bench/models/lynx-nano-vl", help="whose routing is recorded")
    parser.add_argument("--batch", type=positive_ints, default=[1, 4, 8, 16, 32])
    parser.add_argument("--selection", type=selections, default=["topk", "lynx", "oea:k0=2", "cover"])
    parser.add_argument("--steps", type=int, default=24, help="timed steps per policy and batch size")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    routed = {
        batch: record(
            args.out, args.model, args.tasks, args.selection if batch > 1 else ["topk"], batch, 16 * batch + 64
        )
        for batch in args.batch
    }
    rows: list[Row] = []
    for name, text in models(WIDTH).items():
        folder = args.out / name.replace(", ", "-").replace(" ", "-")
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config(text), indent=1), encoding="utf-8")
        core = _C.Engine(
            str(folder),
            load_format="dummy",
            max_num_seqs=max(args.batch),
            max_num_batched_tokens=2048,
            max_model_len=1024,
            enable_prefix_caching=False,
        )
        try:
            device = core.model_info()["device"]
            measure(core, name, 2, {"topk": "topk"}, 4)  # touches the weights
            for batch in args.batch:
                policies = routed[batch] if name == "moe" else {"topk": "topk"}
                rows += measure(core, name, batch, policies, args.steps)
                print(report_of(rows[-len(policies) :]), file=sys.stderr)
        finally:
            core.close()
    report = {"device": device, "cpu": _C.build_info()["cpu_model"], "rows": [asdict(row) for row in rows]}
    (args.out / "picture-speed.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    (args.out / "picture-speed.md").write_text(f"{report['cpu']}; {device}\n\n{report_of(rows)}", encoding="utf-8")
    print(report_of(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
