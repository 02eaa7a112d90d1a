"""Vocabulary files of checkpoints, read like transformers, sentencepiece and tiktoken."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import made_tokenizers as made
import pytest
import sentencepiece as spm
import tiktoken
import tokenizers
from made_texts import texts
from tokenizers import AddedToken
from transformers import AutoTokenizer, ByT5Tokenizer, GPTSw3Tokenizer

from lynx_rt import CheckpointError, ModelNotFoundError, Tokenizer
from lynx_rt.text.tokenizer_formats import CL100K, KIMI, QWEN

TEXTS = texts()
SPECIAL = ("<s>", "</s>", "<unk>", "<pad>", "<|user|>", "<|ctl|>")
PLAIN = [text for text in TEXTS if not any(token in text for token in SPECIAL)]
NO_PREFIX: dict[str, Any] = {"add_dummy_prefix": False}


def write(
    folder: Path, config: dict[str, Any] | None = None, model_type: str | None = None, **files: str | bytes
) -> Path:
    """A folder; of the files' names, "_" stands for ".", so that they can be keywords."""
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        made.write_json(folder / "tokenizer_config.json", config)
    if model_type is not None:
        made.write_json(folder / "config.json", {"model_type": model_type})
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def agree(ours: Tokenizer, theirs: Any, names: bool = True) -> None:
    """Ids and texts of TEXTS. names: also those of the special tokens, and the size."""
    if names:
        assert ours.special_tokens == theirs.special_tokens_map and ours.vocab_size == len(theirs)
    for special in (False, True):
        expected = [theirs.encode(text, add_special_tokens=special) for text in TEXTS]
        assert ours.encode_batch(TEXTS, special) == expected
        for ids in expected[special::2]:
            assert ours.decode(ids, special) == theirs.decode(ids, skip_special_tokens=special)


def stream(tokenizer: Tokenizer, ids: list[int]) -> str:
    detokenizer = tokenizer.detokenizer()
    return "".join([*[detokenizer.add(token_id) for token_id in ids], detokenizer.finish()])


def llama_json() -> str:
    backend = tokenizers.Tokenizer.from_str(made.byte_fallback())
    backend.add_tokens([AddedToken("<|user|>"), AddedToken("fox", lstrip=True), AddedToken("Q", single_word=True)])
    return backend.to_str()


@pytest.mark.parametrize(
    ("config", "model_type"),
    [
        ({}, None),
        ({"legacy": True}, None),
        ({"legacy": False, "add_bos_token": True, "add_eos_token": True}, "deepseek_v3"),
        ({"add_prefix_space": False}, "qwen3_moe"),
        ({"bos_token": None, "added_tokens_decoder": {"400": {"content": "<|user|>"}}}, "olmoe"),
        ({"add_prefix_space": False}, "mixtral"),
        ({}, "phimoe"),
    ],
)
def test_tokenizer_json_of_llama(tmp_path: Path, config: dict[str, Any], model_type: str | None) -> None:
    """The class counts more than the file's normalizer: leading spaces, add_prefix_space, text after added tokens."""
    folder = write(
        tmp_path, {"tokenizer_class": "LlamaTokenizerFast"} | config, model_type, tokenizer_json=llama_json()
    )
    agree(Tokenizer(folder), AutoTokenizer.from_pretrained(folder))


@pytest.mark.parametrize(
    ("config", "model_type", "options"),
    [
        ({"tokenizer_class": "LlamaTokenizer"}, None, {}),
        ({"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": True, "legacy": True}, None, {}),
        ({"tokenizer_class": "LlamaTokenizerFast", "add_prefix_space": False, "add_bos_token": True}, None, {}),
        (
            {
                "tokenizer_class": "Ernie4_5_Tokenizer",
                "added_tokens_decoder": {"5": {"content": "<mask:1>"}, "600": {"content": "<|end|>", "special": True}},
            },
            "ernie4_5_moe",
            NO_PREFIX,
        ),
        ({"bos_token": "<s>", "add_bos_token": True}, "ernie4_5_moe", NO_PREFIX | {"model_type": "unigram"}),
        (
            {"cls_token": "<|begin|>"},
            "ernie4_5_moe",
            NO_PREFIX
            | {
                "model_type": "unigram",
                "byte_fallback": False,
                "vocab_size": 160,
                "normalization_rule_name": "nmt_nfkc",
            },
        ),
    ],
)
def test_sentencepiece(tmp_path: Path, config: dict[str, Any], model_type: str | None, options: dict[str, Any]) -> None:
    folder = write(tmp_path, config, model_type, tokenizer_model=made.sentencepiece(**options))
    ours = Tokenizer(folder)
    agree(ours, AutoTokenizer.from_pretrained(folder))
    if options.get("byte_fallback", True):
        ids = ours.encode("q 日本 ß", False)
        assert stream(ours, ids) == ours.decode(ids) == "q 日本 ß"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"remove_extra_whitespaces": True, "normalization_rule_name": "nmt_nfkc"},
        {"model_type": "unigram", "vocab_size": 160, "byte_fallback": False, "normalization_rule_name": "nfkc"},
        {"model_type": "unigram", "remove_extra_whitespaces": True},
    ],
)
def test_sentencepiece_by_itself(tmp_path: Path, options: dict[str, Any]) -> None:
    """Without a class that says otherwise, as the model's own library: prefix space, white space, normalization."""
    model = made.sentencepiece(**options)
    theirs = spm.SentencePieceProcessor(model_proto=model)
    ours = Tokenizer(write(tmp_path, {"tokenizer_class": "Other"}, tokenizer_model=model))
    for text in PLAIN:
        if options.get("model_type") == "unigram" and "<0x" in text:
            continue  # the library's Unigram takes the text of a byte token for the token, in transformers too
        ids = theirs.encode(text)
        assert ours.encode(text, False) == ids
        if theirs.unk_id() not in ids and "▁" not in text:
            assert ours.decode(ids) == theirs.decode(ids)


