"""`lynx-rt env`: this build and this machine, for bug reports."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from importlib import metadata
from typing import Any

from lynx_rt.cli.options import format_bytes

_PACKAGES = ("tokenizers", "jinja2", "numpy", "tqdm", "huggingface_hub", "transformers", "torch")


def add_command(commands: Any) -> None:
    parser = commands.add_parser("env", help="describe this build and machine", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from lynx_rt import _C

    facts = {
        **_C.build_info(),
        "platform": platform.platform(),
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in _PACKAGES},
    }
    if args.json:
        print(json.dumps(facts, indent=1))
        return 0
    packages = facts.pop("packages")
    facts["available_memory_bytes"] = format_bytes(facts["available_memory_bytes"])
    facts |= {f"package {name}": version or "not installed" for name, version in packages.items()}
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        print(f"{name:<{width}}  {', '.join(map(str, value)) if isinstance(value, (list, tuple)) else value}")
    return 0


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
