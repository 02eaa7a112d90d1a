"""Masks of grammars without a model: against all continuations of finite languages, for several vocabularies."""

from __future__ import annotations

import gc
import itertools
import json
import random
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterable
from typing import Any

import made_tokenizers
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from lynx_rt import StructuredOutputs, Tokenizer, ValidationError
from lynx_rt.text.structured import compiler
from lynx_rt.text.structured.compiler import Grammar, GrammarCompiler

LETTERS = 'ab1{}":,'


def small_tokenizer() -> Tokenizer:
    """Every string of one and two of the letters, and some of three; two special tokens, one of which spells "ab"."""
    texts = ["".join(chars) for length in (1, 2) for chars in itertools.product(LETTERS, repeat=length)]
    texts += ['":1', '{"a', "aba", "b1a", "}}}"]
    raw = tokenizers.Tokenizer(models.BPE({text: place for place, text in enumerate(texts)}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.add_special_tokens(["<end>", "<a>"])
    return Tokenizer(raw)


SMALL = small_tokenizer()
END = SMALL.backend.token_to_id("<end>")
IDS = {SMALL.piece(token): token for token in range(SMALL.vocab_size) if token not in SMALL.special_token_ids}
VOCAB = SMALL.vocab_size + 9  # tokens that the tokenizer lacks
COMPILER = GrammarCompiler(SMALL, VOCAB, [END])


class Text:
    """A text under a grammar, and the mask of its next token."""

    def __init__(self, grammar: Grammar, **options: Any) -> None:
        self.vocab_size = grammar.vocab_size
        self.words = np.full((self.vocab_size + 31) // 32, 0x5A5A5A5A, np.int32)
        self.matcher = grammar.matcher(self.words, **options)

    def allowed(self) -> set[int]:
        """Returns the tokens that may follow."""
        self.matcher.fill()
        bits = np.unpackbits(self.words.view(np.uint8), bitorder="little")[: self.vocab_size]
        return set(np.flatnonzero(bits).tolist())

    def accept(self, token: int) -> None:
        self.matcher.accept(token)


def expected(language: Iterable[str], before: str) -> set[int]:
    """Returns the tokens after which a text of the language can still come."""
    found = {END} if before in language else set()
    for text in language:
        if text.startswith(before):
            rest = text[len(before) :]
            found |= {IDS[rest[:length]] for length in range(1, len(rest) + 1) if rest[:length] in IDS}
    return found


def walk(spec: StructuredOutputs, language: set[str], seed: int) -> None:
    """Compares all masks along random texts."""
    grammar, chance = COMPILER.compile(spec), random.Random(seed)
    for _ in range(3):
        held, text = Text(grammar), ""
        while True:
            mask = held.allowed()
            assert mask == expected(language, text), (spec, text)
            token = chance.choice(sorted(mask))
            held.accept(token)
            assert not held.matcher.error
            if token == END:
                break
            text += SMALL.token_bytes(token).decode()
        assert held.matcher.is_finished and held.allowed() == {END}


@settings(max_examples=25)
@given(st.sets(st.text("ab1", min_size=1, max_size=7), min_size=1, max_size=6), st.integers(0, 9))
def test_masks_of_finite_languages(language: set[str], seed: int) -> None:
    texts = sorted(language)
    walk(StructuredOutputs(choice=texts), language, seed)
    walk(StructuredOutputs(regex="|".join(texts)), language, seed)
    walk(StructuredOutputs(grammar="start: " + " | ".join(f'"{text}"' for text in texts)), language, seed)
    walk(StructuredOutputs(grammar="root ::= " + " | ".join(f'"{text}"' for text in texts)), language, seed)
    compact = {json.dumps(text) for text in texts}
    walk(StructuredOutputs(json={"enum": texts}, disable_any_whitespace=True), compact, seed)


def test_masks_of_objects() -> None:
    """All objects of a schema with optional and required members."""
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [1, 11]}, "b": {"enum": ["", "a"]}},
        "required": ["b"],
        "additionalProperties": False,
    }
    language = {f'{{{a}"b":"{b}"}}' for a in ("", '"a":1,', '"a":11,') for b in ("", "a")}
    for seed in range(10):
        walk(StructuredOutputs(json=schema, disable_any_whitespace=True), language, seed)