ADDED = {
    "400": {"content": "<|user|>", "special": True, "normalized": False},
    "401": {"content": "<|endoftext|>", "special": True, "normalized": False},
    "402": {"content": "<tool>", "special": False, "lstrip": True},
}


@pytest.mark.parametrize(
    ("config", "model_type"),
    [
        ({"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": ADDED}, "qwen3_moe"),
        ({"tokenizer_class": "Qwen2TokenizerFast", "eos_token": "<|user|>", "add_prefix_space": True}, None),
        ({}, "qwen2_moe"),
        ({"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": ADDED}, None),
        ({"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True, "add_bos_token": True}, None),
    ],
)
def test_vocab_and_merges(tmp_path: Path, config: dict[str, Any], model_type: str | None) -> None:
    vocab, merges = made.vocab_and_merges()
    folder = write(tmp_path, config, model_type, vocab_json=vocab, merges_txt=merges)
    agree(Tokenizer(folder), AutoTokenizer.from_pretrained(folder))


@pytest.mark.parametrize(
    ("name", "kind", "pattern", "normalize", "size"),
    [
        ("tiktoken.model", "TikTokenTokenizer", KIMI, False, 656),
        ("hy.tiktoken", "HYTokenizer", QWEN, True, 610),
        ("qwen.tiktoken", "QWenTokenizer", QWEN, True, 406),
        ("tokenizer.model", "PreTrainedTokenizerFast", CL100K, False, 406),
    ],
)
def test_tiktoken(tmp_path: Path, name: str, kind: str, pattern: str, normalize: bool, size: int) -> None:
    listed = {"400": {"content": "<s>", "special": True}, "405": {"content": "<|user|>", "special": True}}
    folder = write(tmp_path, {"tokenizer_class": kind, "added_tokens_decoder": listed, "bos_token": "<s>"})
    (folder / name).write_text(made.tiktoken_file())
    ours = Tokenizer(folder)
    special = {token.content: token_id for token_id, token in ours.backend.get_added_tokens_decoder().items()}
    assert ours.vocab_size == size and ours.bos_token_id == 400 and special["<|user|>"] == 405
    theirs = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=made.ranks(), special_tokens=special)
    for text in TEXTS:
        ids = theirs.encode(unicodedata.normalize("NFC", text) if normalize else text, allowed_special="all")
        assert ours.encode(text, False) == ids
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)


def test_tiktoken_as_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")  # tiktoken would keep the file for other runs, by its path alone
    listed = {"401": {"content": "<s>", "special": True}, "405": {"content": "<|user|>", "special": True}}
    config = {"tokenizer_class": "Other", "added_tokens_decoder": listed, "eos_token": "<s>", "add_eos_token": True}
    folder = write(tmp_path, config, "kimi_linear", tiktoken_model=made.tiktoken_file())
    agree(Tokenizer(folder), AutoTokenizer.from_pretrained(folder))


def test_tekken(tmp_path: Path) -> None:
    content = json.dumps(made.tekken(CL100K))
    config = {"tokenizer_class": "Other", "bos_token": "<s>", "add_bos_token": True}
    folder = write(tmp_path / "with config", config, "mixtral", tekken_json=content)
    agree(Tokenizer(folder), AutoTokenizer.from_pretrained(folder))
    # Mistral's own format has no config: names of tokens and the start token are then as its library has them.
    alone = Tokenizer(write(tmp_path / "alone", None, tekken_json=content))
    assert alone.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert alone.encode("a") == [1, *alone.encode("a", False)]


