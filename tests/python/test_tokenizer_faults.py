"""Tokenizers that fail: the library's panics and Python's RecursionErrors arrive as LynxErrors that name the file."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_tokenizers as made
import pytest
import tokenizers
from tokenizers import decoders, models, processors

from lynx_rt import CheckpointError, Engine, LynxError, Tokenizer
from lynx_rt.text.tokenizer_config import read_json

DEEP = "[" * 100_000 + "]" * 100_000
Mutation = Callable[[dict[str, Any]], None]


def save_mutated(folder: Path, mutate: Mutation) -> Path:
    file = json.loads(made.byte_fallback())
    mutate(file)
    return made.save(folder, json.dumps(file))


def charsmap(data: bytes) -> dict[str, str]:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


@pytest.mark.parametrize(
    ("mutate", "message"),
    [
        (lambda file: file.update(normalizer={"type": "Precompiled", "precompiled_charsmap": [1]}), "Precompiled"),
        (lambda file: file.update(normalizer=charsmap(b"\xf0\xff\xff\xf0" + bytes(64))), "ends inside its trie"),
        (lambda file: file["post_processor"]["special_tokens"].clear(), "cannot encode"),
        (lambda file: file.update(model={"type": "Unigram", "unk_id": 5, "vocab": [["a", 0.0]]}), "UnkId"),
        (lambda file: file["model"].update(merges=[["a", "zzzz"]]), "zzzz"),
    ],
    ids=["a panic of the parser", "an abort of the allocator", "a panic of the post-processor", "unigram", "merges"],
)
def test_at_load(tmp_path: Path, mutate: Mutation, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        Tokenizer(save_mutated(tmp_path, mutate))
    assert caught.value.field == str(tmp_path / "tokenizer.json") and caught.value.field in str(caught.value)


def test_dropout_of_the_training_is_off(tmp_path: Path) -> None:
    tokenizer = Tokenizer(save_mutated(tmp_path, lambda file: file["model"].update(dropout=0.5)))
    assert len({tuple(tokenizer.encode("The quick brown fox")) for _ in range(20)}) == 1


def test_at_encode(tmp_path: Path) -> None:
    """A plain Exception of the library for one text; the next text works. In a batch as well."""
    vocab = [["a", 0.0], ["b", 0.0]]
    tokenizer = Tokenizer(
        save_mutated(tmp_path, lambda file: file.update(model={"type": "Unigram", "unk_id": None, "vocab": vocab}))
    )
    for call in (lambda: tokenizer.encode("q", False), lambda: tokenizer.encode_batch(["a", "q"] * 40, False)):
        with pytest.raises(CheckpointError, match="unk_id") as caught:
            call()
        assert caught.value.field == str(tmp_path / "tokenizer.json")


def test_a_backend_that_changes_later() -> None:
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(made.byte_fallback()))
    file = json.loads(made.byte_fallback())["post_processor"]
    file["special_tokens"] = {}
    tokenizer.backend.post_processor = processors.Sequence([])
    assert tokenizer.encode("") == []
    tokenizer.backend.post_processor = tokenizers.Tokenizer.from_str(
        json.dumps(json.loads(made.byte_fallback()) | {"post_processor": file})
    ).post_processor
    with pytest.raises(CheckpointError, match="the given tokenizer"):
        tokenizer.encode("a")


def panicking(size: int = 4096) -> Tokenizer:
    """Token 5 is "x", whose decoding panics."""
    vocab = {f"token{place} ": place for place in range(size)}
    del vocab["token5 "]
    backend = tokenizers.Tokenizer(models.WordLevel(vocab | {"x": 5}, "token0 "))
    backend.decoder = decoders.Strip("x", 0, 9)
    return Tokenizer(backend)


def test_at_decode() -> None:
    tokenizer = panicking()
    assert tokenizer.decode([7]) == "token7 "
    for call in (tokenizer.decode, tokenizer.detokenizer, lambda ids: tokenizer.detokenizer(prompt_token_ids=ids)):
        with pytest.raises(CheckpointError, match="cannot decode"):
            detokenizer = call([5])
            detokenizer.add(5)


def test_while_an_engine_streams(nano_path: str) -> None:
    """The request ends with an error; the one beside it goes on, and so does the engine."""
    greedy = {"temperature": 0, "max_tokens": 3, "ignore_eos": True}
    with Engine(nano_path, tokenizer=panicking()) as engine:
        bad, good = engine.generate(
            [[1, 2], [1, 2]], [greedy | {"allowed_token_ids": [5]}, greedy | {"allowed_token_ids": [7]}]
        )
        assert bad.outputs[0].finish_reason == "error" and "cannot decode" in str(bad.outputs[0].error)
        assert good.text == "token7 " * 3 and good.outputs[0].finish_reason == "length"
        assert engine.stats().num_running == 0
        (again,) = engine.generate([1, 2], greedy | {"allowed_token_ids": [7]})
        assert again.text == good.text


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.json", "config.json"]
)
@pytest.mark.parametrize("depth", [101, 800, 100_000])
def test_deep_files(tmp_path: Path, name: str, depth: int) -> None:
    made.save(tmp_path, made.byte_level(), bos_token="<s>")
    (tmp_path / name).write_text('{"eos_token": ' + "[" * depth + "]" * depth + ', "temperature": 1}')
    for call in (lambda: Tokenizer(tmp_path), lambda: read_json(tmp_path / name)):
        with pytest.raises(CheckpointError) as caught:
            call()
        assert str(tmp_path / name) in str(caught.value) and len(str(caught.value)) < 600


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    made.save(tmp_path, made.byte_level())
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match="not UTF-8"):
        Tokenizer(tmp_path)
    (tmp_path / "special_tokens_map.json").mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        Tokenizer(tmp_path)


def test_messages_are_short(tmp_path: Path) -> None:
    made.save(tmp_path, made.byte_level(), bos_token=["x" * 10**6] * 100)
    with pytest.raises(LynxError) as caught:
        Tokenizer(tmp_path)
    assert len(str(caught.value)) < 2000
