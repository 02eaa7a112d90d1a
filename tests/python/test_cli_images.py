"""`lynx-rt generate --image` and `lynx-rt chat --image`, with an engine that takes images and forgets them (tests/fake_vision.py)."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_vision import PLACEHOLDER, TEMPLATE, FakeCore
from PIL import Image

from lynx_rt import _C
from lynx_rt.cli.main import main
from lynx_rt.vision.preprocess import ImageProcessorConfig, num_image_tokens, patches_of

CONFIG = ImageProcessorConfig()
PIXELS = [np.full((270 + 30 * place, 260, 3), 40 * place, np.uint8) for place in range(3)]
DIGESTS = [patches_of(pixels, CONFIG).digest for pixels in PIXELS]


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    for place, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(tmp_path / f"{place}.png")
    return [str(tmp_path / f"{place}.png") for place in range(3)]


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> list[FakeCore]:
    """The compiled engines of the commands."""
    made: list[FakeCore] = []

    class Kept(FakeCore):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            made.append(self)

    monkeypatch.setattr(_C, "Engine", Kept)
    return made


def digests(core: FakeCore) -> list[list[bytes]]:
    return [[image["digest"] for image in images] for images in core.images]


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    try:
        code = main(list(argv))
    except SystemExit as end:
        code = int(end.code or 0)
    return (code, *capsys.readouterr())


def test_generate(capsys: pytest.CaptureFixture[str], cores: list[FakeCore], files: list[str]) -> None:
    images = ["--image", files[0], "--image", files[1]]
    common = ["generate", "--max-tokens", "2", "--json", *images]
    for prompt, expected in (
        ("what?", PLACEHOLDER * 2 + "what?"),  # in front
        (f"a{PLACEHOLDER}b{PLACEHOLDER}c", f"a{PLACEHOLDER}b{PLACEHOLDER}c"),  # where the prompt says
    ):
        code, out, _ = run(capsys, *common, "-p", prompt)
        record = json.loads(out)
        assert code == 0 and record["prompt"] == expected and digests(cores[-1]) == [DIGESTS[:2]]
        assert record["num_prompt_tokens"] > sum(num_image_tokens(*pixels.shape[:2], CONFIG) for pixels in PIXELS[:2])
    code, _, err = run(capsys, *common, "-p", f"a{PLACEHOLDER}")
    assert code == 1 and "expected one image placeholder (token 0) for each image, got 1 for 2 images" in err
    assert run(capsys, "generate", "--max-tokens", "2", "--stream", "-p", "x", *images)[0] == 0
    small = run(capsys, *common, "-p", "what?", "--mm-processor-kwargs", '{"max_pixels": 2048}')[1]
    assert json.loads(small)["num_prompt_tokens"] < 10


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        (["--image", "absent.png", "-p", "x"], "argument --image: 'absent.png' is no file"),
        (["--image", "IMAGE", "-p", "x", "-p", "y"], "argument --image: for one prompt only"),
        (["--image", "IMAGE", "-p", "x", "--mm-processor-kwargs", "5"], "must be a JSON object, got '5'"),
    ],
)
def test_wrong_usage(
    capsys: pytest.CaptureFixture[str], cores: list[FakeCore], files: list[str], more: list[str], fault: str
) -> None:
    code, _, err = run(capsys, "generate", *[files[0] if word == "IMAGE" else word for word in more])
    assert code == 2 and fault in err and not cores


def test_a_model_of_text(capsys: pytest.CaptureFixture[str], files: list[str]) -> None:
    code, _, err = run(capsys, "generate", "-p", "x", "--image", files[0])
    assert code == 1 and "'multi_modal_data' is not supported: this engine reads text only" in err


def test_chat(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    cores: list[FakeCore],
    files: list[str],
    tmp_path: Path,
) -> None:
    """Images stay in the conversation, with the message that they came with."""
    (tmp_path / "template").write_text(TEMPLATE)
    lines = f"what?\n/show-prompt\n/image {files[1]}\n/image {files[2]}\nand now?\n/image absent.png\nagain\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    options = ["--chat-template", str(tmp_path / "template"), "--max-tokens", "2", "--image", files[0]]
    code, out, err = run(capsys, "chat", *options)
    assert code == 1 and "/image: 'absent.png' is no file" in err  # the conversation went on, and the exit code tells
    assert f"<|bos|>Q: {PLACEHOLDER}what?\nA:\n" in out and "[2 image(s) for the next message]" in err
    assert digests(cores[-1]) == [DIGESTS[:1], DIGESTS, DIGESTS]
