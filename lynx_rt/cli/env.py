"""`lynx-rt env`: this build and this machine, for bug reports.

The number of threads is that of an engine's default. Where cores differ, or have several CPUs, some are measured for it.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from importlib import metadata
from typing import Any

from lynx_rt.cli.machine import cpu_threads
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
        "threads": cpu_threads(),
        "platform": platform.platform(),
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in _PACKAGES},
    }
    if args.json:
        print(json.dumps(facts, indent=1))
        return 0
    packages, threads = facts.pop("packages"), facts.pop("threads")
    facts["available_memory_bytes"] = format_bytes(facts["available_memory_bytes"])
    facts |= _about_threads(threads)
    facts |= {f"package {name}": version or "not installed" for name, version in packages.items()}
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        print(f"{name:<{width}}  {', '.join(map(str, value)) if isinstance(value, (list, tuple)) else value}")
    return 0


def _about_threads(threads: dict[str, Any]) -> dict[str, str]:
    """Returns a line for the cores, the memory nodes and the quota, for the threads, and for where these and their pages are."""
    kinds = [
        f"{kind['cores']} ({kind['name']})" + (f" with {kind['cpus']} CPUs" if kind["cpus"] > kind["cores"] else "")
        for kind in threads["kinds"]
    ]
    quota = "none" if threads["cpu_quota"] is None else f"{threads['cpu_quota']:g} CPUs"
    groups = [_ranges(cpus) for cpus in threads["bound_to"]]
    places = f"bound to CPUs {' and '.join(groups)}" if groups else "not bound"
    if threads["bind_error"]:
        places = f"not bound: {threads['bind_error']}"
    pages = (
        f"spread over nodes {_ranges(threads['interleaved_nodes'])}"
        if threads["interleaved_nodes"]
        else "where touched"
    )
    if threads["interleave_error"]:
        pages = f"where touched: {threads['interleave_error']}"
    return {
        "cores": " + ".join(kinds),
        "memory_nodes": _ranges(threads["nodes"]),
        "cpu_quota": quota,
        "threads": f"{threads['num_threads']}: {threads['reason']}",
        "threads_run": places,
        "pages_lie": pages,
    }


def _ranges(numbers: list[int]) -> str:
    """Returns rising numbers as "0-3,8"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
