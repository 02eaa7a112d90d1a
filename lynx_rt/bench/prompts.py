"""Prompts of a wanted number of tokens: random tokens, or text cut from files of prompts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lynx_rt.errors import LynxError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass
class PromptSource:
    """Where prompts come from. Without `kinds`, tokens are drawn evenly from [0, vocab_size).

    kinds: the tokens of the texts of each kind; a prompt is of one kind, and begins with a text that is drawn.
    """

    vocab_size: int
    tokenizer: Tokenizer | None = None
    kinds: Sequence[Sequence[list[int]]] = field(default_factory=list)

    def tokens(self, count: int, rng: np.random.Generator) -> list[int]:
        """Returns a prompt of `count` tokens."""
        if not self.kinds:
            return [int(token) for token in rng.integers(0, self.vocab_size, count)]
        texts = self.kinds[int(rng.integers(len(self.kinds)))]
        out: list[int] = []
        at = int(rng.integers(len(texts)))
        while len(out) < count:
            out += texts[at % len(texts)]
            at += 1
        return out[:count]

    def with_blocks(
        self, count: int, blocks: Iterable[int], block_tokens: int, seed: int, rng: np.random.Generator
    ) -> list[int]:
        """Returns a prompt whose blocks of `block_tokens` tokens are functions of their ids; what they leave is drawn."""
        out: list[int] = []
        for block in blocks:
            if len(out) >= count:
                break
            out += self.tokens(block_tokens, np.random.default_rng([seed, block]))
        return (out + self.tokens(max(0, count - len(out)), rng))[:count]

    def text(self, tokens: list[int]) -> str:
        """Returns tokens as text. Tokenized again, it may have a few tokens more or less. Raises LynxError."""
        if self.tokenizer is None:
            raise LynxError("prompts as text need --tokenizer", "tokenizer")
        return str(self.tokenizer.decode(tokens))


def prompt_source(tokenizer: str | None, vocab_size: int | None, files: str | None) -> PromptSource:
    """Makes a source. tokenizer: a tokenizer.json or its folder.  files: a JSONL file, or a folder of them, with a "prompt" per line
    and, if they have them, the "answer" to it and the "task" that names its kind. Raises LynxError."""
    loaded = _load_tokenizer(tokenizer) if tokenizer is not None else None
    if vocab_size is None and loaded is None:
        raise LynxError("random prompts need --tokenizer or --vocab-size", "vocab_size")
    size = vocab_size if vocab_size is not None else loaded.get_vocab_size() if loaded is not None else 0
    if files is None:
        return PromptSource(size, loaded)
    if loaded is None:
        raise LynxError("--prompts needs --tokenizer", "tokenizer")
    kinds: dict[str, list[list[int]]] = {}
    for task, text in _read_texts(Path(files)):
        tokens = loaded.encode(text, add_special_tokens=False).ids
        if tokens:
            kinds.setdefault(task, []).append(tokens)
    if not kinds:
        raise LynxError(f"--prompts {files}: no prompts", "prompts")
    return PromptSource(size, loaded, list(kinds.values()))


def _load_tokenizer(place: str) -> Tokenizer:
    from tokenizers import Tokenizer

    file = Path(place) / "tokenizer.json" if Path(place).is_dir() else Path(place)
    if not file.is_file():
        raise LynxError(f"--tokenizer {place}: there is no {file}", "tokenizer")
    try:
        loaded: Tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise LynxError(f"--tokenizer {file}: {error}", "tokenizer") from None
    return loaded


def _read_texts(place: Path) -> Iterable[tuple[str, str]]:
    files = sorted(place.glob("*.jsonl")) if place.is_dir() else [place]
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise LynxError(f"--prompts {file}: {error}", "prompts") from None
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                yield str(row.get("task", file.stem)), f"{row['prompt']}{row.get('answer', '')}\n"
            except (ValueError, KeyError, AttributeError) as error:
                raise LynxError(
                    f'--prompts {file}, line {number}: expected {{"prompt": ...}}: {error!r}', "prompts"
                ) from None
