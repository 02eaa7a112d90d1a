"""`lynx-rt study`: which runs are made and kept, what they measure, and that the report is written."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lynx_rt import Engine, ValidationError
from lynx_rt.cli.main import main
from lynx_rt.research.eval import Item, answer_perplexity, is_correct, load_tasks
from lynx_rt.research.study import (
    StudyOptions,
    canonical,
    compose,
    forced_logprobs,
    heldout_perplexity,
    run_study,
    text_chunks,
)
from lynx_rt.research.study_records import RunLog
from lynx_rt.research.study_stats import setups

POLICIES = ["topk", "oea:k0=1"]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes three tasks of 24 items: two with short answers, one with long ones."""
    folder = tmp_path_factory.mktemp("tasks")
    for task in ("add", "sub", "long"):
        with (folder / f"{task}.jsonl").open("w") as file:
            for n in range(20, 44):
                prompt, answer = f"Q: What is {n} + 11?\nA:", str(n + 11)
                if task == "sub":
                    prompt, answer = f"Q: What is {n} - 11?\nA:", str(n - 11)
                if task == "long":
                    answer = f"{n} + 11 = {n + 11}. #### {n + 11}"
                final = answer.split()[-1]
                print(json.dumps({"task": task, "prompt": prompt, "answer": answer, "final": final}), file=file)
    return folder


def argv(tasks: Path, out: Path, *more: str) -> list[str]:
    common = ["--items", "3", "--max-tokens", "4", "--num-threads", "1"]
    return ["study", "--tasks", str(tasks), "--out", str(out), *common, *more]


