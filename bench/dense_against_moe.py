"""Measures the decode speed of a MoE model beside dense models of equal active and equal total size, with and without expert selection.

    python bench/dense_against_moe.py --out DIR [--batch 1,4,8,16,32,64] [--model lynx-nano folder] [--tasks bench/tasks]

The MoE model has the shape of lynx-nano (8 layers, 4 of 32 experts) at 1.2 billion parameters, with made-up weights. The time of a step
depends on their values only through the routing, and the routing is a recorded one: lynx-nano decodes the task sets in full batches of
each size under each policy, and its routing is replayed. So a step reads the experts that a trained router and the policy chose. The
dense models differ in the width of their MLP alone: k and E times an expert's.

For every policy the report compares two ratios to the replayed routing of topk at the same batch size: the time of its steps, and the
bytes that they had to read. If memory is the limit, the two are equal. Writes DIR/dense-against-moe.json and .md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from recorded_routing import lynx_rt_command, record

import lynx_rt
from lynx_rt.cli.options import positive_ints, selections

_LAYERS, _EXPERTS, _TOP_K = 8, 32, 4
SHAPE = {
    "hidden_size": 1024,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "eos_token_id": 2,
    "hidden_act": "silu",
    "attention_bias": False,
}


def models(width: int) -> dict[str, dict[str, Any]]:
    """Returns the keys of config.json in which the models differ; experts have this width."""
    return {
        "moe": {
            "model_type": "qwen3_moe",
            "num_experts": _EXPERTS,
            "num_experts_per_tok": _TOP_K,
            "moe_intermediate_size": width,
            "intermediate_size": width,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        },
        "dense, equal active size": {"model_type": "qwen3", "intermediate_size": _TOP_K * width},
        "dense, equal total size": {"model_type": "qwen3", "intermediate_size": _EXPERTS * width},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--batch", type=positive_ints, default=[1, 4, 8, 16, 32, 64])
    parser.add_argument(
        "--selection", type=selections, default=["topk", "lynx"], help="the first is what is compared with"
    )
    parser.add_argument(
        "--model", default=lynx_rt.shipped_model(), help="whose routing is recorded (default: lynx-nano)"
    )
    parser.add_argument("--tasks", type=Path, default=Path(__file__).parent / "tasks")
    parser.add_argument("--steps", type=int, default=64, help="timed steps per policy and batch size (default: 64)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    rows = []
    for name, config in models(1536).items():
        folder = args.out / name.replace(", ", "-").replace(" ", "-")
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps({**SHAPE, **config}, indent=1), encoding="utf-8")
        # A dense model has no routing, so that all its batch sizes fit one run.
        runs = [(args.batch, {"topk": "topk"})] if name != "moe" else [([b], _recorded(args, b)) for b in args.batch]
        for batches, policies in runs:
            report = _bench(folder, batches, list(policies.values()), args.steps)
            for number, row in enumerate(report["rows"]):
                policy = list(policies)[number % len(policies)]
                rows.append(
                    {
                        **row,
                        "model": name,
                        "policy": policy,
                        "device": report["model_info"]["device"],
                        "cpu": report["build"]["cpu_model"],
                    }
                )
                print(f"{name}, batch {row['batch']}, {policy}: {row['median_ms']:.2f} ms", file=sys.stderr)
    (args.out / "dense-against-moe.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    (args.out / "dense-against-moe.md").write_text(_table(rows, args.selection[0]), encoding="utf-8")
    print(_table(rows, args.selection[0]))
    return 0


def _recorded(args: argparse.Namespace, batch: int) -> dict[str, str]:
    """At one row, one policy stands for all."""
    policies = args.selection if batch > 1 else args.selection[:1]
    return record(args.out, args.model, args.tasks, policies, batch, 8 * batch + 64)


def _bench(folder: Path, batches: list[int], policies: list[str], steps: int) -> dict[str, Any]:
    sizes = ",".join(str(batch) for batch in batches)
    command = ["bench", "decode", str(folder), "--load-format", "dummy", "--batch", sizes, "--steps", str(steps)]
    report: dict[str, Any] = json.loads(lynx_rt_command(*command, "--selection", ",".join(policies), "--json"))
    return report


def _table(rows: list[dict[str, Any]], base_policy: str) -> str:
    machines = dict.fromkeys(f"{row['cpu']}; {row['device']}" for row in rows)
    lines = [
        *machines,
        "",
        "| model | batch | policy | experts read | ms/step | tok/s | bytes/step | bytes, ratio | time, ratio | time / bytes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["model"], row["batch"], row["policy"], f"{row['active']:.1f}", f"{row['median_ms']:.2f}"]
        cells += [f"{row['tokens_per_s']:.0f}", f"{row['bytes_per_step'] / 1e6:.0f} MB"]
        base = next(
            (r for r in rows if (r["model"], r["batch"], r["policy"]) == (row["model"], row["batch"], base_policy)), row
        )
        if row is not base:
            read, took = row["bytes_per_step"] / base["bytes_per_step"], row["median_ms"] / base["median_ms"]
            cells += [f"{read:.3f}", f"{took:.3f}", f"{took / read:.3f}"]
        else:
            cells += ["", "", ""]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
