"""`lynx-rt inspect`: what a model is and what it needs, without reading its weights.

For each value of `quantization`, as an Engine on the CPU would have it: the bytes of the weights that stay in the mapped files, which
the system can drop and read again, and of those in memory of their own; the bytes that a decode step of one request reads beside K and
V; and an upper bound of its tokens/s, which is the memory's rate of plain reading, measured now, divided by them.

With --memory, for a model that is larger than that (docs/tiers.md): how an Engine with the same `memory`, max_num_seqs and max_model_len
would divide it, with the experts in a file of their own: the bytes of the KV cache and the tokens that a request may have, the bytes for
experts, their share of all, the share of uses that are expected to find their expert in memory, the bytes that a token is expected to read
from the disk, and tokens/s by the disk's rate, measured now on the model's own file.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lynx_rt.cli.machine import available_memory_bytes
from lynx_rt.cli.options import add_model, format_bytes, format_table, model_folder, positive_int
from lynx_rt.engine.bandwidth import is_bound_by_memory, measure_bandwidth
from lynx_rt.engine.tier_plan import largest_file, plan
from lynx_rt.errors import LynxError


def add_command(commands: Any) -> None:
    parser = commands.add_parser("inspect", help="describe a model folder", description=__doc__)
    add_model(parser)
    parser.add_argument(
        "--memory", metavar="SIZE", help="also plan for so much memory: 8GB, 512MiB, 50%% of what is free"
    )
    parser.add_argument("--max-num-seqs", type=positive_int, default=128, help="running requests (default: 128)")
    parser.add_argument("--max-model-len", type=positive_int, help="tokens of a request (default: the model's)")
    parser.add_argument(
        "--expert-policy",
        default="lfu",
        metavar="POLICY",
        help="as an Engine's: copies in low precision, with miss=low or hi_lo, take a part of the memory (default: lfu)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from lynx_rt import _C

    memory = _C.parse_memory(args.memory) if args.memory else None
    folder = model_folder(args)
    facts = _C.inspect(folder)
    facts["available_memory_bytes"] = available_memory_bytes()
    facts["fits"] = facts["weight_bytes"] < facts["available_memory_bytes"]
    facts["tokenizer"] = _tokenizer(folder)
    _add_speeds(facts)
    if memory is not None:
        _add_plans(facts, folder, memory, args)
    if args.json:
        print(json.dumps(facts, indent=1))
        return 0
    options = facts.pop("options")
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        print(f"{name:<{width}}  {_readable(name, value)}")
    print("\n" + _table(options))
    if memory is not None:
        print(f"\nwith {format_bytes(memory)} of memory\n" + _plan_table(options))
    return 0


def _add_speeds(facts: dict[str, Any]) -> None:
    """Adds an upper bound of the tokens/s of one request to each option; None for weights that stay in caches."""
    large = [o for o in facts["options"] if is_bound_by_memory(o["weight_bytes"])]
    rate = measure_bandwidth() if large else None
    facts["read_bytes_per_s"] = rate
    for option in facts["options"]:
        option["max_tokens_per_s"] = rate / option["bytes_per_token"] if rate and option in large else None


def _add_plans(facts: dict[str, Any], folder: str, memory: int, args: argparse.Namespace) -> None:
    from lynx_rt import _C

    divisions = _C.foretell_memory(folder, memory, args.max_num_seqs, args.max_model_len or 0, args.expert_policy)
    file = largest_file(folder)
    facts["disk_bytes_per_s"] = rate = (_C.disk_rate(str(file)) if file else 0.0) or None
    for option, division in zip(facts["options"], divisions, strict=True):
        option["plan"] = asdict(plan(facts, option, division, rate))


def _plan_table(options: list[dict[str, Any]]) -> str:
    header = ["quantization", "KV cache", "tokens", "for experts", "in memory", "hits", "disk per token", "tokens/s"]
    rows: list[list[str]] = []
    for o in options:
        p = o["plan"]
        if p["problem"]:
            rows.append([o["quantization"], "does not fit", *[""] * 6])
            continue
        shares = [f"{100 * p[name]:.0f} %" for name in ("resident_share", "hit_rate")]
        speed = "-" if p["tokens_per_s"] is None else f"{p['tokens_per_s']:.3g}"
        sizes = [format_bytes(p["kv_memory"]), str(p["max_model_len"]), format_bytes(p["expert_memory"])]
        rows.append([o["quantization"], *sizes, *shares, format_bytes(p["read_per_token"]), speed])
    problems = [f"{o['quantization']}: {o['plan']['problem']}" for o in options if o["plan"]["problem"]]
    return "\n".join([format_table(header, rows), *problems])


def _table(options: list[dict[str, Any]]) -> str:
    header = ["quantization", "weights", "in files", "own memory", "read per token", "tokens/s at most"]
    names = ("weight_bytes", "mapped_weight_bytes", "anonymous_weight_bytes", "bytes_per_token")
    rows = []
    for o in options:
        speed = "-" if o["max_tokens_per_s"] is None else f"{o['max_tokens_per_s']:.3g}"
        rows.append([o["quantization"], *(format_bytes(o[name]) for name in names), speed])
    return format_table(header, rows)


def _tokenizer(folder: str) -> str | None:
    """Returns the name of the vocabulary's file; None, and a line on stderr, if an Engine would find none that works."""
    from lynx_rt.text.tokenizer import Tokenizer
    from lynx_rt.text.tokenizer_files import find_tokenizer_file

    try:
        Tokenizer(folder)
        return find_tokenizer_file(Path(folder)).name
    except LynxError as error:
        print(f"lynx-rt: {error}", file=sys.stderr)
        return None


def _readable(name: str, value: Any) -> str:
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name in ("read_bytes_per_s", "disk_bytes_per_s"):
        return f"{format_bytes(value)}/s"
    if isinstance(value, int) and "bytes" in name:
        return f"{value} ({format_bytes(value)})"
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)
