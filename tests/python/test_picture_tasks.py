"""Task sets with pictures: how they are read and scored, and that `eval` and `study` show each question its picture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_vision import IMAGE_TOKEN, PLACEHOLDER, FakeCore

from lynx_rt import _C, Engine, ValidationError, shipped_model
from lynx_rt.cli.main import main
from lynx_rt.research.eval import Item, answer_perplexity, evaluate, load_items, load_tasks
from lynx_rt.research.study import StudyOptions
from lynx_rt.research.study_stats import setups

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {"num_threads": 1, "max_num_seqs": 2, "enable_prefix_caching": False, "enable_mixed_chunk": False}


class BlindCore(FakeCore):
    """Keeps images, and answers the question alone, as lynx-nano does it right."""

    def add_request(self, ids: list[int], params: Any, mask: Any = None, images: Any = None) -> int:
        self.images.append(images)
        return self._real.add_request([i for i in ids if i != IMAGE_TOKEN], params, mask)


QUESTION = PLACEHOLDER + "Q: What is {} + 11?\nA:"


def write_tasks(folder: Path, count: int = 6) -> None:
    """Writes two tasks: sums scored as relaxed accuracy, whose answers are 1 too much, and sums scored by exact match.

    Each has a picture of a shade of its own.
    """
    pillow = pytest.importorskip("PIL.Image")
    (folder / "images").mkdir(exist_ok=True)
    for task, metric, more in (("near", "relaxed", 1), ("same", "exact", 0)):
        with (folder / f"{task}.jsonl").open("w") as file:
            for n in range(20, 20 + count):
                name = f"images/{task}{n}.png"
                pillow.new("RGB", (64, 32), (n, 10 * more, 0)).save(folder / name)
                line = {"task": task, "prompt": QUESTION.format(n), "answer": str(n + 11 + more), "metric": metric}
                print(json.dumps({**line, "image": name}), file=file)


def test_items(tmp_path: Path) -> None:
    write_tasks(tmp_path, 2)
    line = {"task": "t", "prompt": "p", "answer": "Oslo", "metric": "anls", "answers": ["Oslo", "Olso"]}
    (tmp_path / "t.jsonl").write_text(json.dumps(line) + "\n")
    tasks = load_tasks(tmp_path)
    near = tasks["near"][1]
    assert (near.metric, near.answers, near.image) == ("relaxed", ("33",), tmp_path / "images" / "near21.png")
    assert near.media() == {"multi_modal_data": {"image": (tmp_path / "images" / "near21.png").read_bytes()}}
    assert [near.score(text) for text in (" 33", " 32", " 31", "")] == [1.0, 1.0, 0.0, 0.0]
    assert tasks["t"][0].media() == {} and tasks["t"][0].score("Olsa") == 0.75
    assert tasks["same"][0].score(" 31 ") == 1.0 and tasks["same"][0].score("32") == 0.0
    assert Item("x", "p", "9", "9").score("4 + 5 #### 9") == 1.0


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"metric": "bleu"}, "metric must be one of exact, anls, relaxed, vqa, got 'bleu'"),
        ({"answers": []}, "answers must be a list of texts"),
        ({"answers": "x"}, "answers must be a list of texts"),
        ({"image": "none.png"}, "no image 'none.png' beside the file"),
        ({"image": 3}, "bad.jsonl:1"),
    ],
)
def test_malformed_items(tmp_path: Path, fields: dict[str, Any], error: str) -> None:
    (tmp_path / "bad.jsonl").write_text(json.dumps({"task": "t", "prompt": "p", "answer": "a", **fields}) + "\n")
    with pytest.raises(ValidationError, match=error):
        load_tasks(tmp_path)


def shades_seen(engine: Engine) -> list[tuple[int, int]]:
    """Returns red and green of the first pixel of each request's picture."""
    core: Any = engine._core
    pixels = [
        images[0]["patches"][0] for images in core.images
    ]  # rows are [channel, time, row, column], 16 x 16 pixels twice
    return [(round(255 * (row[0] + 1) / 2), round(255 * (row[512] + 1) / 2)) for row in pixels]


def test_eval_shows_each_question_its_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tasks(tmp_path)
    items = load_items(tmp_path)
    shades = [(int(item.prompt.split()[-4]), 10 * (item.task == "near")) for item in items]
    monkeypatch.setattr(_C, "Engine", BlindCore)
    with Engine(shipped_model(), **OPTIONS) as engine:
        result = evaluate(engine, items, "topk", max_tokens=4, use_tqdm=False)
        assert shades_seen(engine) == shades
    monkeypatch.setattr(_C, "Engine", FakeCore)
    with Engine(shipped_model(), **OPTIONS) as engine:
        assert answer_perplexity(engine, items, use_tqdm=False) > 1
        assert shades_seen(engine) == shades
    assert result.task_accuracy == {"near": 1.0, "same": 1.0}  # 31 is within 5 % of 32


