"""Draws load tests: p99 TPOT by rate, and goodput by rate, one line per policy, by its name without keys.

python docs/serve_plots.py tpot "TITLE=FILE.json" ... OUT.svg       # files of bench/serve_goodput.py
python docs/serve_plots.py goodput "TITLE=DIR" ... OUT.svg          # folders of lynx-rt bench serve --result-dir
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

WIDTH, HEIGHT, LEFT, TOP, GAP = 400, 250, 56, 56, 84
COLOURS = ("#334155", "#2563eb", "#f59e0b", "#16a34a", "#db2777", "#7c3aed")
Series = dict[str, list[tuple[float, float]]]


def of_trials(path: str) -> tuple[Series, float, float, str, str]:
    """Returns the least p99 TPOT of each rate's trials, the target, and how far the axis goes."""
    report = json.loads(Path(path).read_text())
    target = report["target_ms"]
    series: Series = {}
    for name, trials in report["policies"].items():
        best: dict[float, float] = {}
        for trial in trials:
            best[trial["rate"]] = min(trial["p99_tpot_ms"], best.get(trial["rate"], float("inf")))
        series[name.partition(":")[0]] = sorted(best.items())
    return series, target, 2.5 * target, "requests per second", "p99 TPOT, ms"


def of_points(path: str) -> tuple[Series, float, float, str, str]:
    """Returns the goodput of each rate."""
    series: Series = defaultdict(list)
    for file in sorted(Path(path).glob("*.json")):
        point = json.loads(file.read_text())
        series[point["selection"].partition(":")[0]].append((point["request_rate"], point["request_goodput"]))
    most = max(y for line in series.values() for _, y in line)
    return dict(series), 0.0, 1.1 * most, "requests per second, sent", "goodput, requests per second"


def step(most: float) -> float:
    """Returns a round distance of about five ticks."""
    unit = 1.0
    while most / unit > 50:
        unit *= 10
    while most / unit < 5:
        unit /= 10
    return next(unit * factor for factor in (1, 2, 5, 10) if most / (unit * factor) <= 6)


def panel(x: float, title: str, data: tuple[Series, float, float, str, str], colours: dict[str, str]) -> list[str]:
    series, target, top, x_name, y_name = data
    right = 1.05 * max(px for line in series.values() for px, _ in line)

    def at(px: float, py: float) -> tuple[float, float]:
        return x + px / right * WIDTH, TOP + HEIGHT - min(py, top) / top * HEIGHT

    out = [f'<text x="{x}" y="{TOP - 26}" font-weight="600">{title}</text>']
    out.append(f'<text x="{x - 40}" y="{TOP - 8}" font-size="11">{y_name}</text>')
    out.append(f'<text x="{x + WIDTH}" y="{TOP + HEIGHT + 34}" text-anchor="end" font-size="11">{x_name}</text>')
    for most, vertical in ((top, False), (right, True)):
        distance, value = step(most), 0.0
        while value <= most:
            px, py = at(value, 0) if vertical else at(0, value)
            end = f'x2="{px:.1f}" y2="{TOP}"' if vertical else f'x2="{x + WIDTH}" y2="{py:.1f}"'
            out.append(f'<line x1="{px:.1f}" y1="{py:.1f}" {end} stroke="#e2e8f0"/>')
            place = (
                f'x="{px:.1f}" y="{py + 16:.1f}" text-anchor="middle"'
                if vertical
                else f'x="{x - 6}" y="{py + 4:.1f}" text-anchor="end"'
            )
            out.append(f'<text {place} font-size="11">{value:g}</text>')
            value = round(value + distance, 9)
    if target:
        _, y = at(0, target)
        out.append(
            f'<line x1="{x}" y1="{y:.1f}" x2="{x + WIDTH}" y2="{y:.1f}" stroke="#dc2626" stroke-dasharray="5 4"/>'
        )
    for name, line in series.items():
        dots = [at(*point) for point in line]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in dots)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colours[name]}" stroke-width="2"/>')
        out += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colours[name]}"/>' for px, py in dots]
    return out


def main() -> int:
    kind, *sources, out = sys.argv[1:]
    read = {"tpot": of_trials, "goodput": of_points}[kind]
    panels = [(title, read(path)) for title, _, path in (source.partition("=") for source in sources)]
    names = list(dict.fromkeys(name for _, data in panels for name in data[0]))
    colours = dict(zip(names, COLOURS, strict=False))
    width, height = LEFT + len(panels) * (WIDTH + GAP), TOP + HEIGHT + 72
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="#334155">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for index, (title, data) in enumerate(panels):
        lines += panel(LEFT + index * (WIDTH + GAP), title, data, colours)
    for index, name in enumerate(names):
        x = LEFT + index * 140
        lines.append(f'<rect x="{x}" y="{height - 24}" width="12" height="12" rx="2" fill="{colours[name]}"/>')
        lines.append(f'<text x="{x + 18}" y="{height - 14}">{name}</text>')
    Path(out).write_text("\n".join([*lines, "</svg>\n"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
