"""`lynx-rt inspect`: what a model is and what it needs, without reading its weights.

For each value of `quantization`, as an Engine on the CPU would have it: the bytes of the weights that stay in the mapped files, which
the system can drop and read again, and of those in memory of their own; the bytes that a decode step of one request reads beside K and
V; and an upper bound of its tokens/s, which is the memory's rate of plain reading, measured now, divided by them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from lynx_rt.cli.machine import available_memory_bytes
from lynx_rt.cli.options import add_model, format_bytes, format_table, model_folder
from lynx_rt.engine.bandwidth import is_bound_by_memory, measure_bandwidth
from lynx_rt.errors import LynxError


def add_command(commands: Any) -> None:
    parser = commands.add_parser("inspect", help="describe a model folder", description=__doc__)
    add_model(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from lynx_rt import _C

    folder = model_folder(args)
    facts = _C.inspect(folder)
    facts["available_memory_bytes"] = available_memory_bytes()
    facts["fits"] = facts["weight_bytes"] < facts["available_memory_bytes"]
    facts["tokenizer"] = _tokenizer(folder)
    _add_speeds(facts)
    if args.json:
        print(json.dumps(facts, indent=1))
        return 0
    options = facts.pop("options")
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        print(f"{name:<{width}}  {_readable(name, value)}")
    print("\n" + _table(options))
    return 0


def _add_speeds(facts: dict[str, Any]) -> None:
    """Adds an upper bound of the tokens/s of one request to each option; None for weights that stay in caches."""
    large = [o for o in facts["options"] if is_bound_by_memory(o["weight_bytes"])]
    rate = measure_bandwidth() if large else None
    facts["read_bytes_per_s"] = rate
    for option in facts["options"]:
        option["max_tokens_per_s"] = rate / option["bytes_per_token"] if rate and option in large else None


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
    if name == "read_bytes_per_s":
        return f"{format_bytes(value)}/s"
    if isinstance(value, int) and "bytes" in name:
        return f"{value} ({format_bytes(value)})"
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)
