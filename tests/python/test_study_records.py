"""Recorded runs of a study: reading and joining them, the arithmetic of their comparison, tables and plots of known runs."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lynx_rt import ValidationError
from lynx_rt.research.study_records import FORMAT, RunKey, RunLog, read_runs
from lynx_rt.research.study_report import format_table_md, write_report
from lynx_rt.research.study_stats import error_of_mean, estimate, mean_over_tasks, pareto_front, setups


def record(
    policy: str = "topk", batch: int = 4, batches: str = "mixed", seed: int = 0, **items: tuple[list[int], str]
) -> Any:
    """A run with made-up results: task -> (item numbers, marks)."""
    active = {"topk": 8.0, "oea:k0=1": 2.0}.get(policy, 5.0)
    results = {
        "items": {task: {"ids": ids, "correct": marks, "tokens": 3 * len(ids)} for task, (ids, marks) in items.items()},
        "num_experts": 16, "num_experts_per_tok": 2, "union_before": 8.0, "active": active, "retained_mass": 0.9, "seconds": 1.0,
        "remapped_share": 0.1, "guard_share": 0.0, "rows_per_step": 3.9, "decode_steps": 10, "decode_only_share": 0.8,
        "generated_tokens": 50, "prompt_tokens": 70, "step_ms_mean": 2.0, "step_ms_median": 1.9, "bytes_per_step": 2e6,
        "expert_bytes_per_step": 1e6, "decode_tokens_per_s": 100.0 * 8 / active, "tokens_per_s": 90.0,
        "layers": [{"layer": n, "steps": 10, "union_before": 80, "active": 10 * active + n} for n in range(3)],
    }  # fmt: skip
    settings = {
        "model": "m", "quantization": "none", "tasks": sorted(items), "tasks_digest": "0", "items": 4, "max_tokens": 4
    }  # fmt: skip
    return {
        "format": FORMAT, "key": {"policy": policy, "batch": batch, "batches": batches, "seed": seed}, "selection": policy,
        "settings": settings, "command": f"lynx-rt study {seed}", "versions": {"lynx_rt": "1"}, "device": "cpu", "dtype": "float32",
        "results": results,
    }  # fmt: skip


# Records


def test_log(tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    one, two = record(a=([1], "1")), record("oea:k0=1", a=([1], "0"))
    with RunLog(file) as log:
        log.append(one)
        assert log.has(RunKey("topk", 4, "mixed", 0), one["settings"])
        assert not log.has(RunKey("topk", 4, "mixed", 1), one["settings"])
        assert not log.has(RunKey("topk", 4, "mixed", 0), {**one["settings"], "items": 5})
        # Another process must not write between.
        code = "import sys; from pathlib import Path; from lynx_rt.research.study_records import RunLog; RunLog(Path(sys.argv[1]))"
        other = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=False)
        assert other.returncode == 1 and "is being written by another study" in other.stderr
    whole = file.read_bytes()
    file.write_bytes(whole + json.dumps(two).encode()[:-1])
    assert read_runs([file]) == [one]
    with RunLog(file) as log:
        assert log.records == [one]
        log.append(two)
    assert read_runs([file]) == [one, two]
    other_file = tmp_path / "more.jsonl"
    other_file.write_text(
        json.dumps({**one, "command": "later"}) + "\n" + json.dumps(record(seed=1, a=([1], "1"))) + "\n"
    )
    joined = read_runs([file, other_file])
    assert [(r["key"]["policy"], r["key"]["seed"], r["command"]) for r in joined] == [
        ("topk", 0, "lynx-rt study 0"), ("oea:k0=1", 0, "lynx-rt study 0"), ("topk", 1, "lynx-rt study 1"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "line", ["{", "[]", "{}", json.dumps({"format": FORMAT + 1}), json.dumps({"format": FORMAT, "key": {}})]
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "runs.jsonl"
    file.write_text(json.dumps(record(a=([1], "1"))) + "\n" + line + "\n" + json.dumps(record(a=([1], "1"))) + "\n")
    for read in (lambda: read_runs([file]), lambda: RunLog(file)):
        with pytest.raises(ValidationError, match=r"runs\.jsonl:2") as caught:
            read()
        assert caught.value.field == "out"


# Arithmetic


def test_mean_over_tasks() -> None:
    # a: 3 of 4, residuals 1/4, 1/4, 1/4, -3/4: sum of squares 3/4; variance of the mean 3/4 / 16 * 4/3 = 1/16.
    # b: both right, no spread. The mean of the two: 7/8, with an error of 1/4 / 2.
    value, error = mean_over_tasks({"a": {1: [1], 2: [1], 3: [1], 4: [0]}, "b": {1: [1], 2: [1]}})
    assert (value, error) == pytest.approx((7 / 8, 1 / 8))
    # The same item twice is one item: the error is that of the items alone, not smaller by sqrt(2).
    once = mean_over_tasks({"a": {1: [1], 2: [0], 3: [0]}})
    assert mean_over_tasks({"a": {1: [1, 1], 2: [0, 0], 3: [0, 0]}}) == pytest.approx(once)
    assert once[1] == pytest.approx(math.sqrt((4 + 1 + 1) / 9 / 9 * 3 / 2))
    # An error needs two items.
    assert math.isnan(mean_over_tasks({"a": {1: [1, 0]}, "b": {1: [1], 2: [0]}})[1])


def test_clustered_error_is_that_of_a_simulation() -> None:
    """Items of two seeds that overlap in half: the error agrees with the spread over many draws, the naive one does not."""
    generator, values, errors = random.Random(5), [], []
    for _ in range(600):
        hard = [generator.random() for _ in range(60)]  # an item's own difficulty dominates
        items: dict[int, list[float]] = {}
        for start in (0, 20):
            for n in range(start, start + 40):
                items.setdefault(n, []).append(hard[n])
        value, error = mean_over_tasks({"a": items})
        values.append(value)
        errors.append(error)
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    typical = sum(errors) / len(errors)
    assert typical == pytest.approx(spread, rel=0.08)
    assert math.sqrt(1 / 12 / 80) < 0.9 * spread


def test_paired_difference() -> None:
    runs = [
        record(seed=0, a=([1, 2, 3, 4], "1100"), b=([1, 2], "11")),
        record(seed=1, a=([3, 4, 5, 6], "0011"), b=([3, 4], "10")),
        record("oea:k0=1", seed=0, a=([4, 3, 2, 1], "0010"), b=([1, 2], "11")),  # in another order: a1 lost
        record("oea:k0=1", seed=1, a=([3, 4, 5, 6], "1011"), b=([3, 4], "00")),  # a3 won, b3 lost
    ]
    (setup,) = setups(runs)
    base, oea = setup.groups
    assert oea.layer_ratio() == pytest.approx([20 / 80, 21 / 80, 22 / 80]) and oea.mean("active") == 2
    assert setup.reference(oea) is base and base.accuracy().value == pytest.approx((4 / 8 + 3 / 4) / 2)
    change = oea.difference(base)
    assert change is not None
    # a: differences of items 1..6: -1, 0, (0, +1), (0, 0), 0, 0: mean 0; b: 0, 0, -1, 0: mean -1/4.
    assert change.value == pytest.approx((0 - 1 / 4) / 2)
    var_a = (1 + 1) / 8**2 * 6 / 5
    var_b = (3 * (1 / 4) ** 2 + (3 / 4) ** 2) / 4**2 * 4 / 3
    assert change.items_error == pytest.approx(math.sqrt(var_a + var_b) / 2)
    # Per seed: (-1/4 + 0) / 2 and (1/4 - 1/2) / 2, the same.
    assert change.seeds_error == pytest.approx(0)
    only = oea.difference(base, "b")
    assert only is not None and only.value == pytest.approx(-1 / 4)
    assert only.seeds_error == pytest.approx(error_of_mean([0, -0.5])) == pytest.approx(0.25)
    # Without a common seed there is nothing to compare.
    (alone,) = setups([record(seed=0, a=([1, 2], "10")), record("oea:k0=1", seed=1, a=([1, 2], "10"))])
    assert alone.groups[1].difference(alone.groups[0]) is None


def test_estimates_of_one_run() -> None:
    one = estimate([{"a": {1: [1.0], 2: [0.0]}}])
    assert (one.value, one.items_error) == pytest.approx((0.5, 0.5)) and math.isnan(one.seeds_error)
    assert math.isnan(error_of_mean([1.0])) and error_of_mean([1.0, 3.0]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([], []),
        ([(3, 3)], [0]),
        ([(1, 1), (2, 2), (3, 3)], [0, 1, 2]),
        ([(3, 1), (2, 2), (1, 3)], [2]),
        ([(2, 5), (1, 4), (3, 5), (1, 3), (4, 6)], [1, 0, 4]),
        ([(1, 2), (1, 2), (2, 2)], [0, 1]),
        ([(-4, 1), (-3, 2), (-3, 3)], [0, 2]),
    ],
)
def test_pareto_front(points: list[tuple[float, float]], front: list[int]) -> None:
    assert pareto_front(points) == front


# Report


def is_png(file: Path) -> bool:
    return file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and file.stat().st_size > 5000


def test_table_of_known_runs() -> None:
    runs = [
        record(seed=0, a=([1, 2, 3, 4], "1110"), b=([1, 2], "10")),
        record("oea:k0=1", seed=0, a=([1, 2, 3, 4], "1100"), b=([1, 2], "10")),
    ]
    table = format_table_md(runs)
    assert "| `topk` | 62.5 % right |" in table
    assert "| `oea:k0=1` | -12.50 (12.50) / 75 % |" in table
    assert "| **`oea:k0=1`** | 50.00 | -12.50 | 12.50 |  |" in table
    assert "| `oea:k0=1` | -25.0 ± 25.0 | +0.0 ± 0.0 |" in table
    assert "- `lynx-rt study 0`" in table and table.count("- `lynx-rt") == 1


def test_odd_studies_are_drawn(tmp_path: Path) -> None:
    """No topk, one layer, one item, families that are not known, and policies that are far off."""
    pytest.importorskip("matplotlib")
    marks = {"a": (list(range(20)), "1" * 20)}
    wrong = {"a": (list(range(20)), "0" * 20)}
    no_reference = [record("oea:k0=1", a=([1], "1")), record("new_policy:x=1@0-1", a=([1], "0"))]
    far_off = [record(**marks), record("deny_rank:r=0", **wrong), record("minority", batches="minority:a", **marks)]
    for place, runs in enumerate((no_reference, far_off)):
        files = write_report(runs, tmp_path / str(place))
        assert all(is_png(file) for file in files if file.suffix == ".png")
        assert [file.name for file in files if "layers" in file.name]


def test_colours_and_markers() -> None:
    pytest.importorskip("matplotlib")
    from lynx_rt.research.study_plots import _STYLES, _styles, family

    assert len(set(_STYLES.values())) == len(_STYLES)
    assert [family(p) for p in ("lynx", "oea:k0=2", "lynx@0-1", "lynx:alpha=4@0-1+7=topk")] == [
        "lynx",
        "oea",
        "lynx",
        "lynx",
    ]
    for policies in (["lynx", "oea:k0=1"], ["topk", "zzz", "oea:k0=2", "lynx"]):
        assert _styles(policies)["lynx"] == _STYLES["lynx"] and _styles(policies)["oea"] == _STYLES["oea"]
    many = _styles([f"new{n}" for n in range(50)])
    assert len(many) == 50
