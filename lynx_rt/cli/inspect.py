"""`lynx-rt inspect`: what a model is and what it needs, without reading its weights."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from lynx_rt.cli.machine import available_memory_bytes
from lynx_rt.cli.options import add_model, format_bytes, model_folder
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
    if args.json:
        print(json.dumps(facts, indent=1))
        return 0
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        print(f"{name:<{width}}  {_readable(name, value)}")
    return 0


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
    if isinstance(value, int) and "bytes" in name:
        return f"{value} ({format_bytes(value)})"
    return json.dumps(value) if isinstance(value, (dict, list)) else str(value)
