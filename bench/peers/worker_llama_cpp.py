"""Measures llama.cpp with its own llama-batched-bench, on the GGUF file of the variant (to_gguf.py writes it). See workload.py.

llama-batched-bench feeds random tokens and leaves out sampling. The time of a step is the mean over all steps after the prompts.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import workload as shared


def main() -> None:
    workload, report = shared.begin()
    binaries = Path(workload.build) / "bin"
    report(version=version(binaries))
    report(note=f"{Path(workload.gguf).stat().st_size / 1e9:.2f} GB file")

    started = False
    batches = [batch for batch in workload.batches for _ in range(workload.repeats)]
    for row in run(binaries, workload, workload.context, shared.FIRST + workload.steps, batches):
        if row:
            report(batch=int(row["B"]), decode_ms=row["B"] / row["S_TG t/s"] * 1e3)
        elif not started:
            report(ready=True)
            started = True
    if workload.prefill:
        for row in run(binaries, workload, workload.prefill, 1, [1] * workload.repeats):
            if row:
                report(prefill_ms=workload.prefill / row["S_PP t/s"] * 1e3)


def run(
    binaries: Path, workload: shared.Workload, prompt: int, steps: int, batches: list[int]
) -> Iterator[dict[str, float]]:
    """Yields the rows of its table as they are printed. An empty row comes first, for the table's head, printed after a first step."""
    tokens = max(batches) * (prompt + steps)
    command = [str(binaries / "llama-batched-bench"), "-m", workload.gguf, "-t", str(workload.threads)]
    command += ["-npp", str(prompt), "-ntg", str(steps), "-npl", ",".join(map(str, batches))]
    command += ["-c", str(max(tokens, 512))]
    count = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sys.stderr, text=True) as process:
        assert process.stdout is not None
        header: list[str] = []
        for line in process.stdout:
            if not line.startswith("|"):
                continue
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            if not header:
                header = cells
                yield {}
            elif re.fullmatch(r"[\d.]+", cells[0]):
                yield dict(zip(header, map(float, cells), strict=True))
                count += 1
    if process.returncode or count != len(batches):
        sys.exit(f"llama-batched-bench ended with {process.returncode} after {count} of {len(batches)} rows")


def version(binaries: Path) -> str:
    done = subprocess.run([binaries / "llama-batched-bench", "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"version: *(.+)", done.stdout + done.stderr)
    return found[1] if found else "unknown"


if __name__ == "__main__":
    main()
