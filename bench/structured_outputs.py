"""Measures what structured outputs cost beside the model: the vocabulary, compilations, and each token of a text.

    python bench/structured_outputs.py [--tokenizer MODEL] [--tokens 152000]

Without --tokenizer, the shipped model's vocabulary and a made-up one of --tokens words are measured. Texts are random: of all tokens
that may follow, each is equally likely, which keeps the parser busier than a model's text does. Times are CPU time of the measuring
thread, so that other work on the machine does not count, and of the process where another thread works. Prints a table.
"""

from __future__ import annotations

import argparse
import random
import time
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

import lynx_rt
from lynx_rt import _C
from lynx_rt.text.structured.compiler import GrammarCompiler

_RECORD = {
    "type": "object",
    "properties": {
        f"field_{i}": {"type": "string"} if i % 3 else {"type": "integer", "minimum": 0, "maximum": 1000}
        for i in range(40)
    },
    "required": [f"field_{i}" for i in range(40)],
}
_FORMS: dict[str, dict[str, Any]] = {
    "JSON, 3 fields": {
        "json": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "size": {"type": "number"},
                "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}},
            },
            "required": ["name", "size", "tags"],
        }
    },
    "JSON, 40 fields": {"json": _RECORD},
    "any JSON object": {"json_object": True},
    "[a-z ]{1,50}": {"regex": "[a-z ]{1,50}"},
    "1000 choices": {"choice": [f"choice {number} of 1000" for number in range(1000)]},
    "structural tag": {
        "structural_tag": {"structures": [{"begin": "<f>", "schema": _RECORD, "end": "</f>"}], "triggers": ["<f"]}
    },
}
_TEXTS, _TEXT_TOKENS = 4, 150


def made_tokenizer(count: int) -> lynx_rt.Tokenizer:
    """Returns a byte-level vocabulary of `count` tokens: words of random letters, some with a space or JSON's signs."""
    chance, letters = random.Random(1), "etaoinshrdlucmfwypvbgkjqxz"
    words = dict.fromkeys(sorted(pre_tokenizers.ByteLevel.alphabet()))
    while len(words) < count - 1:
        word = "".join(chance.choices(letters, weights=range(26, 0, -1), k=chance.randint(2, 9)))
        signs = chance.choice(['":', '",', '"', "}", "]", ",", "23"]) if chance.random() < 0.1 else ""
        words[("Ġ" if chance.random() < 0.5 else "") + word + signs] = None
    raw = tokenizers.Tokenizer(models.BPE({word: place for place, word in enumerate(words)}, []))
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(["<end>"])
    return lynx_rt.Tokenizer(raw)


def measure(tokenizer: lynx_rt.Tokenizer, end: int) -> None:
    grammars = GrammarCompiler(tokenizer, tokenizer.vocab_size, [end])
    before = time.process_time()
    grammars.load()
    print(
        f"\n{_C.build_info()['cpu_model']}: {tokenizer.vocab_size} tokens, read in {time.process_time() - before:.2f} s\n"
    )
    print("| form | compiled, ms | mask, us: median | 99 % | accepting a token, us: median |\n|---|---|---|---|---|")
    words = np.zeros((tokenizer.vocab_size + 31) // 32, np.int32)
    for name, form in _FORMS.items():
        before = time.process_time()
        grammar = grammars.compile(lynx_rt.StructuredOutputs(**form))
        compiled = time.process_time() - before
        masks, accepts = [], []
        for seed in range(_TEXTS):
            matcher, chance = grammar.matcher(words), random.Random(seed)
            for _ in range(_TEXT_TOKENS):
                before = time.thread_time()
                matcher.fill()
                masks.append(time.thread_time() - before)
                allowed = np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))
                allowed = allowed[allowed != end]
                if not len(allowed):
                    break
                token = int(chance.choice(allowed))
                before = time.thread_time()
                matcher.accept(token)
                accepts.append(time.thread_time() - before)
        median, high = np.percentile(masks, [50, 99]) * 1e6
        print(f"| `{name}` | {compiled * 1e3:.1f} | {median:.0f} | {high:.0f} | {np.median(accepts) * 1e6:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", help="a model folder or a tokenizer's file")
    parser.add_argument("--tokens", type=int, default=152_000, help="size of the made-up vocabulary")
    options = parser.parse_args()
    given = lynx_rt.Tokenizer(options.tokenizer or lynx_rt.shipped_model())
    if given.eos_token_id is None:
        parser.error("this tokenizer names no end of text")
    measure(given, given.eos_token_id)
    if options.tokenizer is None:
        made = made_tokenizer(options.tokens)
        measure(made, made.vocab_size - 1)


if __name__ == "__main__":
    main()
