"""`lynx-rt inspect`: what a model is and what it needs, without reading its weights."""

from __future__ import annotations

import argparse
import json
from typing import Any

from lynx_rt.cli.machine import available_memory_bytes
from lynx_rt.cli.options import add_model, format_bytes, model_folder


def add_command(commands: Any) -> None:
    parser = commands.add_parser("inspect", help="describe a model folder", description=__doc__)
    add_model(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from lynx_rt import _C

    facts = _C.inspect(model_folder(args))
    facts["available_memory_bytes"] = available_memory_bytes()
    facts["fits"] = facts["weight_bytes"] < facts["available_memory_bytes"]
    if args.json:
        print(json.dumps(facts, indent=1))
        return 0
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        print(f"{name:<{width}}  {_readable(name, value)}")
    return 0


def _readable(name: str, value: Any) -> str:
    if value is None or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and "bytes" in name:
        return f"{value} ({format_bytes(value)})"
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)
