"""Draws the plots of a study. A family of policies has the same colour and marker in all plots; topk is the black line."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lynx_rt.research.study import MINORITY, REFERENCE
from lynx_rt.research.study_stats import Estimate, Group, Setup, describe_batches, front_of

# Okabe and Ito's colours, for all kinds of colour vision. Families that share a colour have markers that do not look alike.
_BLUE, _ORANGE, _GREEN, _RED, _SKY, _PINK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7"
_STYLES = {
    REFERENCE: ("black", "X"),
    "lynx": (_BLUE, "o"),
    "oea": (_RED, "s"),
    "xshare": (_GREEN, "^"),
    "sere": (_ORANGE, "D"),
    "lynx_literal": (_SKY, "P"),
    "des_vote": (_PINK, "v"),
    "skip": (_BLUE, "<"),
    "top_j": (_RED, "*"),
    "top1": (_GREEN, "h"),
    "deny_rank": (_ORANGE, ">"),
    "capacity": (_SKY, "d"),
    "alias": (_PINK, "p"),
    "replay": ("#777777", "8"),
}
OTHER_STYLES = [
    (colour, marker) for marker in ("H", "s", "^", "o") for colour in (_PINK, _SKY, _GREEN, _ORANGE, _RED, _BLUE)
]
_BELOW = 8.0  # points under topk that an accuracy axis shows; lower values are marked at its lower edge
DPI = 150
RC: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def require_matplotlib() -> Any:
    """Returns matplotlib.figure. Raises ImportError that says how to install it."""
    try:
        import matplotlib.figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'lynx_rt[study]', or use --no-plots") from error
    return matplotlib.figure


def draw(setups: Sequence[Setup], folder: Path) -> list[Path]:
    """Draws the plots that the runs suffice for, and returns their files."""
    require_matplotlib()
    import matplotlib

    files = []
    with matplotlib.rc_context(RC):
        for place, setup in enumerate(setups):
            styles = _styles(setup.policies)
            for name, figure in _figures(setup, styles):
                prefix = f"{place + 1}-{_slug(setup.title)}-" if len(setups) > 1 else ""
                files.append(folder / f"{prefix}{_slug(name)}.png")
                figure.savefig(files[-1], dpi=DPI)
    return files


def _figures(setup: Setup, styles: dict[str, tuple[str, str]]) -> list[tuple[str, Any]]:
    figures = []
    for batches in setup.compositions:
        if batches.startswith(MINORITY):
            continue
        cost = ("experts read per layer and step", lambda group: group.mean("active"))
        figures.append((f"accuracy-experts-{batches}", _accuracy(setup, batches, styles, *cost)))
        speed = ("tokens per second of decode-only steps", lambda group: group.mean("decode_tokens_per_s"))
        figures.append((f"accuracy-speed-{batches}", _accuracy(setup, batches, styles, *speed, more_is_better=True)))
        if len(setup.batch_sizes(batches)) > 1:
            figures.append((f"experts-batch-{batches}", _experts_by_batch(setup, batches, styles)))
        figures.append((f"layers-{batches}", _layers(setup, batches)))
    if any(batches.startswith(MINORITY) for batches in setup.compositions):
        figures.append(("minority", _minority(setup, styles)))
    return figures


def family(policy: str) -> str:
    """Returns "lynx" for "lynx:alpha=4@0-1"."""
    return re.split(r"[:@]", policy)[0]


def _styles(policies: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Returns colour and marker of each family that occurs: topk first, then in the order of _STYLES."""
    names = {family(policy) for policy in policies}
    unknown = dict(
        zip(sorted(names - set(_STYLES)), OTHER_STYLES * (1 + len(names) // len(OTHER_STYLES)), strict=False)
    )
    return {name: style for name, style in {**_STYLES, **unknown}.items() if name in names}


def _accuracy(
    setup: Setup,
    batches: str,
    styles: dict[str, tuple[str, str]],
    x_label: str,
    x_of: Callable[[Group], float],
    more_is_better: bool = False,
) -> Any:
    """Draws one panel per batch size: accuracy against x, with the front through the policies that no other one beats."""
    sizes = setup.batch_sizes(batches)
    columns = min(len(sizes), 3)
    figure, panels = make_panels(len(sizes), columns, (6.4, 4.8) if len(sizes) == 1 else (3.9, 3.4), sharey=True)
    references = [r for batch in sizes if (r := setup.reference(setup.at(batches, batch)[0])) is not None]
    floor = min((100 * r.accuracy().value - _BELOW for r in references), default=-math.inf)
    has_low = False
    for panel, batch in zip(panels, sizes, strict=True):
        groups = setup.at(batches, batch)
        reference = setup.reference(groups[0])
        xs, ys = [x_of(group) for group in groups], [100 * group.accuracy().value for group in groups]
        if reference is not None:
            panel.axhline(100 * reference.accuracy().value, color="black", linewidth=1)
        front = front_of(groups, lambda group: -x_of(group) if more_is_better else x_of(group))
        front = [place for place in front if ys[place] > floor]
        panel.plot(
            [xs[i] for i in front], [ys[i] for i in front], color="#555555", linestyle="--", linewidth=1, zorder=2
        )
        for group, x, y in zip(groups, xs, ys, strict=True):
            colour, marker = styles[family(group.policy)]
            change = None if reference is None or reference is group else group.difference(reference)
            if y > floor:
                error = _bar_of(change)
                panel.errorbar(
                    x, y, yerr=error, color=colour, marker=marker, markersize=6, elinewidth=1, capsize=2, zorder=3
                )
            else:
                panel.plot(x, floor, color=colour, marker=marker, markersize=6, clip_on=False, zorder=3)
                panel.annotate(f"{y:.0f} % ↓", (x, floor), (0, 6), textcoords="offset points", ha="center", fontsize=7)
        _label_front(panel, setup, [(xs[place], ys[place], groups[place].policy) for place in front], more_is_better)
        has_low |= min(ys) <= floor
        span = max(xs) - min(xs) or 1.0
        left, right = (0.1, 0.35) if more_is_better else (0.35, 0.1)  # the wider side leaves room for names
        panel.set_xlim(min(xs) - left * span, max(xs) + right * span)
        panel.margins(y=0.12)
        panel.set_title(f"batch {batch}")
        panel.set_xlabel(x_label)
    if has_low:  # the axis is shared by all panels
        panels[0].set_ylim(bottom=floor)
    figure.supylabel("accuracy, mean over tasks (%)", fontsize=9)
    best = "upper right" if more_is_better else "upper left"
    figure.suptitle(f"{setup.title}, {describe_batches(batches)}: best is {best}", fontsize=10)
    _legend(figure, styles, front=True)
    return figure


def _bar_of(change: Estimate | None) -> float | None:
    """Returns the standard error of the paired difference in points: the larger of the errors over items and over seeds."""
    errors = [] if change is None else [e for e in (change.items_error, change.seeds_error) if not math.isnan(e)]
    return 100 * max(errors) if errors else None


def _experts_by_batch(setup: Setup, batches: str, styles: dict[str, tuple[str, str]]) -> Any:
    figure, (panel,) = make_panels(1, 1, (6.6, 4.6))
    ends = []
    for policy in setup.policies:
        groups = sorted([group for group in setup.at(batches) if group.policy == policy], key=lambda group: group.batch)
        if not groups:
            continue
        colour, marker = styles[family(policy)]
        sizes, active = [group.batch for group in groups], [group.mean("active") for group in groups]
        panel.plot(sizes, active, color=colour, marker=marker, markersize=5, linewidth=1.2)
        ends.append((active[-1], sizes[-1], setup.names[policy], colour))
    num_experts = setup.groups[0].runs[0]["results"]["num_experts"]
    panel.set_xscale("log", base=2)
    ticks = setup.batch_sizes(batches)
    panel.set_xticks(ticks, [str(size) for size in ticks])
    panel.set_ylim(0, num_experts)
    for (_, x, text, colour), y in zip(ends, _spread([end[0] for end in ends], 0.035 * num_experts), strict=True):
        panel.annotate(text, (x, y), (7, 0), textcoords="offset points", va="center", fontsize=7, color=colour)
    panel.set_xlabel("sequences decoded together")
    panel.set_ylabel(f"experts read per layer and step (of {num_experts})")
    panel.set_title(f"{setup.title}, {describe_batches(batches)}")
    _legend(figure, styles)
    return figure


def _layers(setup: Setup, batches: str) -> Any:
    """Draws a heat map of the layers at batch 16, or at the largest batch if there is no 16."""
    sizes = setup.batch_sizes(batches)
    batch = 16 if 16 in sizes else sizes[-1]
    groups = [group for group in setup.at(batches, batch) if family(group.policy) != REFERENCE] or setup.at(
        batches, batch
    )
    ratios = [[100 * ratio for ratio in group.layer_ratio()] for group in groups]
    width, height = 2.6 + 0.5 * len(ratios[0]), 1.3 + 0.32 * len(groups)
    figure, (panel,) = make_panels(1, 1, (min(max(width, 5), 16), max(height, 2.4)))
    image = panel.imshow(ratios, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    layers = [layer["layer"] for layer in groups[0].runs[0]["results"]["layers"]]
    panel.set_xticks(range(len(layers)), layers)
    panel.set_yticks(range(len(groups)), [setup.names[group.policy] for group in groups])
    panel.grid(False)
    if len(layers) <= 32:
        for row, values in enumerate(ratios):
            for column, value in enumerate(values):
                colour = "white" if value < 65 else "black"
                panel.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    panel.set_xlabel("layer")
    panel.set_title(f"{setup.title}, {describe_batches(batches)}, batch {batch}")
    figure.colorbar(image, ax=panel, label="experts read (% of topk's union)")
    return figure


def _minority(setup: Setup, styles: dict[str, tuple[str, str]]) -> Any:
    """Draws a task's accuracy among other tasks, and alone in its batch if there are such runs; a panel per task and batch size."""
    cases = [(b, size) for b in setup.compositions if b.startswith(MINORITY) for size in setup.batch_sizes(b)]
    cases = [case for case in cases if case[1] > 1] or cases  # a batch of one row has no other tasks in it
    policies = [
        policy for policy in setup.policies if any(group.policy == policy for b, s in cases for group in setup.at(b, s))
    ]
    figure, panels = make_panels(
        len(cases), min(len(cases), 3), (4.4, 1.4 + 0.3 * len(policies)), sharex="row", sharey=True
    )
    for panel, (batches, size) in zip(panels, cases, strict=True):
        task = batches.removeprefix(MINORITY)
        for composition, shift, fill in ((batches, -0.12, True), ("single", 0.12, False)):
            reference = setup.find(REFERENCE, size, composition)
            if reference is None:
                continue
            line = "-" if fill else ":"
            panel.axvline(100 * reference.accuracy(task).value, color="black", linewidth=1, linestyle=line)
            for row, policy in enumerate(policies):
                group = setup.find(policy, size, composition)
                if group is None:
                    continue
                colour, marker = styles[family(policy)]
                error = None if group is reference else _bar_of(group.difference(reference, task))
                face = colour if fill else "white"
                x = 100 * group.accuracy(task).value
                panel.errorbar(
                    x,
                    row + shift,
                    xerr=error,
                    color=colour,
                    marker=marker,
                    mfc=face,
                    markersize=6,
                    elinewidth=1,
                    capsize=2,
                )
        low, high = panel.get_xlim()
        if high - low < 4:
            panel.set_xlim((low + high) / 2 - 2, (low + high) / 2 + 2)
        panel.set_yticks(range(len(policies)), [setup.names[policy] for policy in policies])
        panel.set_ylim(len(policies) - 0.5, -0.5)
        panel.set_title(f"{task}, batch {size}")
    figure.supxlabel(
        "accuracy of that task (%); filled, solid line: one of 16 rows; hollow, dotted line: alone in its batch",
        fontsize=8,
    )
    figure.suptitle(f"{setup.title}: a task as a minority", fontsize=10)
    return figure


def make_panels(count: int, columns: int, size: tuple[float, float], **shared: Any) -> tuple[Any, list[Any]]:
    rows = -(-count // columns)
    figure = require_matplotlib().Figure(figsize=(size[0] * columns, size[1] * rows))
    panels = figure.subplots(rows, columns, squeeze=False, **shared).flatten().tolist()
    for panel in panels[count:]:
        panel.set_visible(False)
    return figure, panels[:count]


def _legend(figure: Any, styles: dict[str, tuple[str, str]], front: bool = False) -> None:
    from matplotlib.lines import Line2D

    entries = [Line2D([], [], color=c, marker=m, linestyle="", label=name) for name, (c, m) in styles.items()]
    if front:
        entries.append(Line2D([], [], color="#555555", linestyle="--", linewidth=1, label="Pareto front"))
        entries.append(Line2D([], [], color="black", linewidth=1, label="accuracy of topk"))
    figure.legend(
        handles=entries, loc="outside lower center", ncols=min(len(entries), int(figure.get_figwidth() / 1.3))
    )


def _label_front(panel: Any, setup: Setup, front: Sequence[tuple[float, float, str]], to_the_right: bool) -> None:
    """Writes the policies' names beside their points, on the empty side of the front; one label where points coincide."""
    from matplotlib.patheffects import withStroke

    names: dict[tuple[float, float], list[str]] = {}
    for x, y, policy in front:
        names.setdefault((round(x, 6), round(y, 6)), []).append(setup.names[policy])
    where = {"xytext": (5 if to_the_right else -5, 5), "ha": "left" if to_the_right else "right"}
    for point, at in names.items():
        text = at[0] if len(at) == 1 else f"{at[0]} and {len(at) - 1} more"
        halo = [withStroke(linewidth=2, foreground="white")]
        panel.annotate(text, point, textcoords="offset points", fontsize=7, zorder=2.5, path_effects=halo, **where)


def _spread(values: Sequence[float], gap: float) -> list[float]:
    """Returns the values, moved up as little as keeps neighbours `gap` apart."""
    moved = list(values)
    below = -math.inf
    for place in sorted(range(len(values)), key=lambda i: values[i]):
        moved[place] = below = max(values[place], below + gap)
    return moved


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")
