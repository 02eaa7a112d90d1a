"""Tokenizer files of the families: encoding like transformers, and detokenization token by token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import made_tokenizers as made
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lynx_rt import CheckpointError, Tokenizer, ValidationError
from lynx_rt.text.detokenizer import ByteDetokenizer, WindowDetokenizer

TEXTS = [
    "",
    " ",
    "a",
    "  two  spaces ",
    "\n\tx\n",
    "The quick brown fox",
    "naïve 日本語 👩‍👩‍👧 e\u0301",
    "<s>start<s> in the middle </s> end",
    "a<left> b <right> c<both>d <|im_end|>\n<|im_end|> e",
    "word x<word>y <word> z (<word>)",
    "<UPPER> <upper>",
    "▁ ▁x",
    "<0x41> <0xE6>",
    "\u2028 \u00a0 \x00",
]


def agree(folder: Path, texts: list[str] = TEXTS) -> tuple[Tokenizer, Any]:
    """Both tokenizers of a folder, which must be alike."""
    ours, theirs = Tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for other in (ours, Tokenizer(theirs)):
        assert other.special_tokens == theirs.special_tokens_map
        assert (other.bos_token_id, other.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
        assert other.vocab_size == len(theirs)
        for text in texts:
            for special in (False, True):
                ids = other.encode(text, add_special_tokens=special)
                assert ids == theirs.encode(text, add_special_tokens=special)
                for skip in (False, True):
                    assert other.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)
    return ours, theirs


STYLES = {
    "byte level": made.byte_level,
    "byte fallback": made.byte_fallback,
    "byte fallback, metaspace": lambda: made.byte_fallback(legacy=False),
}
FLAGS = [
    {"content": "<left>", "lstrip": True},
    {"content": "<right>", "rstrip": True},
    {"content": "<both>", "lstrip": True, "rstrip": True, "special": True},
    {"content": "<word>", "single_word": True},
    {"content": "<UPPER>", "normalized": True},
    {"content": "<|im_end|>", "special": True, "normalized": False},
]


@pytest.fixture(params=STYLES)
def style(request: pytest.FixtureRequest) -> str:
    return STYLES[request.param]()


def listed(style: str) -> dict[str, dict[str, Any]]:
    """FLAGS as a tokenizer_config.json lists them, after the tokens of the vocabulary."""
    size = tokenizers.Tokenizer.from_str(style).get_vocab_size()
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {str(size + place): plain | token for place, token in enumerate(FLAGS)}


def test_tokens_that_only_the_config_lists(style: str, tmp_path: Path) -> None:
    ours, _ = agree(made.save(tmp_path, style, added_tokens_decoder=listed(style), eos_token="<|im_end|>"))
    assert len(ours.encode("<|im_end|>", add_special_tokens=False)) == 1
    assert {ours.backend.token_to_id(text) for text in ("<both>", "<|im_end|>")} <= ours.special_token_ids
    assert ours.backend.token_to_id("<left>") not in ours.special_token_ids
    assert ours.encode("a <left>", False) != ours.encode("a  <right>", False)


def test_tokens_that_tokenizer_json_lists(style: str, tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_str(style)
    backend.add_tokens([AddedToken(**token) for token in FLAGS])
    ours, _ = agree(made.save(tmp_path, backend.to_str(), eos_token="<|im_end|>", pad_token="<left>"))
    assert ours.eos_token_id == backend.token_to_id("<|im_end|>")


@pytest.mark.parametrize(
    "config",
    [
        {"bos_token": "<s>", "eos_token": {"__type": "AddedToken", "content": "</s>", "lstrip": True}},
        {"additional_special_tokens": ["<left>", "<right>"], "sep_token": "<both>"},
        {"extra_special_tokens": ["<left>", "<right>"], "additional_special_tokens": ["<both>"]},
        {"extra_special_tokens": {"image_token": "<left>"}, "video_token": "<right>", "chat_token": None},
        {"bos_token": "<s>", "add_bos_token": False, "add_eos_token": True, "eos_token": "</s>"},
        {"bos_token": None, "eos_token": None, "model_max_length": 4},
        {"eos_token": "The", "split_special_tokens": False},
        {"eos_token": "</s>", "split_special_tokens": True},
    ],
)
def test_special_tokens_of_the_config(style: str, tmp_path: Path, config: dict[str, Any]) -> None:
    agree(made.save(tmp_path, style, **config))


@pytest.mark.parametrize("decoder", [False, True], ids=["legacy", "with added_tokens_decoder"])
def test_special_tokens_map(style: str, tmp_path: Path, decoder: bool) -> None:
    """It counts only where the config lists no added tokens."""
    config: dict[str, Any] = {"eos_token": "<right>", "pad_token": "<both>"}
    if decoder:
        config["added_tokens_decoder"] = listed(style)
    made.save(tmp_path, style, **config)
    legacy = {
        "bos_token": {"content": "<left>", "lstrip": True, "normalized": False, "rstrip": False, "single_word": False},
        "eos_token": "<word>",
        "extra_special_tokens": ["<UPPER>"],
    }
    made.write_json(tmp_path / "special_tokens_map.json", legacy)
    ours, _ = agree(tmp_path)
    names = {"eos_token": "<right>", "pad_token": "<both>"}
    assert ours.special_tokens == (names if decoder else names | {"eos_token": "<word>", "bos_token": "<left>"})


def test_start_and_end_tokens_of_the_post_processor(style: str, tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_str(style)
    backend.add_special_tokens(["<s>", "</s>"])
    start, end = (backend.token_to_id(text) for text in ("<s>", "</s>"))
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    backend.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", start), ("</s>", end)]
    )
    for flag in ({}, {"add_bos_token": False}, {"add_bos_token": True}):
        ours, _ = agree(made.save(tmp_path / "both", backend.to_str(), **names, **flag))
        assert ours.encode("a")[0] == start and ours.encode("a")[-1] == end
        assert ours.encode("<s>a", add_special_tokens=False)[0] == start != ours.encode("a", False)[0]
    backend.post_processor = processors.Sequence([processors.ByteLevel(), backend.post_processor])
    agree(made.save(tmp_path / "sequence", backend.to_str(), **names))
    file = json.loads(backend.to_str()) | {"post_processor": None}
    ours, _ = agree(made.save(tmp_path / "none", json.dumps(file), **names, add_bos_token=False))
    assert ours.encode("") == []
    # The one difference, on purpose: transformers 5 forgets this flag, transformers 4 did not.
    ours = Tokenizer(made.save(tmp_path / "flag", json.dumps(file), **names, add_bos_token=True))
    assert ours.encode_batch(["", "a", "<s>a"]) == [
        [start],
        [start, *ours.encode("a", False)],
        ours.encode("<s>a", False),
    ]


def test_what_transformers_saves(style: str, tmp_path: Path) -> None:
    source = PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(style),
        bos_token=AddedToken("<left>", lstrip=True),
        eos_token="</s>",
        extra_special_tokens=["<both>", AddedToken("<right>", rstrip=True)],
        add_bos_token=True,
        chat_template="{{ messages }}",
    )
    source.add_tokens(["<UPPER>"])
    source.save_pretrained(tmp_path)
    ours, _ = agree(tmp_path)
    assert ours.encode("a")[0] == ours.bos_token_id and ours.chat_template == "{{ messages }}"


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"bos_token": 5}, "bos_token"),
        ({"eos_token": ["</s>"]}, "eos_token"),
        ({"pad_token": {"text": "x"}}, "pad_token"),
        ({"pad_token": {"content": "x", "lstrip": "yes"}}, "pad_token"),
        ({"extra_special_tokens": [1]}, "extra_special_tokens"),
        ({"extra_special_tokens": "<x>"}, "extra_special_tokens"),
        ({"additional_special_tokens": 1}, "additional_special_tokens"),
        ({"added_tokens_decoder": []}, "added_tokens_decoder"),
        ({"added_tokens_decoder": {"x": {"content": "x"}}}, "added_tokens_decoder[x]"),
        ({"added_tokens_decoder": {"5": {"content": 5}}}, r"added_tokens_decoder[5]"),
        ({"add_bos_token": "yes"}, "add_bos_token"),
        ({"split_special_tokens": 1}, "split_special_tokens"),
    ],
)
def test_malformed_configs(tmp_path: Path, config: dict[str, Any], key: str) -> None:
    made.save(tmp_path, made.byte_level(), **config)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: ") as caught:
        Tokenizer(tmp_path)
    assert caught.value.field == key and key.split("[")[0] in str(caught.value)


def test_ids_that_are_none() -> None:
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(made.byte_level()))
    assert tokenizer.decode([10**6]) == ""
    for ids in ([-1], ["a"], [2**40]):
        with pytest.raises(ValidationError, match="token ids must be"):
            tokenizer.decode(ids)


# Token by token


def with_decoder(decoder: Any, tokens: list[str]) -> Tokenizer:
    backend = tokenizers.Tokenizer(models.WordLevel({token: place for place, token in enumerate(tokens)}, tokens[0]))
    if decoder is not None:
        backend.decoder = decoder
    backend.add_special_tokens(["<s>", "</s>"])
    return Tokenizer(backend)


SPACED = ["▁", "▁a", "b", "▁▁", "c▁", "日", "▁日本", "x", "\ufffd"]
WORDS = ["a", "##b", "##c", ".", "n't", "do", "日", "##本", "'"]
SUFFIXED = ["a</w>", "b", "c</w>", "</w>", "日</w>", "d"]
STRIP = decoders.Strip(" ", 1, 0)
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
BYTES = made.byte_fallback()


def fallback(*steps: Any) -> Tokenizer:
    backend = tokenizers.Tokenizer.from_str(BYTES)
    backend.decoder = decoders.Sequence(list(steps))
    backend.add_tokens([AddedToken("<both>"), AddedToken("▁added "), AddedToken("  ")])
    return Tokenizer(backend)


def byte_level_with_added() -> Tokenizer:
    backend = tokenizers.Tokenizer.from_str(made.byte_level())
    backend.add_special_tokens(["<s>", "日"])
    backend.add_tokens(["<tool>", "Ġx", "é"])
    return Tokenizer(backend)


REPLACE = decoders.Replace("▁", " ")
IN_BYTES = {
    "byte level": byte_level_with_added(),
    "llama": fallback(REPLACE, decoders.ByteFallback(), decoders.Fuse(), STRIP),
    "two spaces": fallback(REPLACE, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 2, 0)),
    "gemma": fallback(REPLACE, decoders.ByteFallback(), decoders.Fuse()),
    "no fuse": fallback(REPLACE, decoders.Replace("<both>", "▁"), decoders.ByteFallback()),
}
IN_WINDOWS = {
    "wordpiece": with_decoder(decoders.WordPiece(), WORDS),
    "wordpiece, no cleanup": with_decoder(decoders.WordPiece(cleanup=False), WORDS),
    "metaspace": with_decoder(decoders.Metaspace(), SPACED),
    "metaspace, never": with_decoder(decoders.Metaspace(prepend_scheme="never"), SPACED),
    "bpe": with_decoder(decoders.BPEDecoder(), SUFFIXED),
    "none": with_decoder(None, WORDS),
    "ctc": with_decoder(decoders.CTC(), ["<pad>", "|", "a", "b", "'"]),
    "sequence": with_decoder(decoders.Sequence([decoders.Metaspace(), decoders.Fuse()]), SPACED),
    "replace by pattern": with_decoder(
        decoders.Sequence([decoders.Replace(tokenizers.Regex("▁"), " "), decoders.Fuse(), STRIP]), SPACED
    ),
    "bytes by pattern": fallback(
        decoders.Replace(tokenizers.Regex("▁"), " "), decoders.ByteFallback(), decoders.Fuse(), STRIP
    ),
}
EVERY = IN_BYTES | IN_WINDOWS
WITH_BYTE_TOKENS = {name for name, tokenizer in EVERY.items() if tokenizer.backend.token_to_id("<0x00>") is not None}


def stream(tokenizer: Tokenizer, ids: list[int], skip: bool, prompt: list[int] | None = None) -> list[str]:
    detokenizer = tokenizer.detokenizer(skip, prompt or [])
    return [*[detokenizer.add(token_id) for token_id in ids], detokenizer.finish()]


def whole_characters(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """`ids` with each byte token of a sentencepiece vocabulary replaced by those of a character, whole."""
    byte_of = {tokenizer.backend.token_to_id(token): byte for byte, token in enumerate(BYTE_TOKENS)}
    id_of = {byte: token_id for token_id, byte in byte_of.items()}
    out: list[int] = []
    for token_id in ids:
        byte = byte_of.get(token_id)
        out += [token_id] if byte is None else [id_of[b] for b in chr(0x20 + byte * byte * 15).encode(errors="ignore")]
    return out


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=40)
@given(data=st.data())
def test_pieces_make_up_the_whole(name: str, data: st.DataObject) -> None:
    tokenizer = EVERY[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=40))
    skip = data.draw(st.booleans())
    if name in WITH_BYTE_TOKENS:
        ids = whole_characters(tokenizer, ids)
    assert "".join(stream(tokenizer, ids, skip)) == tokenizer.decode(ids, skip)


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=30)
@given(data=st.data())
def test_pieces_continue_the_prompt(name: str, data: st.DataObject) -> None:
    """With a prompt, they are what the text is longer by: no space is lost or gained."""
    tokenizer = EVERY[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=40))
    skip = data.draw(st.booleans())
    if name == "byte level":
        ids = tokenizer.encode(data.draw(st.text(alphabet="a é日👩<s>", max_size=20)), False)
    elif name in WITH_BYTE_TOKENS:
        ids = whole_characters(tokenizer, ids)
    cut = data.draw(st.integers(0, len(ids)))
    while (head := tokenizer.decode(ids[:cut], skip)).endswith("\ufffd"):  # not inside a character
        cut -= 1
    assert head + "".join(stream(tokenizer, ids[cut:], skip, ids[:cut])) == tokenizer.decode(ids, skip)


@pytest.mark.parametrize("name", EVERY)
def test_starts_of_the_text(name: str) -> None:
    """Where spaces at the start are dropped: many space tokens, ids of no token, special tokens, an empty text."""
    tokenizer = EVERY[name]
    backend = tokenizer.backend
    space, word = ([backend.token_to_id(t) or 1] for t in ("▁", "a"))
    spaced = [backend.token_to_id("▁a") or backend.token_to_id("▁b") or word[0]]
    special, unknown = [backend.token_to_id("<s>") or 0], [tokenizer.vocab_size + 1]
    for start in (
        [],
        space,
        space * 2,
        space * 3,
        unknown * 9,
        special * 9,
        special * 3 + space * 2,
        word + special * 9,
    ):
        for end in (space + word, spaced + word, spaced + unknown * 9 + spaced, unknown * 9 + space + word):
            ids = start + end
            for skip in (False, True):
                whole = tokenizer.decode(ids, skip)
                assert "".join(stream(tokenizer, ids, skip)) == whole
                head = tokenizer.decode(start, skip)
                assert head + "".join(stream(tokenizer, end, skip, start)) == whole


def test_a_decoder_that_cannot_decode_nothing() -> None:
    """Strip at the end of an empty text panics in `tokenizers`."""
    tokenizer = with_decoder(decoders.Sequence([decoders.Fuse(), decoders.Strip("x", 0, 1)]), SPACED)
    ids = [1, 7, 2]
    assert "".join(stream(tokenizer, ids, True)) == tokenizer.decode(ids) == "▁axb"


def test_which_detokenizer() -> None:
    assert all(isinstance(tokenizer.detokenizer(), ByteDetokenizer) for tokenizer in IN_BYTES.values())
    assert all(isinstance(tokenizer.detokenizer(), WindowDetokenizer) for tokenizer in IN_WINDOWS.values())


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_characters_of_bytes_are_shown_when_complete(name: str) -> None:
    tokenizer = IN_BYTES[name]
    ids = [tokenizer.backend.token_to_id(BYTE_TOKENS[byte]) for byte in "日👩".encode()]
    assert stream(tokenizer, ids, True) == ["", "", "日", "", "", "", "👩", ""]
    assert stream(tokenizer, ids[1:3], True, ids[:1]) == ["", "日", ""]
    # decode() replaces the whole run; what is out cannot be taken back.
    assert stream(tokenizer, ids[:5], True) == ["", "", "日", "", "", "\ufffd"]
    assert tokenizer.decode(ids[:5]) == "\ufffd" * 5


@pytest.mark.parametrize("name", sorted(WITH_BYTE_TOKENS & IN_BYTES.keys()))
@settings(max_examples=30)
@given(data=st.data())
def test_any_bytes_keep_what_is_whole(name: str, data: st.DataObject) -> None:
    """Garbage loses nothing else: runs of bytes are decoded as Python does it."""
    tokenizer = IN_BYTES[name]
    text = data.draw(st.lists(st.one_of(st.sampled_from(["a", "b", "c"]), st.integers(0, 255)), max_size=30))
    tokens = ["q", *(BYTE_TOKENS[item] if isinstance(item, int) else item for item in text)]
    ids = [tokenizer.backend.token_to_id(token) for token in tokens]
    raw = b"".join(bytes([item]) if isinstance(item, int) else item.encode() for item in text)
    assert "".join(stream(tokenizer, ids, True)) == "q" + raw.decode(errors="replace")


@settings(max_examples=30)
@given(st.lists(st.integers(0, 12), max_size=80))
def test_the_window_is_bounded(ids: list[int]) -> None:
    for tokenizer in IN_WINDOWS.values():
        detokenizer = tokenizer.detokenizer()
        assert isinstance(detokenizer, WindowDetokenizer)
        for token_id in ids:
            detokenizer.add(token_id)
            assert len(detokenizer._window) <= 2 * detokenizer._MAX_PENDING


# One token by itself

PLAIN_BYTES = Tokenizer(tokenizers.Tokenizer.from_str(made.byte_level()))


def test_pieces_keep_their_spaces() -> None:
    tokenizer = IN_BYTES["llama"]
    backend = tokenizer.backend
    spaced = next(token for token in backend.get_vocab() if token.startswith("▁") and backend.token_to_id(token[1:]))
    with_space, without = (backend.token_to_id(token) for token in (spaced, spaced[1:]))
    assert tokenizer.piece(with_space) == " " + spaced[1:] and tokenizer.piece(without) == spaced[1:]
    metaspace = IN_WINDOWS["metaspace"]
    assert [metaspace.piece(metaspace.backend.token_to_id(token)) for token in ("▁a", "b", "c▁")] == [" a", "b", "c "]
    wordpiece = IN_WINDOWS["wordpiece"]
    assert [wordpiece.piece(wordpiece.backend.token_to_id(token)) for token in ("a", "##b")] == [" a", "b"]


@pytest.mark.parametrize("name", ["byte level", "llama", "gemma", "no fuse", "bytes by pattern"])
@settings(max_examples=30)
@given(text=st.text(alphabet="abc é日👩 ", max_size=30))
def test_bytes_of_tokens_make_up_the_text(name: str, text: str) -> None:
    tokenizer = PLAIN_BYTES if name == "byte level" else EVERY[name]
    prompt, ids = tokenizer.encode("q", False), tokenizer.encode("q" + text, False)
    if ids[: len(prompt)] == prompt:
        rest = ids[len(prompt) :]
        assert b"".join(tokenizer.token_bytes(token_id) for token_id in rest).decode() == text


def test_bytes_of_a_split_character() -> None:
    for tokenizer in (IN_BYTES["llama"], EVERY["bytes by pattern"]):
        ids = [tokenizer.backend.token_to_id(BYTE_TOKENS[byte]) for byte in "日".encode()]
        assert [tokenizer.token_bytes(token_id) for token_id in ids] == [b"\xe6", b"\x97", b"\xa5"]
        assert [tokenizer.piece(token_id) for token_id in ids] == ["\\xe6", "\\x97", "\\xa5"]
    assert IN_BYTES["byte level"].token_bytes(10**6) == b""
