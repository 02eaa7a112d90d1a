"""Routing of a trained model that benchmarks replay in models with made-up weights, so that a step reads the experts that a router and a
selection policy chose."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def record(out: Path, model: str, tasks: Path, policies: Sequence[str], batch: int, items: int) -> dict[str, str]:
    """Returns policy -> the selection that replays what it chose for `model` in full batches of this size. Files are kept in `out`."""
    texts = {}
    for number, policy in enumerate(policies):
        file = out / f"routed-{batch}-{number}.safetensors"
        if not file.exists():
            command = ["record", model, "--tasks", str(tasks), "--batch", str(batch), "--selection", policy]
            lynx_rt_command(*command, "--items", str(items), "--routed-experts", str(file))
        texts[policy] = f"replay:file={file}"
    return texts


def lynx_rt_command(*arguments: str) -> str:
    """Returns what a command of lynx-rt prints."""
    code = "import sys; from lynx_rt.cli.main import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
