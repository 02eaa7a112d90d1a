"""Whole models with a vision tower, from a chat with images to tokens, beside transformers with its own image processor."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_vision import CHATS, GREEDY, PICTURES, answers, write_model

from lynx_rt import Engine
from lynx_rt.cli.main import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vl")
    write_model(path)
    return path


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[tuple[list[int], list[int]]]:
    return answers(folder)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with Engine(folder, dtype="float32", max_model_len=1024, expert_selection="topk") as made_engine:
        yield made_engine


def test_chats_equal_transformers(engine: Engine, expected: list[tuple[list[int], list[int]]]) -> None:
    assert engine.model_config["image_token_id"] == engine.encode("<|image_pad|>", False)[0]
    assert engine.image_placeholder is not None
    assert engine.image_placeholder.text == "<|vision_start|><|image_pad|><|vision_end|>"
    outputs = engine.chat(CHATS, GREEDY, use_tqdm=False)
    for output, (prompt, answer) in zip(outputs, expected, strict=True):
        assert output.prompt_token_ids == prompt
        assert output.outputs[0].token_ids == answer
    assert len({tuple(output.outputs[0].token_ids) for output in outputs}) == len(CHATS)  # they are not all alike


def test_every_form_gives_the_same_answer(engine: Engine, expected: list[tuple[list[int], list[int]]]) -> None:
    [messages], answer = CHATS[1], expected[1][1]
    text = engine.render_chat([messages])
    for prompt in (
        text,
        {"prompt": text["prompt"], "multi_modal_data": {"image": np.asarray(PICTURES[0])}},
        {"prompt_token_ids": text["prompt_token_ids"], "multi_modal_data": {"image": [PICTURES[0]]}},
    ):
        assert engine.generate(prompt, GREEDY)[0].outputs[0].token_ids == answer
    last = list(engine.stream(text, GREEDY))[-1]
    assert last.outputs[0].token_ids == answer
    # The image matters, and its size does.
    other = {**text, "multi_modal_data": {"image": PICTURES[0].transpose(Image.Transpose.FLIP_LEFT_RIGHT)}}
    assert engine.generate(other, GREEDY)[0].outputs[0].token_ids != answer
    small = engine.generate({**text, "mm_processor_kwargs": {"max_pixels": 4096}}, GREEDY)[0]
    assert len(small.prompt_token_ids) < len(expected[1][0]) and small.outputs[0].token_ids != answer


def test_scores(engine: Engine, expected: list[tuple[list[int], list[int]]]) -> None:
    """The model's own answer is likelier with the image that it is about."""
    text, answer = engine.render_chat(CHATS[1]), expected[1][1]
    other = {**text, "multi_modal_data": {"image": PICTURES[1]}}
    own, foreign = engine.score([text, other], [{"prompt_token_ids": answer}] * 2)
    assert own > foreign


def test_command_line(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    engine: Engine,
) -> None:
    file = tmp_path / "p.png"
    PICTURES[0].save(file)
    argv = [
        "generate",
        str(folder),
        "--image",
        str(file),
        "-p",
        "What is this?",
        "--json",
        "--max-tokens",
        "8",
        "--temperature",
        "0",
    ]
    assert main([*argv, "--dtype", "float32", "--max-model-len", "1024"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["prompt"] == "<|vision_start|><|image_pad|><|vision_end|>What is this?"
    prompt = {"prompt": record["prompt"], "multi_modal_data": {"image": PICTURES[0]}}
    [output] = engine.generate(prompt, {"temperature": 0, "max_tokens": 8})
    assert output.outputs[0].token_ids == record["token_ids"]
