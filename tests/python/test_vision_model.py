"""The trained model that reads pictures: it answers as docs/vision.md says, and as transformers does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import lynx_rt

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "bench" / "models" / "lynx-nano-vl"
ROW = re.compile(r"^\| (?:!\[[^\]]*\]\((?P<picture>[^)]+)\))? ?\| (?P<question>[^|]+\?) \| (?P<answer>[^|]+) \|$")


def documented() -> list[tuple[Path, str, str]]:
    """Picture, question and answer of each row of the table in docs/vision.md."""
    found, picture = [], ""
    for line in (ROOT / "docs" / "vision.md").read_text(encoding="utf-8").splitlines():
        if row := ROW.match(line):
            picture = row["picture"] or picture
            found.append((ROOT / "docs" / picture, row["question"], row["answer"]))
    return found


def test_answers_of_the_documentation() -> None:
    rows = documented()
    assert len(rows) == 15
    with lynx_rt.Engine(MODEL, dtype="float32") as engine:
        mark = engine.image_placeholder.text
        prompts = [
            {"prompt": f"{mark}Q: {question}\nA:", "multi_modal_data": {"image": picture}}
            for picture, question, _ in rows
        ]
        outputs = engine.generate(prompts, {"temperature": 0, "max_tokens": 40})
        stats = engine.stats()
    said = [output.outputs[0].text.strip() for output in outputs]
    assert said == [answer.split(" ✗ ")[0] for _, _, answer in rows]
    assert stats.images == 15 and stats.images_encoded == 6 and stats.images_cached == 9


def test_tokens_are_those_of_transformers() -> None:
    torch = pytest.importorskip("torch")
    from PIL import Image
    from transformers import Qwen3VLMoeForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    theirs = Qwen3VLMoeForConditionalGeneration.from_pretrained(MODEL, dtype=torch.float32).eval()
    process = Qwen2VLImageProcessorPil.from_pretrained(MODEL)
    pictures = sorted((ROOT / "docs" / "vision").glob("*.png"))
    params: dict[str, Any] = {"temperature": 0, "max_tokens": 24}
    with lynx_rt.Engine(MODEL, dtype="float32") as engine:
        mark = engine.image_placeholder.text
        prompts = [
            {"prompt": f"{mark}Q: What do you see?\nA:", "multi_modal_data": {"image": file}} for file in pictures
        ]
        for file, ours in zip(pictures, engine.generate(prompts, params), strict=True):
            seen = process([Image.open(file).convert("RGB")], return_tensors="pt")
            ids = torch.tensor([ours.prompt_token_ids])
            kinds = (ids == theirs.config.image_token_id).long()
            made = theirs.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=seen["pixel_values"],
                image_grid_thw=seen["image_grid_thw"], mm_token_type_ids=kinds, max_new_tokens=24, do_sample=False,
            )  # fmt: skip
            assert ours.outputs[0].token_ids == made[0, ids.shape[1] :].tolist(), file.name
