"""The search of bench/serve_goodput.py, and the plots, on made-up trials."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))
from serve_goodput import next_rate, report  # noqa: E402


def search(capacity: float, start: float, bisections: int, disturbed: int = -1) -> list[dict]:
    """Runs a search against a policy that serves up to `capacity`. disturbed: number of a trial that misses in any case."""
    trials: list[dict] = []
    while (rate := next_rate(trials, start, bisections)) is not None:
        trials.append({"rate": rate, "passed": rate <= capacity and len(trials) != disturbed})
        assert len(trials) < 50
    return trials


@pytest.mark.parametrize("capacity", [0.3, 1.0, 5.0, 37.0])
def test_the_rate_is_found(capacity: float) -> None:
    """Between the last pass and the first miss lies one doubling, halved `bisections` times on a logarithmic scale."""
    trials = search(capacity, 1.0, 3)
    passed = max(t["rate"] for t in trials if t["passed"])
    missed = min(t["rate"] for t in trials if not t["passed"])
    assert passed <= capacity < missed and missed / passed == pytest.approx(2 ** (1 / 8))
    rates = [t["rate"] for t in trials]
    assert all(rates.count(t["rate"]) == (1 if t["passed"] else 2) for t in trials)


def test_one_disturbed_trial_changes_nothing() -> None:
    for number in range(6):
        assert max(t["rate"] for t in search(37.0, 1.0, 3, number) if t["passed"]) == pytest.approx(32 * 2 ** (1 / 8))


def test_nothing_passes() -> None:
    assert not any(t["passed"] for t in search(0.0, 1.0, 3))


def result(**more: object) -> dict:
    names = "output_throughput median_tpot_ms p99_tpot_ms p99_ttft_ms"
    lynx = {"experts_read": 3.0, "union_before": 4.0, "retained_mass": 0.9}
    return {**dict.fromkeys(names.split(), 5.0), "lynx": lynx, **more}


def test_report_and_plots(tmp_path: Path) -> None:
    topk = [result(rate=r, passed=r < 3, p99_tpot_ms=4.0 * r) for r in (1.0, 2.0, 4.0, 4.0, 2.83)]
    policies = {"topk": topk, "lynx": [result(rate=4.0, passed=True)], "oea": [result(rate=1.0, passed=False)]}
    lines = [line.split() for line in report(policies).splitlines()]
    assert lines[2][:4] == ["topk", "2.83", "4.00", "1.00"] and lines[3][:4] == ["lynx", "4.00", "-", "1.41"]
    assert lines[4][:2] == ["oea", "none"]
    (tmp_path / "trials.json").write_text(json.dumps({"target_ms": 10.0, "policies": policies}))
    points = tmp_path / "points"
    points.mkdir()
    for number, policy in enumerate(("topk", "lynx")):
        point = {"selection": policy, "request_rate": 2.0, "request_goodput": 1.5 + number}
        (points / f"{number}.json").write_text(json.dumps(point))
    for kind, source in (("tpot", tmp_path / "trials.json"), ("goodput", points)):
        out = tmp_path / f"{kind}.svg"
        script = [sys.executable, str(ROOT / "docs" / "serve_plots.py"), kind, f"A title={source}", str(out)]
        subprocess.run(script, check=True)
        texts = [element.text for element in ET.parse(out).iter() if element.tag.endswith("text")]
        assert {"A title", "topk", "lynx"} <= set(texts)
