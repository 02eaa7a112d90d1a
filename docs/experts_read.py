"""Draws docs/experts_read.svg: the experts that one decode step of 16 requests reads, without and with selection.

    lynx-rt record --tasks bench/tasks --batch 16 --items 64 --out routing.npz
    python docs/experts_read.py routing.npz docs/experts_read.svg

The drawing shows the full step and the layer of the recording whose two counts are nearest to the means.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lynx_rt.research.recording import Recording
from lynx_rt.research.simulate import simulate

CELL, GAP, LEFT, TOP, BETWEEN = 11, 2, 24, 76, 48
PITCH = CELL + GAP
COLOURS = {"own": "#2563eb", "moved": "#f59e0b", "read": "#dbeafe", "idle": "#f1f5f9", "text": "#334155"}


def typical(without: list[NDArray[np.int16]], with_: list[NDArray[np.int16]]) -> tuple[int, int]:
    """Returns the (step, layer) whose numbers of experts are nearest to the means over all; steps are [T, L, k]."""

    def counts(steps: list[NDArray[np.int16]]) -> NDArray[np.int64]:
        return np.array([[len(np.unique(s[:, layer][s[:, layer] >= 0])) for layer in range(s.shape[1])] for s in steps])

    away = sum(np.abs(c - c.mean()) for c in (counts(without), counts(with_)))
    step, layer = np.unravel_index(int(np.argmin(away)), away.shape)
    return int(step), int(layer)


def panel(ids: NDArray[np.int16], own: NDArray[np.int16], experts: int, x: int, title: str) -> list[str]:
    """Draws [T, k] ids as rows over `experts` columns, from x on."""
    read = set(ids[ids >= 0].tolist())
    height = len(ids) * PITCH
    out = [f'<text x="{x}" y="{TOP - 12}" font-weight="600">{title}: {len(read)} of {experts} experts are read</text>']
    for e in range(experts):
        fill = COLOURS["read" if e in read else "idle"]
        out.append(f'<rect x="{x + e * PITCH}" y="{TOP}" width="{CELL}" height="{height - GAP}" rx="2" fill="{fill}"/>')
    for t, row in enumerate(ids):
        for e in row[row >= 0].tolist():
            at = f'x="{x + e * PITCH}" y="{TOP + t * PITCH}"'
            out.append(
                f'<rect {at} width="{CELL}" height="{CELL}" rx="2" fill="{COLOURS["own" if e in own[t] else "moved"]}"/>'
            )
    return out


def draw(recording: Recording, batch: int) -> str:
    full = [
        a for a, size in zip(recording.step_offsets, np.diff(recording.step_offsets), strict=False) if size == batch
    ]
    experts = recording.scores.shape[2]
    routed = {policy: simulate(recording, policy).routed_experts for policy in ("topk", "lynx")}
    steps = {policy: [ids[a : a + batch] for a in full] for policy, ids in routed.items()}
    step, layer = typical(steps["topk"], steps["lynx"])
    own, lynx = steps["topk"][step][:, layer], steps["lynx"][step][:, layer]
    second = LEFT + experts * PITCH + BETWEEN
    width, height = second + experts * PITCH + LEFT, TOP + batch * PITCH + 44
    legend = [
        f'<rect x="{LEFT + x}" y="{height - 28}" width="{CELL}" height="{CELL}" rx="2" fill="{COLOURS[name]}"/>'
        f'<text x="{LEFT + x + 18}" y="{height - 18}">{text}</text>'
        for x, name, text in (
            (0, "read", "expert read from memory"),
            (210, "own", "used by a request that chose it"),
            (460, "moved", "used instead of one that is not read"),
        )
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'font-family="system-ui, sans-serif" font-size="13" fill="{COLOURS["text"]}">',
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            f'<text x="{LEFT}" y="24">One layer of one decode step: each row is one of {batch} requests, each column an expert.</text>',
            *panel(own, own, experts, LEFT, "The model's own routing"),
            *panel(lynx, own, experts, second, "With lynx"),
            *legend,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    source, target = sys.argv[1:]
    Path(target).write_text(draw(Recording.load(source), batch=16))