def test_added_tokens_json(tmp_path: Path) -> None:
    """What older versions of transformers saved beside tokenizer.model."""
    config = {"tokenizer_class": "LlamaTokenizer", "eos_token": "<|end|>", "add_bos_token": True}
    folder = write(tmp_path, config, tokenizer_model=made.sentencepiece())
    made.write_json(folder / "added_tokens.json", {"<tool>": 501, "<|end|>": 500})
    made.write_json(folder / "special_tokens_map.json", {"bos_token": "<s>"})
    ours = Tokenizer(folder)
    agree(ours, AutoTokenizer.from_pretrained(folder))
    assert ours.eos_token_id == 500 and ours.encode("<tool>", False)[-1] == 501


def test_objects_of_transformers(tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(made.sentencepiece())
    slow = GPTSw3Tokenizer(str(tmp_path / "spiece.model"), chat_template="{{ messages }}")
    for theirs in (ByT5Tokenizer(), slow):
        ours = Tokenizer(theirs)
        agree(ours, theirs)
        ids = ours.encode("q 日本 ß", False)
        assert stream(ours, ids) == ours.decode(ids)
        assert ours.decode([10**6]) == "" and (ours.eos_token_id or 0) in ours.special_token_ids
    assert ours.chat_template == "{{ messages }}"
    folder = write(tmp_path, {"tokenizer_class": "LlamaTokenizer"}, tokenizer_model=made.sentencepiece())
    theirs = AutoTokenizer.from_pretrained(folder)
    agree(Tokenizer(theirs), theirs)


def test_which_file_counts(tmp_path: Path) -> None:
    vocab, merges = made.vocab_and_merges()
    folder = write(tmp_path, {}, vocab_json=vocab, merges_txt=merges, tokenizer_model=made.sentencepiece())
    assert Tokenizer(folder).vocab_size == Tokenizer(folder / "tokenizer.model").vocab_size
    named = write(tmp_path / "named")
    (named / "spm.model").write_bytes(made.sentencepiece())
    assert Tokenizer(named).vocab_size == Tokenizer(folder / "tokenizer.model").vocab_size
    assert Tokenizer(folder / "vocab.json").encode("a", False) == [json.loads(vocab)["a"]]
    (folder / "tokenizer.json").write_text(made.byte_level())
    assert Tokenizer(folder).vocab_size == 400
    with pytest.raises(ModelNotFoundError, match=r"no tokenizer file \(one of tokenizer\.json, tekken\.json, tiktoken"):
        Tokenizer(tmp_path.parent)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.model", b"\n\x05", "ends inside a field"),
        ("tokenizer.model", b"\n\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "does not end"),
        ("tokenizer.model", b"", "tokenizer.model"),
        ("tokenizer.model", b"\x00\x01", "tokenizer.model"),
        ("hy.tiktoken", b"YQ== 0\nYQ", r"hy\.tiktoken .* line 2: expected a token"),
        ("hy.tiktoken", b"YQ== 0\n", "no token for the byte 0"),
        ("tiktoken.model", b"YQ== -5\n", r"tiktoken\.model .* line 1: expected a token"),
        ("tekken.json", b"{}", r"tekken\.json .* expected config, got None"),
        ("tekken.json", b"[]", r"tekken\.json should hold a JSON object"),
        ("vocab.json", b'{"a": -1}', r"vocab\.json .* id of 'a' must be an integer from 0 on, got -1"),
        ("vocab.json", b"{}", "merges.txt"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    if message != "merges.txt":
        (tmp_path / "merges.txt").write_text("")
    with pytest.raises(CheckpointError, match=message) as caught:
        Tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_chat_templates_of_several_files(tmp_path: Path) -> None:
    """In the order of transformers: .jinja files, tokenizer_config.json; then chat_template.json, which only we read."""
    folder = made.save(tmp_path, made.byte_level())
    made.write_json(folder / "chat_template.json", {"chat_template": "of chat_template.json"})
    assert Tokenizer(folder).chat_template == "of chat_template.json"
    named = [{"name": "default", "template": "of the config"}, {"name": "tool_use", "template": "with tools"}]
    steps: list[tuple[str, str]] = [
        ("tokenizer_config.json", json.dumps({"chat_template": "of the config"})),
        ("tokenizer_config.json", json.dumps({"chat_template": named})),
        ("additional_chat_templates/rag.jinja", "of rag.jinja"),
        ("chat_template.jinja", "of chat_template.jinja"),
        ("additional_chat_templates/default.jinja", "of default.jinja"),
    ]
    (folder / "additional_chat_templates").mkdir()
    for name, content in steps:
        (folder / name).write_text(content)
        assert Tokenizer(folder).chat_template == AutoTokenizer.from_pretrained(folder).chat_template
