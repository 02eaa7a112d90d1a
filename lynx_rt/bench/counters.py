"""What expert selection did during a point: differences of the counters that /metrics of lynx_rt has (docs/metrics.md)."""

from __future__ import annotations

import re
from collections import defaultdict

from lynx_rt.bench.client import Target, get

_SAMPLE = re.compile(r"^([a-zA-Z_:]\w*(?::\w+)*)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
Counters = dict[
    tuple[str, str], float
]  # (metric, value of its label `kind` or `mode`, else "") -> sum over the other labels


def parse(text: str) -> Counters:
    """Sums the counters lynx:* and vllm:generation_tokens_total of a page in Prometheus' text format."""
    sums: Counters = defaultdict(float)
    for line in text.splitlines():
        found = _SAMPLE.match(line)
        if found and (found[1].startswith("lynx:") or found[1] == "vllm:generation_tokens_total"):
            labels = dict(_LABEL.findall(found[2] or ""))
            sums[found[1], labels.get("kind") or labels.get("mode") or ""] += float(found[3])
    return dict(sums)


async def read(target: Target) -> Counters:
    """Returns the counters of a server now, {} where it is none of lynx_rt's or has no /metrics."""
    reply = await get(target, "/metrics")
    counters = parse(reply.body.decode(errors="replace")) if reply.status == 200 else {}
    return counters if any(name.startswith("lynx:") for name, _ in counters) else {}


def difference(before: Counters, after: Counters) -> dict[str, float] | None:
    """Returns means over the decode-only steps, layers and rows between two readings; None where nothing was counted.

    experts_read, union_before: per layer and step.  retained_mass: of a row's gates, 1 = all.  selected_rows: share of all
    decode rows.  bytes_per_token: read in all steps, by generated tokens.  step_ms: mean over all steps.
    """
    if not after:
        return None

    def change(name: str, kind: str | None = None) -> float:
        keys = [key for key in after if key[0] == name and kind in (None, key[1])]
        return sum(after[key] - before.get(key, 0.0) for key in keys)

    def ratio(above: float, below: float) -> float:
        return above / below if below else 0.0

    layer_steps, rows = change("lynx:moe_layer_steps_total"), change("lynx:moe_rows_total")
    return {
        "experts_read": ratio(change("lynx:moe_experts_read_total"), layer_steps),
        "union_before": ratio(change("lynx:moe_experts_union_before_total"), layer_steps),
        "retained_mass": ratio(change("lynx:moe_retained_mass_total"), rows),
        "rows_per_step": ratio(rows, layer_steps),
        "selected_rows": ratio(change("lynx:decode_rows_total", "selected"), change("lynx:decode_rows_total")),
        "bytes_per_token": ratio(change("lynx:bytes_read_total"), change("vllm:generation_tokens_total")),
        "step_ms": 1e3 * ratio(change("lynx:step_seconds_total"), change("lynx:steps_total")),
    }
