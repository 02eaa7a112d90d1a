"""Mutated tokenizer, generation config and chat template files: a LynxError or a tokenizer, in 2 s and 1 GB, no crash."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import made_tokenizers as made
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from lynx_rt import Tokenizer
from lynx_rt.text.tokenizer_formats import CL100K

WORKER = Path(__file__).with_name("mutate_tokenizer_files.py")
CASES = int(os.environ.get("LYNX_RT_TOKENIZER_FUZZ", "250"))
TEMPLATE = "{% for m in messages %}{{ bos_token }}{{ m['role'] }}: {{ m['content'] | trim }}{% endfor %}"


def write_seeds(folder: Path) -> None:
    """One model folder per format."""
    listed = {
        "400": {"content": "<s>", "special": True},
        "402": {"content": "<|user|>", "lstrip": True, "special": False},
    }
    config: dict[str, Any] = {
        "bos_token": "<s>",
        "eos_token": {"__type": "AddedToken", "content": "</s>", "lstrip": False, "special": True},
        "extra_special_tokens": ["<|user|>"],
        "chat_template": [{"name": "default", "template": TEMPLATE}],
    }
    vocab, merges = made.vocab_and_merges()
    wordpiece = tokenizers.Tokenizer(
        models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2, "The": 3, "x": 4}, unk_token="[UNK]")
    )
    wordpiece.pre_tokenizer, wordpiece.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    unigram = made.sentencepiece(model_type="unigram", normalization_rule_name="nfkc")
    model_file = folder / "tokenizer.model"
    folder.mkdir(parents=True, exist_ok=True)
    model_file.write_bytes(unigram)
    precompiled = Tokenizer(model_file).backend.to_str()
    model_file.unlink()
    seeds: dict[str, dict[str, str | bytes]] = {
        "byte level": {"tokenizer.json": made.byte_level(), "chat_template.jinja": TEMPLATE},
        "llama": {
            "tokenizer.json": made.byte_fallback(),
            "special_tokens_map.json": json.dumps({"unk_token": "<unk>"}),
        },
        "metaspace": {"tokenizer.json": made.byte_fallback(legacy=False), "added_tokens.json": '{"<|user|>": 400}'},
        "wordpiece": {
            "tokenizer.json": wordpiece.to_str(),
            "chat_template.json": json.dumps({"chat_template": TEMPLATE}),
        },
        "vocab": {"vocab.json": vocab, "merges.txt": merges},
        "bpe": {"tokenizer.model": made.sentencepiece(), "added_tokens.json": '{"<|user|>": 500}'},
        "unigram": {"tokenizer.model": unigram},
        "precompiled": {"tokenizer.json": precompiled},
        "tiktoken": {"tiktoken.model": made.tiktoken_file()},
        "tekken": {"tekken.json": json.dumps(made.tekken(CL100K))},
    }
    kinds = {
        "llama": "LlamaTokenizerFast",
        "vocab": "Qwen2Tokenizer",
        "bpe": "LlamaTokenizer",
        "tiktoken": "TikTokenTokenizer",
    }
    generation = {"eos_token_id": [2, 3], "temperature": 0.6, "top_k": 20, "top_p": 0.9, "do_sample": True}
    for name, files in seeds.items():
        extra = {"added_tokens_decoder": listed} if name in ("byte level", "tiktoken") else {}
        made.write_json(
            made.save(folder / name, "", tokenizer_class=kinds.get(name, "X")) / "config.json", {"eos_token_id": 2}
        )
        (folder / name / "tokenizer.json").unlink()
        made.write_json(
            folder / name / "tokenizer_config.json", config | extra | {"tokenizer_class": kinds.get(name, "X")}
        )
        made.write_json(folder / name / "generation_config.json", generation)
        for file, content in files.items():
            (folder / name / file).write_bytes(content if isinstance(content, bytes) else content.encode())


def test_mutated_files(tmp_path: Path) -> None:
    write_seeds(tmp_path / "seeds")
    (tmp_path / "work").mkdir()
    environment = os.environ | {"RUST_BACKTRACE": "0", "TOKENIZERS_PARALLELISM": "false"}
    faults, case = [], 0
    while case < CASES and len(faults) < 50:
        command = [
            sys.executable,
            str(WORKER),
            str(tmp_path / "seeds"),
            str(tmp_path / "work"),
            str(case),
            str(CASES - case),
        ]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
        faults += ran.stdout.splitlines()
        case = int((tmp_path / "work" / "case").read_text()) + 1
        if ran.returncode:
            faults.append(f"{case - 1}: the process ended with {ran.returncode}: {ran.stderr[-300:]}")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    "name",
    ["byte level", "llama", "metaspace", "wordpiece", "vocab", "bpe", "unigram", "precompiled", "tiktoken", "tekken"],
)
def test_seeds_are_good(tmp_path: Path, name: str) -> None:
    """Unmutated, every folder works; otherwise mutations of it would say nothing."""
    from mutate_tokenizer_files import use

    write_seeds(tmp_path)
    tokenizer = Tokenizer(tmp_path / name)
    assert tokenizer.encode("a") and tokenizer.chat_template
    use(tmp_path / name)
