"""Trains tiny tokenizers of the styles that the families have."""

from __future__ import annotations

import base64
import functools
import io
import json
from pathlib import Path
from typing import Any

import sentencepiece as spm
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers.convert_slow_tokenizer import bytes_to_unicode

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "What is the weather in Paris today? It is 21 degrees; the sky is clear.",
    "def add(a, b):\n    return a + b\n",
    "naïve café, Grüße aus Köln, 日本語のテキスト, привет мир",
] * 4


@functools.cache
def byte_level() -> str:
    """Makes tokenizer.json of byte-level BPE (Qwen, gpt-oss, GLM, DeepSeek, Llama 4)."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=sorted(alphabet), show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return backend.to_str()


@functools.cache
def byte_fallback(legacy: bool = True) -> str:
    """Makes tokenizer.json of sentencepiece BPE with byte fallback (Llama, Mixtral, Phi-3.5-MoE).

    legacy: spaces become U+2581 in the normalizer, as converted checkpoints have it; else in the pre-tokenizer.
    """
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.train_from_iterator(CORPUS[:3], trainers.BpeTrainer(vocab_size=120, show_progress=False))
    file = json.loads(backend.to_str())
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *file["model"]["vocab"]]
    file["model"] |= {
        "vocab": {token: place for place, token in enumerate(tokens)},
        "byte_fallback": True,
        "unk_token": "<unk>",
        "fuse_unk": True,
    }
    backend = tokenizers.Tokenizer.from_str(json.dumps(file))
    if legacy:
        backend.pre_tokenizer = None
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    return backend.to_str()


def sentencepiece(**options: Any) -> bytes:
    """Makes a tokenizer.model: BPE with byte fallback like Llama's and Mixtral's, or as the trainer's options say."""
    settings = {
        "vocab_size": 500,
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
        "user_defined_symbols": ["<|user|>"],
        "control_symbols": ["<|ctl|>"],
    } | options
    out = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=out,
        minloglevel=2,
        num_threads=1,
        hard_vocab_limit=False,
        **settings,
    )
    return out.getvalue()


@functools.cache
def vocab_and_merges() -> tuple[str, str]:
    """Returns byte_level() as vocab.json and merges.txt."""
    model = json.loads(byte_level())["model"]
    merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
    return json.dumps(model["vocab"]), "#version: 0.2\n" + "\n".join(merges) + "\n"


@functools.cache
def ranks() -> dict[bytes, int]:
    """Returns byte_level() in tiktoken's form: the bytes of each token and its rank."""
    byte_of = {char: byte for byte, char in bytes_to_unicode().items()}
    return {bytes(byte_of[char] for char in token): rank for token, rank in json.loads(vocab_and_merges()[0]).items()}


def tiktoken_file() -> str:
    return "".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks().items())


def tekken(pattern: str) -> dict[str, Any]:
    """The content of a tekken.json with 4 named special tokens of 10, and 20 tokens more than it uses."""
    named = ["<unk>", "<s>", "</s>", "<|user|>"]
    return {
        "config": {"pattern": pattern, "default_vocab_size": len(ranks()) - 10, "default_num_special_tokens": 10},
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
            for token, rank in ranks().items()
        ],
        "special_tokens": [{"rank": rank, "token_str": token, "is_control": True} for rank, token in enumerate(named)],
    }


def save(folder: Path, tokenizer_json: str, **config: Any) -> Path:
    """Writes a model folder with these tokenizer files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer_json)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"} | config)
    return folder


def write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value))
