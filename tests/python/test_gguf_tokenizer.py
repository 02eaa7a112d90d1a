"""Tokenizers in the metadata of GGUF files: ids as those of the tokenizer that they were made of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import made_tokenizers as made
import pytest
import sentencepiece as spm
import tokenizers
from gguf import TokenType
from made_texts import texts
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GemmaTokenizer

import lynx_rt
from lynx_rt import CheckpointError, UnsupportedModelError
from lynx_rt.text.gguf_patterns import WORDS
from lynx_rt.text.tokenizer import Tokenizer

# Patterns of tokenizer.json files, written out as these have them.
CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN = CL100K.replace("{1,3}", "")
QWEN35 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = O200K.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace("{1,3}", "")
DEEPSEEK3 = [
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+"""
    r"|\s+(?!\S)|\s+",
]
STYLES: dict[str, tuple[list[str], bool]] = {  # name in GGUF -> patterns of tokenizer.json, and whether it normalises
    "gpt-2": ([], False),
    "qwen2": ([QWEN], True),
    "qwen35": ([QWEN35], True),
    "deepseek-r1-qwen": ([QWEN], False),
    "llama-bpe": ([CL100K], False),
    "glm4": ([CL100K], False),
    "gpt-4o": ([O200K], False),
    "tekken": ([TEKKEN], False),
    "deepseek-v3": (DEEPSEEK3, False),
}
CORPUS = [
    *made.CORPUS,
    "Numbers 123456 7890, 3.14; it's I'LL they'd\n\n  x = {'a': [1, 2]}\t// done!!",
    "Ünïcödé ÀÉ ß Ω ‽ €5",
] * 3


def write(file: Path, values: dict[str, Any]) -> Path:
    """Writes a file of metadata alone; keys without a point are those of "tokenizer.ggml."."""
    writer = gguf.GGUFWriter(file, "qwen3moe")
    for name, value in values.items():
        key = name if "." in name else f"tokenizer.ggml.{name}"
        add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}.get(type(value), writer.add_array)
        add(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def exported(content: dict[str, Any], pre: str) -> dict[str, Any]:
    """Returns the metadata that llama.cpp's converter makes of a tokenizer.json of byte-level BPE."""
    added = {token["id"]: token for token in content["added_tokens"]}
    tokens = {place: token for token, place in content["model"]["vocab"].items()}
    tokens |= {place: token["content"] for place, token in added.items()}
    size = max(tokens) + 1
    kinds = []
    for place in range(size):
        kind = TokenType.NORMAL if place in tokens else TokenType.UNUSED
        if place in added:
            kind = TokenType.CONTROL if added[place]["special"] else TokenType.USER_DEFINED
        kinds.append(int(kind))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    return {
        "model": "gpt2",
        "pre": pre,
        "tokens": [tokens.get(place, f"[PAD{place}]") for place in range(size)],
        "token_type": kinds,
        "merges": merges,
    }


def trained(patterns: list[str], nfc: bool) -> tokenizers.Tokenizer:
    raw = tokenizers.Tokenizer(models.BPE())
    if nfc:
        raw.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in patterns]
    raw.pre_tokenizer = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(False, use_regex=not patterns)])
    raw.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False))
    raw.add_special_tokens(["<|bos|>", "<|end|>"])
    raw.add_tokens([AddedToken("<tool>", normalized=False)])
    return raw


def check_same(ours: Tokenizer, expected: Callable[[str], list[int]]) -> None:
    for text in [*texts(), *CORPUS, "<|bos|>hello<tool> world<|end|>"]:
        assert ours.encode(text, add_special_tokens=False) == expected(text), text


@pytest.mark.parametrize("pre", STYLES)
def test_byte_level(pre: str, tmp_path: Path) -> None:
    raw = trained(*STYLES[pre])
    values = exported(json.loads(raw.to_str()), pre) | {"bos_token_id": raw.token_to_id("<|bos|>")}
    ours = Tokenizer(write(tmp_path / "m.gguf", values))
    check_same(ours, lambda text: raw.encode(text, add_special_tokens=False).ids)
    assert ours.special_token_ids == {raw.token_to_id(token) for token in ("<|bos|>", "<|end|>")}
    assert ours.decode(ours.encode("naïve <tool>x", add_special_tokens=False)) == "naïve <tool>x"
    starts = ours.encode("x")[0] == ours.bos_token_id
    assert starts == (pre in ("llama-bpe", "tekken"))


