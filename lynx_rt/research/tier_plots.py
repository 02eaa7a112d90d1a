"""Draws simulations of experts on the disk: misses and tokens/s by the share of experts in memory, one panel per batch size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lynx_rt.research.study_plots import DPI, OTHER_STYLES, RC, make_panels, require_matplotlib
from lynx_rt.research.tier_simulation import TierSimulation


def draw_tiers(results: Sequence[TierSimulation], folder: Path) -> list[Path]:
    """Writes misses.png and speed.png, and returns the files. Needs matplotlib."""
    require_matplotlib()
    import matplotlib

    figures: list[tuple[str, str, Callable[[TierSimulation], float]]] = [
        ("misses", "experts read per layer and step", lambda result: result.misses_per_layer),
        ("speed", "tokens per second of the virtual clock", lambda result: result.tokens_per_s),
    ]
    files = []
    with matplotlib.rc_context(RC):
        for name, label, value in figures:
            files.append(folder / f"{name}.png")
            _draw(results, label, value).savefig(files[-1], dpi=DPI)
    return files


def _draw(results: Sequence[TierSimulation], label: str, value: Callable[[TierSimulation], float]) -> Any:
    batches = list(dict.fromkeys(result.batch for result in results))
    variants = list(dict.fromkeys(_variant(result) for result in results))
    styles = dict(zip(variants, OTHER_STYLES * (1 + len(variants) // len(OTHER_STYLES)), strict=False))
    figure, axes = make_panels(len(batches), min(len(batches), 3), (6.4, 4.8) if len(batches) == 1 else (3.9, 3.4))
    for panel, batch in zip(axes, batches, strict=True):
        for variant in variants:
            points = sorted((r.residents, value(r)) for r in results if r.batch == batch and _variant(r) == variant)
            colour, marker = styles[variant]
            panel.plot(
                *zip(*points, strict=True), color=colour, marker=marker, markersize=5, linewidth=1.2, label=variant
            )
        panel.set_ylim(bottom=0)
        panel.set_xlabel("experts in memory")
        panel.set_title("steps as recorded" if batch is None else f"batch {batch}")
    figure.supylabel(label, fontsize=9)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=max(1, int(figure.get_figwidth() / 3)))
    return figure


def _variant(result: TierSimulation) -> str:
    parts = [result.selection, result.policy, *([] if result.prefetch == "none" else [result.prefetch])]
    return ", ".join(parts)
