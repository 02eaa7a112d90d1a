"""Makes the tables of run.py: medians over the rounds, and their ratio to lynx_rt's."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from processes import Round

REFERENCE = "lynx_rt"


@dataclass
class Engine:
    """One row: the rounds that were run, or the reason for none."""

    name: str
    rounds: list[Round] = field(default_factory=list)
    failure: str = ""  # why it was not run, or no further

    @property
    def measured(self) -> bool:
        return any(item.ready_s is not None for item in self.rounds)

    def text(self, key: str) -> list[str]:
        """Returns what the worker said of its engine, without repetitions."""
        return list(dict.fromkeys(value for item in self.rounds for value in item.values(key)))

    def per_round(self, key: str, batch: int | None = None) -> list[float]:
        """Returns the median of every round that has the measurement."""
        if key in ("ready_s", "peak_resident_bytes", "peak_anonymous_bytes"):
            return [value for item in self.rounds if (value := getattr(item, key))]
        found = [item.values(key, batch) for item in self.rounds]
        return [statistics.median(values) for values in found if values]

    def median(self, key: str, batch: int | None = None) -> float | None:
        values = self.per_round(key, batch)
        return statistics.median(values) if values else None


def spread(values: Sequence[float]) -> float:
    """Returns (max - min) / median in percent."""
    return 100 * (max(values) - min(values)) / statistics.median(values) if values else 0.0


def speed_table(
    engines: Sequence[Engine], batches: Sequence[int], prefill: int, gb_per_s: float | None
) -> list[list[str]]:
    """Returns rows of cells, the head first. An x column has the time beside it as a multiple of lynx_rt's."""
    reference = next((engine for engine in engines if engine.name == REFERENCE), Engine(REFERENCE))
    head = ["engine"]
    for batch in batches:
        head += [f"B={batch} ms", "x"]
    if prefill:
        head += [f"prefill {prefill} ms", "tok/s", "x"]
    rows = [[*head, "spread %"]]
    for engine in engines:
        if not engine.measured:
            continue
        cells, spreads = [engine.name], []
        for batch in batches:
            time, base = engine.median("decode_ms", batch), reference.median("decode_ms", batch)
            cells += [number(time), ratio(time, base)]
            spreads.append(spread(engine.per_round("decode_ms", batch)))
        if prefill:
            time, base = engine.median("prefill_ms"), reference.median("prefill_ms")
            cells += [number(time), number(prefill / time * 1e3 if time else None), ratio(time, base)]
            spreads.append(spread(engine.per_round("prefill_ms")))
        rows.append([*cells, f"{max(spreads):.0f}"])
    read = [reference.median("bytes", batch) for batch in batches]
    if gb_per_s and any(read):
        cells = ["(reading alone)"]
        for batch, count in zip(batches, read, strict=True):
            time = count / gb_per_s / 1e6 if count else None
            cells += [number(time), ratio(time, reference.median("decode_ms", batch))]
        rows.append([*cells, *["-"] * (len(rows[0]) - len(cells))])
    return rows


def cost_table(engines: Sequence[Engine]) -> list[list[str]]:
    """Returns the table of time to ready and memory."""
    reference = next((engine for engine in engines if engine.name == REFERENCE), Engine(REFERENCE))
    rows = [["engine", "ready s", "x", "first round s", "peak GB", "anonymous GB", "version; notes"]]
    for engine in engines:
        if not engine.measured:
            continue
        ready = engine.per_round("ready_s")
        peak, anonymous = engine.median("peak_resident_bytes"), engine.median("peak_anonymous_bytes")
        rows.append(
            [
                engine.name,
                number(engine.median("ready_s")),
                ratio(engine.median("ready_s"), reference.median("ready_s")),
                number(ready[0] if ready else None),
                number(peak / 1e9 if peak else None),
                number(anonymous / 1e9 if anonymous else None),
                "; ".join(engine.text("version") + engine.text("note")),
            ]
        )
    return rows


def not_measured(engines: Sequence[Engine]) -> list[str]:
    return [f"{engine.name}: {engine.failure}" for engine in engines if engine.failure]


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if value < 100 else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def ratio(value: float | None, base: float | None) -> str:
    return f"{value / base:.2f}" if value and base else "-"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| "
        + " | ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def as_json(engine: Engine) -> dict[str, Any]:
    """Returns all measurements, round by round."""
    return {
        "name": engine.name,
        "failure": engine.failure,
        "rounds": [
            {
                "ready_s": item.ready_s,
                "peak_resident_bytes": item.peak_resident_bytes,
                "peak_anonymous_bytes": item.peak_anonymous_bytes,
                "failure": item.failure,
                "records": item.records,
            }
            for item in engine.rounds
        ],
    }