@pytest.mark.parametrize("style", ["byte_level", "byte_fallback"])
def test_masks_of_other_vocabularies(style: str) -> None:
    """Tokens end inside characters, and in one of the vocabularies several tokens spell the same."""
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(getattr(made_tokenizers, style)()))
    end, parts = tokenizer.vocab_size, ["né", " the", "日本", "\n"]
    spellings: dict[bytes, set[int]] = {}
    for token in set(range(end)) - tokenizer.special_token_ids:
        spellings.setdefault(tokenizer.token_bytes(token), set()).add(token)
    language = {"".join(chosen).encode() for chosen in itertools.product(parts, repeat=3)}
    spec = StructuredOutputs(regex=f"({'|'.join(parts)}){{3}}")
    grammar = GrammarCompiler(tokenizer, end + 1, [end]).compile(spec)
    chance = random.Random(1)
    for _ in range(20):
        held, text, token = Text(grammar), b"", -1
        while token != end:
            following = {end} if text in language else set()
            for rest in {whole[len(text) :] for whole in language if whole.startswith(text)}:
                for length in range(1, len(rest) + 1):
                    following |= spellings.get(rest[:length], set())
            assert held.allowed() == following
            token = chance.choice(sorted(following))
            held.accept(token)
            text += b"" if token == end else tokenizer.token_bytes(token)


def test_special_tokens_are_no_text() -> None:
    """A special token stands for itself in structural tags, and spells nothing anywhere else."""
    special = SMALL.backend.token_to_id("<a>")
    text = Text(COMPILER.compile(StructuredOutputs(regex="[<a>]+")))
    assert special not in text.allowed()
    tag = {"structures": [{"begin": "<a>b", "schema": {"const": 1}, "end": "}"}], "triggers": ["<a>"]}
    held = Text(COMPILER.compile(StructuredOutputs(structural_tag=tag)))
    assert {special, END, IDS["ab"]} <= held.allowed()
    for token, following in (
        (IDS["ab"], {special, END, IDS["ab"]}),
        (special, {IDS["b"], IDS["b1"]}),
        (IDS["b1"], {IDS["}"]}),
    ):
        held.accept(token)
        assert following <= held.allowed()
    assert held.allowed() == {IDS["}"]} | {IDS[text] for text in IDS if text.startswith("}")}


def test_every_end_of_text_ends_a_text() -> None:
    other = SMALL.backend.token_to_id("<a>")
    held = Text(GrammarCompiler(SMALL, VOCAB, [END, other]).compile(StructuredOutputs(regex="a")))
    assert held.allowed() == {IDS["a"]}
    held.accept(IDS["a"])
    assert held.allowed() == {END, other}
    held.accept(other)
    assert held.allowed() == {END, other} and not held.matcher.error  # a request with ignore_eos goes on


def test_min_tokens_and_stop_tokens() -> None:
    grammar = COMPILER.compile(StructuredOutputs(regex="a*(b{3})?"))
    held = Text(grammar, min_tokens=2, stop_token_ids=[IDS["b"]])
    assert END not in held.allowed() and IDS["b"] not in held.allowed() and IDS["a"] in held.allowed()
    held.accept(IDS["a"])
    assert END not in held.allowed()
    held.accept(IDS["a"])
    assert {END, IDS["b"]} <= held.allowed()
    short = Text(COMPILER.compile(StructuredOutputs(regex="a")), min_tokens=5)
    short.accept(IDS["a"])
    assert short.allowed() == {END}


