"""Tokenizer, and detokenization token by token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from lynx_rt import CheckpointError, ModelNotFoundError, Tokenizer, ValidationError, shipped_model
from lynx_rt.text.detokenizer import Detokenizer

NANO = Tokenizer(shipped_model())
MIXED = "naïve 日本語 👩‍👩‍👧 émigré\n\t🇩🇪 e\u0301 end"


def make_byte_fallback() -> Tokenizer:
    """A sentencepiece-like vocabulary: a few pieces, and bytes for everything else."""
    tokens = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", *"abcdeh"]
    model = models.BPE({token: place for place, token in enumerate(tokens)}, [], byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(backend)


BYTES = make_byte_fallback()


def feed(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    return [*[detokenizer.add(token_id) for token_id in ids], detokenizer.finish()]


def test_special_tokens() -> None:
    assert (NANO.bos_token_id, NANO.eos_token_id) == (1, 2)
    assert NANO.special_token_ids == {0, 1, 2}
    assert NANO.special_tokens == {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>"}
    assert NANO.all_special_tokens == ("<|pad|>", "<|bos|>", "<|eos|>")
    assert NANO.vocab_size == 4096
    assert NANO.encode("Q:")[0] == 1
    assert NANO.encode("Q:", add_special_tokens=False)[0] != 1
    assert NANO.decode([1, *NANO.encode("Q: x"), 2]) == "Q: x"
    assert NANO.decode([2], skip_special_tokens=False) == "<|eos|>" == NANO.piece(2)


@given(st.text(max_size=60))
def test_round_trip(text: str) -> None:
    assume(not any(token in text for token in NANO.all_special_tokens))  # Hypothesis tries the constants of other tests
    assert NANO.decode(NANO.encode(text)) == text


@given(st.lists(st.integers(0, 4200), max_size=60), st.booleans())
def test_byte_level_streaming_equals_the_full_decode(ids: list[int], skip: bool) -> None:
    assert "".join(feed(NANO.detokenizer(skip), ids)) == NANO.decode(ids, skip_special_tokens=skip)


@given(st.lists(st.integers(3, 258), max_size=60))
def test_byte_garbage_streaming_equals_the_full_decode(ids: list[int]) -> None:
    """The vocabulary's first ids after the special ones are single bytes: mostly broken UTF-8."""
    assert "".join(feed(NANO.detokenizer(), ids)) == NANO.decode(ids)


@pytest.mark.parametrize("tokenizer", [NANO, BYTES], ids=["byte-level", "byte-fallback"])
def test_half_characters_are_never_shown(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(MIXED, add_special_tokens=False)
    pieces = feed(tokenizer.detokenizer(), ids)
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert len(ids) > len(MIXED.split())


def test_an_end_inside_a_character_shows_at_the_end_only() -> None:
    ids = NANO.encode("x👩", add_special_tokens=False)[:-1]
    pieces = feed(NANO.detokenizer(), ids)
    assert pieces[-1] == "\ufffd" and "\ufffd" not in "".join(pieces[:-1])


@given(st.text(alphabet="abc déß👩日 ", max_size=40), st.text(alphabet="ab ", max_size=8))
def test_window_streaming_continues_the_prompt(text: str, prompt: str) -> None:
    """What follows a prompt keeps its leading space, which a decode of the new tokens alone would lose."""
    head = BYTES.encode("a" + prompt)
    whole = BYTES.encode("a" + prompt + text)
    assert whole[: len(head)] == head
    pieces = feed(BYTES.detokenizer(prompt_token_ids=head), whole[len(head) :])
    assert "".join(pieces) == text


def test_window_skips_special_tokens() -> None:
    backend = tokenizers.Tokenizer.from_str(BYTES.backend.to_str())
    backend.add_special_tokens(["<s>"])
    tokenizer = Tokenizer(backend)
    special = backend.token_to_id("<s>")
    ids = [special, *tokenizer.encode("ab"), special, special]
    assert "".join(feed(tokenizer.detokenizer(), ids)) == "ab"
    assert "".join(feed(tokenizer.detokenizer(skip_special_tokens=False), ids)).count("<s>") == 3


def test_truncation_and_padding_of_the_file_are_off(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(f"{shipped_model()}/tokenizer.json")
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert len(Tokenizer(tmp_path).encode("one two three four five six")) not in (4, 64)


def test_config_files(tmp_path: Path) -> None:
    NANO.backend.save(str(tmp_path / "tokenizer.json"))
    config = {"eos_token": {"content": "<|eos|>"}, "chat_template": [{"name": "default", "template": "x"}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.eos_token_id == 2 and tokenizer.bos_token_id is None
    assert tokenizer.chat_template == {"default": "x"}
    (tmp_path / "chat_template.jinja").write_text("y")
    assert Tokenizer(tmp_path / "tokenizer.json").chat_template == "y"
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        Tokenizer(tmp_path)


def test_add_bos_token(tmp_path: Path) -> None:
    """Some configs ask for a start token that tokenizer.json itself does not add."""
    NANO.backend.save(str(tmp_path / "tokenizer.json"))
    file = json.loads((tmp_path / "tokenizer.json").read_text()) | {"post_processor": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<|bos|>", "add_bos_token": true}')
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.encode("Q: x") == tokenizer.encode("<|bos|>Q: x") == NANO.encode("Q: x")
    assert tokenizer.encode("Q: x", add_special_tokens=False) == NANO.encode("Q: x")[1:]


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="skip_tokenizer_init") as caught:
        Tokenizer(tmp_path)
    assert isinstance(caught.value, FileNotFoundError)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a tokenizer"):
        Tokenizer(tmp_path)
    with pytest.raises(ValidationError, match="tokenizer of transformers"):
        Tokenizer(3)
    with pytest.raises(ValidationError, match="UTF-8"):
        NANO.encode("\ud800")