@pytest.fixture(scope="module")
def study(tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs a whole small study, with everything that a run can measure."""
    out = tmp_path_factory.mktemp("study")
    text = out / "held.txt"
    text.write_text("Q: What is 20 + 11?\nA: 31\n" * 2)
    more = ["--batch", "2,4", "--selection", "oea:k0=1", "--batches", "mixed,single,minority:add", "--seeds", "0,1"]
    assert main(argv(tasks, out, *more, "--text", str(text), "--no-plots")) == 0
    return out


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]


# Composition


def letters(sizes: dict[str, int]) -> dict[str, list[Item]]:
    return {
        task: [Item(task, "", "x" * (1 + len(task)), None, n) for n in range(count)] for task, count in sizes.items()
    }


def test_mixed_and_single_hold_the_same_items() -> None:
    pool = letters({"a": 30, "b": 30, "c": 7})
    (mixed,), single = compose(pool, "mixed", 3, 10, lambda item: 1), compose(pool, "single", 3, 10, lambda item: 1)
    assert Counter(mixed) == Counter(item for queue in single for item in queue)
    assert [{item.task for item in queue} for queue in single] == [{"a"}, {"b"}, {"c"}]
    assert Counter(item.task for item in mixed) == {"a": 10, "b": 10, "c": 7}
    assert [item.task for item in mixed] != sorted(item.task for item in mixed)
    assert compose(pool, "mixed", 3, 10, lambda item: 1) == [mixed]
    other = compose(pool, "mixed", 4, 10, lambda item: 1)[0]
    assert Counter(other) != Counter(mixed)
    # Tasks draw independently of each other.
    assert [i.number for i in single[0]] != [i.number for i in single[1]]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # One row each: 15 others for each of the task, from two tasks: 7.5 of each; 60 of each suffice for 8.
        ({"a": 1, "b": 1, "c": 1}, {"a": 8, "b": 60, "c": 60}),
        # The task's items are three times as long.
        ({"a": 3, "b": 1, "c": 1}, {"a": 2, "b": 45, "c": 45}),
        ({"a": 1, "b": 4, "c": 1}, {"a": 10, "b": 30, "c": 30}),
    ],
)
def test_minority_has_one_row_of_sixteen(rows: dict[str, int], expected: dict[str, int]) -> None:
    pool = letters({"a": 50, "b": 60, "c": 60})
    (queue,) = compose(pool, "minority:a", 0, 10, lambda item: rows[item.task])
    count = Counter(item.task for item in queue)
    assert count == expected and len(set(queue)) == len(queue)
    share = count["a"] * rows["a"] / sum(count[task] * rows[task] for task in rows)
    assert share == pytest.approx(1 / 16, abs=0.001)


def test_minority_without_enough_others() -> None:
    with pytest.raises(ValidationError, match="too few items"):
        compose(letters({"a": 50, "b": 7}), "minority:a", 0, 10, lambda item: 1)


# Runs


def test_every_combination_is_a_line(study: Path, tasks: Path) -> None:
    records = lines(study)
    keys = {(r["key"]["policy"], r["key"]["batch"], r["key"]["batches"], r["key"]["seed"]) for r in records}
    compositions = ("mixed", "single", "minority:add")
    assert keys == {(p, b, c, s) for p in POLICIES for b in (2, 4) for c in compositions for s in (0, 1)}
    assert len(records) == len(keys) == 24
    pool = load_tasks(tasks)
    for record in records:
        results, key = record["results"], record["key"]
        assert record["settings"]["model"] == "lynx-nano" and "/" not in json.dumps(record["settings"])
        assert record["command"].startswith("lynx-rt study --tasks ") and " /" not in record["command"]
        assert record["device"].startswith("cpu") and record["versions"]["lynx_rt"]
        assert record["selection"] in POLICIES
        tokens = items = 0
        for task, entry in results["items"].items():
            assert len(entry["ids"]) == len(entry["correct"]) and set(entry["correct"]) <= {"0", "1"}
            assert all(pool[task][n].number == n for n in entry["ids"])
            tokens += entry["tokens"]
            items += len(entry["ids"])
        assert results["generated_tokens"] == tokens
        decode_rows = round(results["rows_per_step"] * results["decode_steps"])
        # Every token but the first of each item comes from a decode-only step.
        assert decode_rows == tokens - items
        assert 1 < results["rows_per_step"] <= key["batch"]
        assert 4 <= results["active"] <= results["union_before"] <= 32 and 0 < results["retained_mass"] <= 1 + 1e-6
        assert 0 < results["expert_bytes_per_step"] < results["bytes_per_step"]
        assert results["decode_tokens_per_s"] == pytest.approx(1e3 * results["rows_per_step"] / results["step_ms_mean"])
        assert results["step_ms_median"] > 0 and results["step_ms_mean"] > 0 and results["decode_tokens_per_s"] > 0
        assert len(results["layers"]) == 8 and results["layers"][0]["steps"] == results["decode_steps"]
        assert results["perplexity"] > 1 and results["text_perplexity"] > 1
        if key["policy"] == "topk":
            assert results["active"] == results["union_before"] and results["remapped_share"] == 0
        else:
            assert results["active"] < results["union_before"] and results["remapped_share"] > 0


def test_experts_and_their_bytes_agree(study: Path) -> None:
    """Bytes of experts are those of the experts that were read: a line through the origin over all runs."""
    per_expert = {round(r["results"]["expert_bytes_per_step"] / r["results"]["active"]) for r in lines(study)}
    assert max(per_expert) <= min(per_expert) * 1.001


def test_topk_answers_are_the_same_in_any_batch(study: Path) -> None:
    by_item: dict[tuple[str, int], set[str]] = {}
    for record in lines(study):
        if record["key"]["policy"] == "topk":
            for task, entry in record["results"]["items"].items():
                for n, mark in zip(entry["ids"], entry["correct"], strict=True):
                    by_item.setdefault((task, n), set()).add(mark)
    assert all(len(marks) == 1 for marks in by_item.values())


def test_correct_marks_match_the_items(nano: Engine, study: Path, tasks: Path) -> None:
    pool = load_tasks(tasks)
    record = next(r for r in lines(study) if r["key"] == {"policy": "topk", "batch": 4, "batches": "mixed", "seed": 1})
    for task, entry in record["results"]["items"].items():
        items = [pool[task][n] for n in entry["ids"]]
        outputs = nano.generate([item.prompt for item in items], {"temperature": 0, "max_tokens": 4, "stop": ["\n"]})
        assert entry["correct"] == "".join("01"[is_correct(i, o.text)] for i, o in zip(items, outputs, strict=True))
    assert "1" in record["results"]["items"]["add"]["correct"]


def test_perplexity_of_topk_is_that_of_the_answers(nano: Engine, study: Path, tasks: Path) -> None:
    """Entered token by token or as prompts: the model's own routing gives the same, but for the rounding of bfloat16."""
    pool = load_tasks(tasks)
    for record in lines(study):
        if record["key"]["policy"] == "topk" and record["key"]["seed"] == 1:
            entries = record["results"]["items"].items()
            items = [pool[task][n] for task, entry in entries for n in entry["ids"]]
            assert record["results"]["perplexity"] == pytest.approx(answer_perplexity(nano, items), rel=0.01)


def test_a_second_time_runs_only_what_is_missing(
    tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["--batch", "4", "--selection", "oea:k0=1", "--no-plots", "--no-perplexity", "--tasks-only", "add,sub"]
    assert main(argv(tasks, tmp_path, *more, "--seeds", "0")) == 0
    first = (tmp_path / "runs.jsonl").read_bytes()
    assert [r["key"]["policy"] for r in lines(tmp_path)] == ["topk", "oea:k0=1"]
    assert "perplexity" not in lines(tmp_path)[0]["results"] and list(lines(tmp_path)[0]["results"]["items"]) == [
        "add",
        "sub",
    ]
    with monkeypatch.context() as patch:  # nothing to run, nothing to load
        patch.setattr("lynx_rt.research.study.Engine", None)
        assert main(argv(tasks, tmp_path, *more, "--seeds", "0")) == 0
    assert (tmp_path / "runs.jsonl").read_bytes() == first
    # A line that was cut off is run again; the others stay.
    (tmp_path / "runs.jsonl").write_bytes(first[:-20])
    capsys.readouterr()
    assert main(argv(tasks, tmp_path, *more, "--seeds", "0")) == 0
    assert capsys.readouterr().err.startswith("1/1 oea:k0=1, batch 4, mixed, seed 0: ")
    again = (tmp_path / "runs.jsonl").read_bytes()
    assert again.startswith(first.splitlines(keepends=True)[0]) and again.count(b"\n") == 2
    assert [r["results"]["items"] for r in lines(tmp_path)] == [
        json.loads(x)["results"]["items"] for x in first.splitlines()
    ]
    # Another seed adds, and so do other settings.
    assert main(argv(tasks, tmp_path, *more, "--seeds", "0,1")) == 0
    assert main(argv(tasks, tmp_path, *more, "--seeds", "0", "--dtype", "float32")) == 0
    assert [r["key"]["seed"] for r in lines(tmp_path)] == [0, 0, 1, 1, 0, 0]
    assert [s.settings["dtype"] for s in setups(lines(tmp_path))] == ["auto", "float32"]


def test_interrupted_runs_leave_what_is_done(tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = StudyOptions(
        model=_nano(),
        tasks=tasks,
        selections=["oea:k0=1"],
        batch_sizes=[4],
        seeds=[0],
        items=3,
        max_tokens=2,
        perplexity=False,
    )
    steps = iter(range(10**6))
    plain = Engine.step

    def step(self: Engine) -> Any:
        if len(log.records) == 1 and next(steps) == 3:
            raise KeyboardInterrupt
        return plain(self)

    monkeypatch.setattr(Engine, "step", step)
    with RunLog(tmp_path / "runs.jsonl") as log, pytest.raises(KeyboardInterrupt):
        run_study(options, log, "lynx-rt study")
    assert [r["key"]["policy"] for r in lines(tmp_path)] == ["topk"]
    monkeypatch.setattr(Engine, "step", plain)
    with RunLog(tmp_path / "runs.jsonl") as log:
        assert run_study(options, log, "lynx-rt study") == 1
    assert [r["key"]["policy"] for r in lines(tmp_path)] == ["topk", "oea:k0=1"]


def _nano() -> str:
    import lynx_rt

    return lynx_rt.shipped_model()


# Perplexity


def test_forced_logprobs_are_those_of_the_text(nano: Engine) -> None:
    texts = [
        (nano.encode("Q: What is 20 + 11?\nA:"), nano.encode(" 31", False)),
        (nano.encode("Q: What"), nano.encode(" is 2", False)),
    ]
    prompts = [{"prompt_token_ids": given} for given, _ in texts]
    forced = [{"prompt_token_ids": after} for _, after in texts]
    expected = nano.score(prompts, forced)
    finished: list[int] = []
    assert forced_logprobs(nano, texts, lambda: finished.append(1)) == pytest.approx(
        expected, abs=0.1
    )  # bfloat16: other row counts
    assert len(finished) == 2
    tokens = sum(len(after) for _, after in texts)
    assert heldout_perplexity(nano, texts, "topk") == pytest.approx(math.exp(-sum(expected) / tokens), rel=0.02)
    try:
        assert heldout_perplexity(nano, texts * 4, "oea:k0=1") != heldout_perplexity(nano, texts * 4, "topk")
    finally:
        nano.set_expert_selection(None)


def test_text_chunks(nano: Engine) -> None:
    text = "Q: What is 20 + 11?\nA: 31\n" * 40
    ids, chunks = nano.encode(text), text_chunks(nano, text)
    assert [i for given, after in chunks for i in given + after] == ids and len(ids) > 512
    assert [len(given) + len(after) for given, after in chunks] == [256] * (len(ids) // 256) + [len(ids) % 256]
    assert {len(given) for given, _ in chunks} == {1}
    with pytest.raises(ValidationError, match="at least two tokens"):
        text_chunks(nano, "")


# Report


def is_png(file: Path) -> bool:
    return file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and file.stat().st_size > 5000


def test_report(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    kinds = ["accuracy-experts", "accuracy-speed", "experts-batch", "layers"]
    names = {f"{kind}-{batches}.png" for kind in kinds for batches in ("mixed", "single")} | {"minority.png"}
    table = (study / "table.md").read_text()
    assert (
        "#### mixed tasks, batch 4" in table
        and "#### add as a minority, batch 2" in table
        and "| `oea:k0=1` |" in table
    )
    # Again from the file alone, and joined with another one.
    again = tmp_path / "again"
    assert main(["study", "--out", str(again), "--report-only", str(study / "runs.jsonl")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == str(again / "table.md") and {Path(line).name for line in printed[1:]} == names
    assert {file.name for file in again.glob("*.png")} == names and all(is_png(file) for file in again.glob("*.png"))
    assert (again / "table.md").read_text() == table
    half = tmp_path / "half.jsonl"
    half.write_text(
        json.dumps({**lines(study)[0], "settings": {**lines(study)[0]["settings"], "model": "twin"}}) + "\n"
    )
    joined = ["study", "--out", str(again), "--report-only", str(study / "runs.jsonl"), str(half), "--no-plots"]
    assert main(joined) == 0
    assert "## lynx-nano\n" in (again / "table.md").read_text() and "## twin\n" in (again / "table.md").read_text()
    (study / "table.md").unlink()
    assert main(["study", "--out", str(study), "--report-only", "--no-plots"]) == 0
    assert (study / "table.md").read_text() == table


def test_a_virtual_cache(tasks: Path, tmp_path: Path) -> None:
    """Runs with caches of different sizes lie in one folder; the table says what each read."""
    more = ["--batch", "2", "--selection", "topk:resident=1", "--seeds", "0", "--no-plots", "--no-perplexity"]
    for residents in ("0.25", "16"):
        cache = ["--virtual-residents", residents, "--virtual-residency", "lru"]
        assert main(argv(tasks, tmp_path, *more, *cache)) == 0
    runs = lines(tmp_path)
    assert [run["settings"]["virtual_residents"] for run in runs] == [0.25, 0.25, 16, 16]
    misses = [run["results"]["misses"] for run in runs]
    assert misses[1] < misses[0] and misses[3] < misses[2] < misses[0]
    assert runs[0]["results"]["misses_before"] == misses[0] and runs[1]["results"]["changed_share"] > 0
    table = (tmp_path / "table.md").read_text()
    assert "0.25 of each layer's experts resident, lru" in table and "16 of each layer's experts resident" in table
    assert f"| {misses[1]:.2f} | {misses[0] / misses[1]:.2f} |" in table


def test_without_matplotlib(
    tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(argv(tasks, tmp_path / "out", "--batch", "4")) == 1
    assert "pip install 'lynx_rt[study]', or use --no-plots" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# Options


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--tasks", "/no/such/folder"], "/no/such/folder"),
        (["--tasks-only", "add,nonsense"], "no task 'nonsense'"),
        (["--batches", "minority:nonsense"], "minority:nonsense"),
        (["--batches", "minority:add", "--tasks-only", "add"], "at least two tasks"),
        (["--selection", "nonsense"], "nonsense"),
        (["--selection", "oea:k0=99"], "k0"),
        (["--text", "/no/such/file"], "/no/such/file"),
        (["--report-only", "/no/such/runs.jsonl"], "/no/such/runs.jsonl"),
    ],
)
def test_run_errors_name_the_field(
    tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], text: str
) -> None:
    assert main([*argv(tasks, tmp_path, "--no-plots", "--batch", "4"), *more]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("lynx-rt: error: ") and text in err and err.count("\n") == 1
    file = tmp_path / "runs.jsonl"
    assert not file.exists() or not file.read_bytes()


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("--batches", "mixed,nonsense", "must be mixed, single or minority:TASK, got 'nonsense'"),
        ("--batches", "minority:", "got 'minority:'"),
        ("--seeds", "0,-1", "must be at least 0"),
        ("--seeds", "x", "--seeds"),
        ("--items", "0", "at least 1"),
        ("--batch", "4,0", "at least 1"),
        ("--tasks-only", "add,,sub", "an empty name"),
        ("--selection", "k0=2", "must start with a policy name"),
    ],
)
def test_wrong_usage(
    tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, text: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*argv(tasks, tmp_path), f"{option}={value}"])
    assert caught.value.code == 2 and text in capsys.readouterr().err


def test_tasks_are_needed_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "--out", str(tmp_path), "--no-plots"]) == 1
    assert "--tasks DIR is needed" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["study"])


def test_policies_are_told_apart_by_their_full_form(tasks: Path) -> None:
    same = ["lynx", canonical("lynx"), "topk", "oea:k0=1"]
    options = StudyOptions(model="m", tasks=tasks, selections=same, batch_sizes=[1, 2], seeds=[0])
    assert list(options.policies) == ["topk", canonical("lynx"), "oea:k0=1"]
    assert [key.policy for key in options.run_keys()] == list(options.policies) * 2