def test_every_pattern_compiles(tmp_path: Path) -> None:
    raw = trained([], False)
    for pre in WORDS:
        values = exported(json.loads(raw.to_str()), pre) | {"add_bos_token": False}
        ours = Tokenizer(write(tmp_path / "m.gguf", values))
        for text in CORPUS:
            assert ours.decode(ours.encode(text)) == text, pre


def test_lynx_nano(tmp_path: Path) -> None:
    folder = Path(lynx_rt.shipped_model())
    expected = Tokenizer(folder)
    template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    values = exported(json.loads((folder / "tokenizer.json").read_text()), "stablelm2")
    values |= {"bos_token_id": 1, "eos_token_id": 2, "padding_token_id": 0, "add_bos_token": True}
    ours = Tokenizer(write(tmp_path / "m.gguf", values | {"tokenizer.chat_template": template}))
    for text in [*texts(), *CORPUS, "<|bos|>a<|eos|>"]:
        assert ours.encode(text) == expected.encode(text)
        assert ours.encode(text, add_special_tokens=False) == expected.encode(text, add_special_tokens=False)
    assert ours.special_tokens == expected.special_tokens
    assert ours.special_token_ids == expected.special_token_ids
    assert ours.chat_template == template
    assert ours.decode(expected.encode("x y")) == expected.decode(expected.encode("x y"))


def test_huggingface_json_comes_first(tmp_path: Path) -> None:
    content = (Path(lynx_rt.shipped_model()) / "tokenizer.json").read_text()
    values = exported(json.loads(content), "of-another-world")
    ours = Tokenizer(write(tmp_path / "m.gguf", values | {"tokenizer.huggingface.json": content}))
    assert ours.encode("It's 12 o'clock") == Tokenizer(Path(lynx_rt.shipped_model())).encode("It's 12 o'clock")


def test_several_templates(tmp_path: Path) -> None:
    values = exported(json.loads(trained([], False).to_str()), "gpt-2")
    values |= {
        "tokenizer.chat_template": "a",
        "tokenizer.chat_templates": ["tool_use"],
        "tokenizer.chat_template.tool_use": "b",
    }
    assert Tokenizer(write(tmp_path / "m.gguf", values)).chat_template == {"default": "a", "tool_use": "b"}


def sentencepiece_values(model: spm.SentencePieceProcessor) -> dict[str, Any]:
    kinds = []
    for place in range(model.get_piece_size()):
        kind = TokenType.NORMAL
        for has, what in (
            (model.is_unknown, TokenType.UNKNOWN),
            (model.is_control, TokenType.CONTROL),
            (model.is_byte, TokenType.BYTE),
        ):
            kind = what if has(place) else kind
        if model.id_to_piece(place) == "<|user|>":
            kind = TokenType.USER_DEFINED
        kinds.append(int(kind))
    pieces = range(model.get_piece_size())
    return {
        "model": "llama",
        "pre": "default",
        "tokens": [model.id_to_piece(place) for place in pieces],
        "scores": [float(model.get_score(place)) for place in pieces],
        "token_type": kinds,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }


def test_sentencepiece(tmp_path: Path) -> None:
    model = spm.SentencePieceProcessor(model_proto=made.sentencepiece())
    ours = Tokenizer(write(tmp_path / "m.gguf", sentencepiece_values(model)))
    for text in [text for text in texts() if "<" not in text] + CORPUS:
        assert ours.encode(text, add_special_tokens=False) == model.encode(text), text
    assert ours.encode("a b")[0] == 1  # llama.cpp adds the start token to texts where the file does not say
    assert ours.decode(ours.encode("naïve x")) == "naïve x"
    without = Tokenizer(write(tmp_path / "n.gguf", sentencepiece_values(model) | {"add_bos_token": False}))
    assert without.encode("a b") == ours.encode("a b")[1:]


