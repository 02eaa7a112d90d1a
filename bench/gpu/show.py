"""Prints the results of bench/gpu/run as tables, one per kind of measurement, without what all rows share.

python3 bench/gpu/show.py results.jsonl [--only expert_ffn,engine]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e5 else f"{value:.3e}"
    return str(value)


def table(rows: list[dict[str, Any]]) -> str:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cells = [keys, ["---"] * len(keys), *([text(row.get(key)) for key in keys] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", default="", help="kinds, comma-separated")
    args = parser.parse_args()
    kinds: dict[str, list[dict[str, Any]]] = {}
    for line in args.file.read_text().splitlines():
        row = json.loads(line)
        kinds.setdefault(row.pop("bench"), []).append(row)
    for kind, rows in kinds.items():
        if args.only and kind not in args.only.split(","):
            continue
        shared = {key for key in ("device", "commit") if len({row.get(key) for row in rows}) == 1}
        head = ", ".join(f"{key} {rows[0].get(key)}" for key in sorted(shared))
        print(f"\n{kind} ({head})\n")
        print(table([{key: value for key, value in row.items() if key not in shared} for row in rows]))


if __name__ == "__main__":
    main()