def test_start_after() -> None:
    grammar = COMPILER.compile(StructuredOutputs(regex="b1?"))
    for texts in (["a", "1", "}"], ["a1", "}"], ["1a", "1}"]):
        held = Text(grammar, start_after="1}")
        for text in texts:
            assert held.allowed() == set(range(VOCAB)) - {END}
            held.accept(IDS[text])
        assert held.allowed() == {IDS["b"], IDS["b1"]}
    held = Text(grammar, start_after="1")
    held.accept(IDS["1b"])  # what a token has beyond the tag is the grammar's
    assert held.allowed() == {END, IDS["1"]}
    held = Text(grammar, start_after="1")
    held.accept(IDS["1a"])
    assert held.allowed() == set() and "doesn't satisfy the grammar" in held.matcher.error


def test_a_token_that_does_not_fit() -> None:
    held = Text(COMPILER.compile(StructuredOutputs(regex="a")))
    held.accept(IDS["b"])
    assert "no token can follow" in held.matcher.error and held.allowed() == set() and not held.matcher.is_finished


def test_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    grammars = GrammarCompiler(SMALL, VOCAB, [END])
    monkeypatch.setattr(compiler, "_CACHED_GRAMMARS", 2)
    specs = [StructuredOutputs(regex="a" * count) for count in range(1, 4)]
    first, second = (grammars.compile(spec) for spec in specs[:2])
    assert grammars.compile(StructuredOutputs(regex="a")) is first
    assert grammars.compile(StructuredOutputs(regex="a", start_after="b")) is first
    third = grammars.compile(specs[2])
    assert grammars.compile(specs[0]) is first and grammars.compile(specs[2]) is third
    assert grammars.compile(specs[1]) is not second
    assert grammars.compile(StructuredOutputs(json={"a": 1, "b": 2})) is not grammars.compile(
        StructuredOutputs(json={"b": 2, "a": 1})  # members are written in the order of the schema
    )


def test_deadline_and_stray_compilations(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs over the deadline goes on, at most two at once, and is cached when it is done."""
    grammars = GrammarCompiler(SMALL, VOCAB, [END], seconds=0.05)
    grammars.load()
    others = set(threading.enumerate())  # of tests before this one
    go_on = threading.Event()
    compile_fast = compiler._Vocabulary.compile

    def compile_slowly(vocabulary: compiler._Vocabulary, spec: StructuredOutputs) -> Grammar:
        assert go_on.wait(60)
        return compile_fast(vocabulary, spec)

    def strays() -> int:
        return sum(thread.name == "lynx_rt-grammar" for thread in set(threading.enumerate()) - others)

    monkeypatch.setattr(compiler._Vocabulary, "compile", compile_slowly)
    spec = StructuredOutputs(grammar='start: "1" | "11"')
    for started in (1, 2, 2):
        with pytest.raises(ValidationError, match=r"could not be compiled within 0\.05 s"):
            grammars.compile(spec)
        assert strays() == started
    go_on.set()
    while strays():
        time.sleep(0.01)
    monkeypatch.setattr(compiler._Vocabulary, "compile", None)  # both are done: the grammar is found, not compiled
    assert Text(grammars.compile(spec)).allowed() == {IDS["1"], IDS["11"]}


def test_a_vocabulary_is_freed() -> None:
    grammars = GrammarCompiler(SMALL, VOCAB, [END])
    kept = weakref.ref(grammars.compile(StructuredOutputs(regex="a"))._vocabulary)
    assert kept() is not None
    del grammars
    gc.collect()
    assert kept() is None


def test_without_llguidance() -> None:
    code = (
        "import sys; sys.modules['llguidance'] = None\n"
        "import lynx_rt\n"
        "with lynx_rt.Engine(lynx_rt.shipped_model()) as engine:\n"
        "    try: engine.generate('a', {'structured_outputs': {'regex': 'a'}})\n"
        "    except lynx_rt.ValidationError as error: print(error)\n"
        "    print(engine.generate('a', {'max_tokens': 1})[0].finished)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert 'pip install "lynx_rt[serve]"' in done.stdout and done.stdout.endswith("True\n")


def test_a_model_without_an_end() -> None:
    with pytest.raises(ValidationError, match="end-of-text token"):
        GrammarCompiler(SMALL, VOCAB, []).compile(StructuredOutputs(regex="a"))