def test_gemma(tmp_path: Path) -> None:
    """Ids of transformers' GemmaTokenizer: no cut at spaces, bytes of characters that are no tokens."""
    raw = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    raw.normalizer = normalizers.Replace(" ", "▁")
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<|turn>", *(f"<0x{byte:02X}>" for byte in range(256))]
    raw.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=900, special_tokens=specials, limit_alphabet=60))
    content = json.loads(raw.to_str())["model"]
    vocab = content["vocab"]
    types = [
        TokenType.CONTROL if place < 6 else TokenType.BYTE if place < 262 else TokenType.NORMAL
        for place in range(len(vocab))
    ]
    types[3], types[5] = TokenType.UNKNOWN, TokenType.USER_DEFINED
    values = {"model": "gemma4", "tokens": list(vocab), "token_type": [int(kind) for kind in types], "scores": [-1000.0] * len(vocab),
              "merges": [" ".join(pair) for pair in content["merges"]], "bos_token_id": 2, "eos_token_id": 1, "unknown_token_id": 3,
              "padding_token_id": 0, "add_space_prefix": False, "add_bos_token": True}  # fmt: skip
    assert [vocab[token] for token in values["tokens"]] == list(range(len(vocab)))
    ours = Tokenizer(write(tmp_path / "m.gguf", values))
    theirs = GemmaTokenizer(
        vocab=vocab, merges=[tuple(pair) for pair in content["merges"]], extra_special_tokens=["<|turn>"]
    )
    for text in [*texts(), *CORPUS, "a  b\n\n\n c<|turn>user\nß€"]:
        assert ours.encode(text) == [2, *theirs.encode(text, add_special_tokens=False)], text
    assert ours.decode(ours.encode("naïve  x\n€"), skip_special_tokens=True) == "naïve  x\n€"
    with pytest.raises(CheckpointError, match=r"tokenizer\.ggml\.merges: expected a list of texts, got none"):
        Tokenizer(write(tmp_path / "n.gguf", {name: value for name, value in values.items() if name != "merges"}))


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        (
            {"pre": "klingon"},
            UnsupportedModelError,
            r"tokenizer\.ggml\.pre 'klingon', which is not known; known: chatglm-bpe",
        ),
        ({"pre": None}, UnsupportedModelError, r"does not say how text is cut into words \(tokenizer\.ggml\.pre\)"),
        ({"pre": 7}, CheckpointError, r"tokenizer\.ggml\.pre: expected str, got 7"),
        ({"model": "t5"}, UnsupportedModelError, r"tokenizer\.ggml\.model 't5' is not supported"),
        ({"model": None}, CheckpointError, r"tokenizer\.ggml\.model is missing"),
        ({"token_type": [1, 1]}, CheckpointError, r"tokenizer\.ggml\.token_type: expected \d+ values, got 2"),
        ({"tokens": [1, 2]}, CheckpointError, r"tokenizer\.ggml\.tokens: expected a list"),
        ({"tokens": ["a", "b", "a"], "token_type": None}, CheckpointError, r"tokenizer\.ggml\.tokens has 'a' twice"),
        (
            {"merges": ["ab"]},
            CheckpointError,
            r"tokenizer\.ggml\.merges: expected two tokens with a space between, got 'ab'",
        ),
        ({"merges": ["qq zz"]}, CheckpointError, "its tokenizer cannot be read"),
        (
            {"bos_token_id": 99999},
            CheckpointError,
            r"tokenizer\.ggml\.bos_token_id: expected an id below \d+, got 99999",
        ),
        ({"add_bos_token": "yes"}, CheckpointError, r"tokenizer\.ggml\.add_bos_token: expected bool, got 'yes'"),
        ({"tokenizer.chat_template": 3}, CheckpointError, r"tokenizer\.chat_template: expected a text, got 3"),
        ({"tokenizer.huggingface.json": "{"}, CheckpointError, "its tokenizer cannot be read"),
    ],
)
def test_faults(change: dict[str, Any], kind: type[Exception], says: str, tmp_path: Path) -> None:
    values = exported(json.loads(trained([], False).to_str()), "gpt-2") | change
    file = write(tmp_path / "m.gguf", {name: value for name, value in values.items() if value is not None})
    with pytest.raises(kind, match=says):
        Tokenizer(file)
