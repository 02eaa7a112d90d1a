"""bench/picture_study.py: the tables of known runs."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).resolve().parents[2] / "bench" / "picture_study.py"


def record(policy: str, batch: int, families: str, scores: list[float]) -> dict[str, Any]:
    items = {
        task: {"ids": list(range(len(scores))), "correct": "0" * len(scores), "tokens": 9, "scores": scores}
        for task in families.split(",")
    }
    results = {
        "items": items, "union_before": 8.0, "active": 8.0 if policy == "topk" else 3.0, "decode_tokens_per_s": 100.0,
        "tokens_per_s": 40.0, "ttft_ms_mean": 12.5, "tower_share": 0.25, "decode_share": 0.5, "decode_only_share": 0.75,
    }  # fmt: skip
    key = {"policy": policy, "batch": batch, "batches": "mixed", "seed": 0}
    settings = {"model": "m", "quantization": "none"}
    return {
        "format": 1,
        "key": key,
        "selection": policy,
        "settings": settings,
        "command": "lynx-rt study m",
        "results": results,
    }


def test_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("picture_study", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for kind, (_, families) in module.KINDS.items():
        (tmp_path / kind).mkdir()
        with open(tmp_path / kind / "runs.jsonl", "w") as file:
            for batch in (1, 16):
                for policy, scores in (("topk", [1.0, 0.5, 1.0]), ("top1", [0.5, 0.5, 1.0])):
                    print(json.dumps(record(policy, batch, families, scores)), file=file)
    monkeypatch.setattr(sys, "argv", ["x", "m", "--tasks", "t", "--out", str(tmp_path), "--report-only"])
    assert module.main() == 0
    text = (tmp_path / "pictures.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        f"## {title}" for title, _ in module.KINDS.values()
    ]
    # The differences are 1/2, 0, 0: mean 1/6, and their standard error sqrt(1/6) / 3 * sqrt(3/2) = 1/6.
    assert "| `top1` | 16.67 ± 16.67 | 16.67 ± 16.67 |" in text and "| `topk` | 83.33 % | 83.33 % |" in text
    assert "| `top1` | 3.00 of 8.00 | 3.00 of 8.00 |" in text and "| `topk` | 100 / 40 | 100 / 40 |" in text
    assert "| 16 | 25.0 % | 25.0 % | 50.0 % | 75.0 % |" in text and "| `topk` | 12.5 | 12.5 |" in text
    assert "| policy | form | receipt | table |" in text