def test_study_records_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tasks(tmp_path)
    digests: list[bytes] = []

    class Core(BlindCore):
        def add_request(self, ids: list[int], params: Any, mask: Any = None, images: Any = None) -> int:
            digests.append(images[0]["digest"])
            return super().add_request(ids, params, mask, images)

    monkeypatch.setattr(_C, "Engine", Core)
    out = tmp_path / "out"
    argv = [
        "study",
        "--tasks",
        str(tmp_path),
        "--out",
        str(out),
        "--items",
        "3",
        "--max-tokens",
        "4",
        "--num-threads",
        "1",
    ]
    assert (
        main([*argv, "--batch", "2", "--selection", "oea:k0=1", "--seeds", "0", "--no-plots", "--no-perplexity"]) == 0
    )
    runs = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    topk = runs[0]["results"]
    assert topk["items"]["near"]["scores"] == [1.0] * 3 and topk["items"]["near"]["correct"] == "000"
    assert "scores" not in topk["items"]["same"] and topk["items"]["same"]["correct"] == "111"
    assert 0 < topk["ttft_ms_median"] <= 1e3 * topk["seconds"] and 0 < topk["decode_share"] < 1
    assert topk["tower_share"] == 0
    # Two policies, six items: no picture is known from another run, though each is shown in both.
    assert len(digests) == 12 and len(set(digests)) == 12
    group = setups(runs)[0].groups[0]
    assert group.accuracy().value == 1.0 and group.accuracy("near").value == 1.0


def test_a_tower_runs_for_every_policy(tmp_path: Path) -> None:
    """A model that reads images: every policy encodes every picture, and with the same picture says the same."""
    tiny_vision = pytest.importorskip("tiny_vision")
    model, tasks, out = tmp_path / "model", tmp_path / "tasks", tmp_path / "out"
    model.mkdir()
    tiny_vision.write_model(model)
    tasks.mkdir()
    write_tasks(tasks)
    for file in tasks.glob("*.jsonl"):
        file.write_text(file.read_text().replace(PLACEHOLDER, "<|vision_start|><|image_pad|><|vision_end|>"))
    argv = [
        "study",
        str(model),
        "--tasks",
        str(tasks),
        "--out",
        str(out),
        "--items",
        "4",
        "--max-tokens",
        "3",
        "--num-threads",
        "1",
    ]
    assert main([*argv, "--batch", "2", "--selection", "top_j:j=2,top1", "--seeds", "0", "--no-plots"]) == 0
    results = [json.loads(line)["results"] for line in (out / "runs.jsonl").read_text().splitlines()]
    assert [run["images_encoded"] for run in results] == [8, 8, 8]
    assert all(0 < run["tower_share"] < 1 and run["perplexity"] > 1 for run in results)
    assert (
        results[0]["perplexity"] == results[1]["perplexity"] != results[2]["perplexity"]
    )  # two experts are its own routing
    assert "tower %" in (out / "table.md").read_text()


def test_other_pictures_are_other_settings(tmp_path: Path) -> None:
    write_tasks(tmp_path, 2)
    options = {"model": "m", "tasks": tmp_path, "selections": ["lynx"], "batch_sizes": [1]}
    before = StudyOptions(**options).settings()["tasks_digest"]
    assert StudyOptions(**options).settings()["tasks_digest"] == before
    (tmp_path / "images" / "near20.png").write_bytes(b"another")
    assert StudyOptions(**options).settings()["tasks_digest"] != before


def test_calibration_refuses_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tasks(tmp_path, 2)
    assert main(["calibrate", "--tasks", str(tmp_path), "--out", str(tmp_path / "x.safetensors")]) != 0
    assert "questions about pictures" in capsys.readouterr().err


def test_held_out_sets(tmp_path: Path) -> None:
    """tools/training/picture_tasks.py: odd seeds, one question a picture; with --other the same questions on other pictures."""
    pytest.importorskip("PIL")
    script = ROOT / "tools" / "training" / "picture_tasks.py"
    environment = {**os.environ, "PYTHONPATH": str(script.parent)}
    for out, more in ((tmp_path / "own", []), (tmp_path / "other", ["--other"])):
        command = [sys.executable, str(script), "--out", str(out), "--count", "4", *more]
        subprocess.run(command, env=environment, check=True, timeout=120)
    own, other = load_tasks(tmp_path / "own"), load_tasks(tmp_path / "other")
    assert {task: items[0].metric for task, items in own.items()} == {
        "bars": "relaxed", "lines": "relaxed", "table": "anls", "form": "anls", "receipt": "anls", "shapes": "vqa"
    }  # fmt: skip
    for task, items in own.items():
        assert (
            len({item.image for item in items})
            == len({item.media()["multi_modal_data"]["image"] for item in items})
            == 4
        )
        assert all(item.score(item.answer) == 1.0 and item.prompt.count("<|image_pad|>") == 1 for item in items)
        pairs = list(zip(items, other[task], strict=True))
        assert all(a.prompt == b.prompt and a.media() != b.media() for a, b in pairs)
