"""Our histogram shows what prometheus_client's shows."""

from __future__ import annotations

import random

import prometheus_client

from lynx_rt.server.histogram import Histogram

BOUNDS = (0, 0.01, 0.5, 1, 2.5, 20)


def lines(metric: object) -> list[str]:
    registry = prometheus_client.CollectorRegistry()
    registry.register(metric)  # type: ignore[arg-type]
    text = prometheus_client.generate_latest(registry).decode()
    return [line for line in text.splitlines() if "_created" not in line]


def test_it_is_prometheus_clients() -> None:
    random.seed(1)
    ours = Histogram("h_seconds", "Help.", ("model", "kind"), BOUNDS)
    theirs = prometheus_client.Histogram("h_seconds", "Help.", ("model", "kind"), registry=None, buckets=BOUNDS)
    assert lines(ours) == lines(theirs)  # no series yet
    for kind in ("a", "b", 'with "quotes"'):
        for _ in range(200):
            value, count = random.choice([*BOUNDS, random.uniform(0, 30)]), random.randint(1, 3)
            ours.labels("nano", kind).observe(value, count)
            for _ in range(count):
                theirs.labels("nano", kind).observe(value)
    for one, two in zip(lines(ours), lines(theirs), strict=True):
        if "_sum" in one:  # added in another order
            assert one.split()[:-1] == two.split()[:-1] and abs(float(one.split()[-1]) - float(two.split()[-1])) < 1e-6
        else:
            assert one == two
