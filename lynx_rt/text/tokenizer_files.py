"""Makes a `tokenizers.Tokenizer` of a model folder: finds the file, the class that wrote it, and what its config adds."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import processors

from lynx_rt.errors import ModelNotFoundError
from lynx_rt.library_errors import Guard
from lynx_rt.text.gguf_tokenizer import is_gguf, read_gguf_tokenizer
from lynx_rt.text.sentencepiece_model import SentencePieceModel, check_charsmap
from lynx_rt.text.tokenizer_config import (
    TokenizerConfig,
    add_tokens,
    check_depth,
    read_json,
    read_text,
    read_tokenizer_config,
)
from lynx_rt.text.tokenizer_formats import llama_style, read_tekken, read_tiktoken, read_vocab_and_merges

# In a folder, the first that exists is taken; "*" stands for any name.
FILE_NAMES = (
    "tokenizer.json",
    "tekken.json",
    "tiktoken.model",
    "*.tiktoken",
    "tokenizer.model",
    "vocab.json",
    "*.model",
)
# Families whose tokenizer file transformers 5 uses unchanged, whatever class the config names.
_FILE_COUNTS = frozenset(
    {"mistral", "mixtral", "glm4_moe", "granitemoe", "ernie4_5", "ernie4_5_moe", "phimoe", "minimax_m2", "jamba"}
)
_CHARSMAP = re.compile(r'"precompiled_charsmap"\s*:\s*"([^"]*)"')
_DEFAULT_NAMES = {
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "GPT2Tokenizer": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
    "Qwen2Tokenizer": dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
}


def find_tokenizer_file(path: Path) -> Path:
    """Returns the tokenizer's file in a folder, or the given file. Raises ModelNotFoundError that lists the accepted files."""
    if path.is_file():
        return path
    if path.is_dir():
        for name in FILE_NAMES:
            if found := next((file for file in sorted(path.glob(name)) if file.is_file()), None):
                return found
        reason = f"{path} has no tokenizer file (one of {', '.join(FILE_NAMES)})"
    else:
        reason = f"{path} does not exist"
    raise ModelNotFoundError(
        f"{reason}; an Engine can be given another folder's (tokenizer=...), or none (skip_tokenizer_init=True: token "
        "ids only)",
        "tokenizer",
    )


def load_tokenizer_files(path: Path) -> tuple[Path, tokenizers.Tokenizer, TokenizerConfig]:
    """Reads a folder, or one file of it. Returns the vocabulary's file, the tokenizer, and the config that was applied.

    Raises ModelNotFoundError, CheckpointError, UnsupportedModelError.
    """
    file = find_tokenizer_file(path)
    if is_gguf(file):
        raw, config = read_gguf_tokenizer(file)
        _add_ends(raw, config, always_start=False)
        return file, raw, config
    config = read_tokenizer_config(file.parent)
    model = read_json(file.parent / "config.json")
    kind = _tokenizer_class(model, config)
    own_format = file.suffix == ".json" and file.name not in ("tekken.json", "vocab.json")
    with Guard(f"{file} is not a tokenizer", str(file)):
        if own_format:
            raw, names = _read_tokenizer_json(file, kind, model.get("model_type"), config)
        else:
            raw, names = _convert(file, kind, config)
    config.set_default_names(names)
    add_tokens(raw, config)
    raw.encode_special_tokens = bool(config.values.get("split_special_tokens"))
    if not own_format:
        _add_ends(raw, config, always_start=file.name == "tekken.json" and not config.file.exists())
    return file, raw, config


def _tokenizer_class(model: Mapping[str, Any], config: TokenizerConfig) -> str:
    """Returns the class of transformers 5 that reads the folder, without "Fast"; "" where the vocabulary's file is enough.

    model: the model's config.json.
    """
    name, model_type = config.values.get("tokenizer_class") or model.get("tokenizer_class"), model.get("model_type")
    if isinstance(name, str) and name:
        return name.removesuffix("Fast")
    return "Qwen2Tokenizer" if isinstance(model_type, str) and model_type.startswith("qwen") else ""


def _read_tokenizer_json(
    file: Path, kind: str, model_type: Any, config: TokenizerConfig
) -> tuple[tokenizers.Tokenizer, Mapping[str, str]]:
    text = read_text(file)
    for found in _CHARSMAP.finditer(text):
        check_charsmap(base64.b64decode(found[1].replace("\\/", "/") + "=="))
    # Byte-level files whose config names this class (DeepSeek's, Llama 3's) were not made by it.
    if kind == "LlamaTokenizer" and model_type not in _FILE_COUNTS and '"ByteLevel"' not in text:
        content = json.loads(text)
        check_depth(content)
        if content["model"].get("type", "BPE") == "BPE" and content["model"].get("merges"):
            return tokenizers.Tokenizer.from_str(json.dumps(llama_style(content, config))), _DEFAULT_NAMES[kind]
    return tokenizers.Tokenizer.from_str(text), {}


def _convert(file: Path, kind: str, config: TokenizerConfig) -> tuple[tokenizers.Tokenizer, Mapping[str, str]]:
    """Returns the tokenizer of another format, and the names of its tokens where no config has them."""
    if file.name == "tekken.json":
        raw, names = read_tekken(read_json(file))
        return raw, {} if config.file.exists() else names
    if file.suffix == ".json":
        qwen = kind.startswith("Qwen")
        raw = read_vocab_and_merges(read_json(file), read_text(file.with_name("merges.txt")), qwen, config)
        return raw, _DEFAULT_NAMES["Qwen2Tokenizer" if qwen else "GPT2Tokenizer"]
    data = file.read_bytes()
    if data[:1] != b"\n":  # a SentencePiece model begins with its first piece, field 1
        return read_tiktoken(data, kind, config), {}
    model = SentencePieceModel.parse(data)
    llama = kind == "LlamaTokenizer" and model.is_bpe
    raw = model.tokenizer(llama, config)
    return raw, _DEFAULT_NAMES[kind] if llama else model.special_names


def _add_ends(raw: tokenizers.Tokenizer, config: TokenizerConfig, always_start: bool) -> None:
    """Adds the start and end tokens that the config asks for. always_start: Mistral's own format always has a start token."""
    asked = {
        "bos_token": config.values.get("add_bos_token", always_start),
        "eos_token": config.values.get("add_eos_token"),
    }
    start, end = ([config.named[name].content] if asked[name] and name in config.named else [] for name in asked)
    if ids := [(token, raw.token_to_id(token)) for token in (*start, *end)]:
        raw.post_processor = processors.TemplateProcessing(single=[*start, "$A", *end], special_tokens=ids)
