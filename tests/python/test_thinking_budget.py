"""thinking_token_budget: a text's reasoning is followed token by token, and ends where the budget does."""

from __future__ import annotations

import asyncio
import random
import re
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from lynx_rt import CompletionOutput, Engine, SamplingParams, Tokenizer, ValidationError
from lynx_rt.text.response import ResponseFormat, formats
from lynx_rt.text.response.parser import ThinkTags
from lynx_rt.text.response.thinking import ReasoningTracker, ThinkingTags

TAGS = ("<t>", "</t>")
PIECES = ["<", ">", "/", "t", "a", " ", "</", "t>", "<t", "<t>", "</t>", "</t>a", "a<t>", ">a", " <", "aa", "a</"]
MESSAGES = [{"role": "user", "content": "12 times 22 = ?"}]
OPEN = "{{ messages[0].content }}<think>"
SHUT = "{{ messages[0].content }}"


def piece_tokenizer(pieces: list[str], special: tuple[str, ...] = ()) -> Tokenizer:
    """A tokenizer that spells a text in single characters, and knows longer pieces that it does not use."""
    raw = tokenizers.Tokenizer(models.BPE({piece.replace(" ", "Ġ"): place for place, piece in enumerate(pieces)}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.add_special_tokens(list(special))
    return Tokenizer(raw)


SMALL = piece_tokenizer(PIECES)
SMALL_TAGS = ThinkingTags(TAGS, SMALL, len(PIECES))
WITH_SPECIAL_TAGS = piece_tokenizer(PIECES[:9], TAGS)


def owners(tokens: list[int]) -> list[int]:
    """Returns the place of the token that each character of the text is of."""
    return [place for place, token in enumerate(tokens) for _ in SMALL.piece(token)]


def reasoning_tokens(tokens: list[int], inside: bool) -> int:
    """Counts the tokens with which a part of the reasoning begins, after the token that completes its start tag."""
    text, owner = "".join(map(SMALL.piece, tokens)), owners(tokens)
    place, found = 0, set[int]()
    while True:
        first = 0
        if not inside:
            if (match := re.compile(r"\s*<t>").match(text, place)) is None:
                return len(found)
            place = match.end()
            first = owner[place - 1] + 1
        end = text.find("</t>", place)
        until = len(text) if end < 0 else end
        found |= {owner[i] for i in range(len(text)) if (i == 0 or owner[i - 1] != owner[i]) and i < until} & set(
            range(first, len(tokens))
        )
        if end < 0:
            return len(found)
        place, inside = end + len("</t>"), False


@settings(max_examples=400)
@given(st.lists(st.integers(0, len(PIECES) - 1), max_size=14), st.booleans())
def test_tokens_are_counted_exactly(tokens: list[int], inside: bool) -> None:
    tracker = ReasoningTracker(TAGS, SMALL.token_bytes, inside)
    for token in tokens:
        tracker.accept(token)
    assert tracker.num_tokens == reasoning_tokens(tokens, inside)


@settings(max_examples=200)
@given(st.integers(0, 6), st.booleans(), st.integers(0, 999))
def test_reasoning_is_never_longer(limit: int, inside: bool, seed: int) -> None:
    """Whatever tokens a model draws where it is free."""
    chance, budget = random.Random(seed), SMALL_TAGS.budget(limit, inside)
    tokens = [] if inside else SMALL.encode("<t>")
    for token in tokens:
        budget.accept(token)
    while len(tokens) < 30 or budget.forced is not None:
        token = chance.randrange(len(PIECES)) if budget.forced is None else budget.forced
        tokens.append(token)
        budget.accept(token)
    assert "</t>" in "".join(map(SMALL.piece, tokens))
    assert reasoning_tokens(tokens, inside) <= limit


def test_what_the_text_has_of_the_tag_is_not_repeated() -> None:
    ids = {piece: SMALL.encode(piece)[0] for piece in "<>/ta"}
    budget = SMALL_TAGS.budget(3, inside=True)
    for piece in "a</":
        assert budget.forced is None
        budget.accept(ids[piece])
    forced = []
    while budget.forced is not None:
        forced.append(budget.forced)
        budget.accept(budget.forced)
    assert SMALL.decode(forced) == "t>"


def test_a_tag_that_is_a_token_stays_whole() -> None:
    tags = ThinkingTags(TAGS, WITH_SPECIAL_TAGS, WITH_SPECIAL_TAGS.vocab_size)
    budget = tags.budget(1, inside=True)
    budget.accept(WITH_SPECIAL_TAGS.encode("<")[0])
    assert budget.forced == WITH_SPECIAL_TAGS.token_id("</t>")
    budget.accept(budget.forced)
    assert budget.forced is None
    # reasoning that begins again has nothing left
    start, end = map(WITH_SPECIAL_TAGS.token_id, TAGS)
    assert start is not None
    budget.accept(start)
    assert budget.forced == end


def test_tags_that_no_token_spells() -> None:
    with pytest.raises(ValidationError, match="no tokens of this model spell '</t>'") as caught:
        ThinkingTags(TAGS, piece_tokenizer(["a", "<", ">"]), 3)
    assert caught.value.field == "thinking_token_budget"
    with pytest.raises(ValidationError, match="spell"):
        ThinkingTags(TAGS, WITH_SPECIAL_TAGS, WITH_SPECIAL_TAGS.vocab_size - 1)


# On the shipped model, which has no tags of its own: they are four tokens each.


@pytest.fixture(scope="module")
def engine(nano_path: str) -> Any:
    with Engine(nano_path, reasoning_parser="think") as engine:
        yield engine


def chat(engine: Engine, budget: int | None, template: str = OPEN, **params: Any) -> list[CompletionOutput]:
    params = {"temperature": 1, "seed": 3, "max_tokens": 40} | params
    return engine.chat(MESSAGES, {"thinking_token_budget": budget, **params}, chat_template=template)[0].outputs


@pytest.mark.parametrize("budget", [0, 1, 7])
def test_the_end_tag_is_forced(engine: Engine, budget: int) -> None:
    (free,) = chat(engine, None)
    assert "</think>" not in free.text and free.token_ids == chat(engine, -1)[0].token_ids
    (held,) = chat(engine, budget)
    tag = engine.encode("</think>", add_special_tokens=False)
    assert held.token_ids[:budget] == free.token_ids[:budget]
    assert held.token_ids[budget : budget + len(tag)] == tag
    assert (held.reasoning or "") == engine.decode(free.token_ids[:budget]).strip()
    assert held.content is not None and held.finish_reason == "length"


def test_each_completion_has_its_own_budget(engine: Engine) -> None:
    outputs = chat(engine, 5, n=4)
    assert len({output.reasoning for output in outputs}) == 4
    for output in outputs:
        assert engine.decode(output.token_ids[5:9]) == "</think>"


def test_the_form_starts_after_the_tag(engine: Engine) -> None:
    for output in chat(engine, 5, n=3, structured_outputs={"regex": "x[0-9]{2}"}):
        assert output.finish_reason == "stop" and re.fullmatch("x[0-9]{2}", output.content or ""), output.text
        assert len(output.token_ids) <= 5 + 4 + 4 and output.reasoning
    # a form without reasoning before it has no place for a tag
    (plain,) = chat(engine, 0, SHUT, structured_outputs={"regex": "<think>a{9}"})
    assert plain.text == "<think>aaaaaaaaa"


def test_where_reasoning_begins(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    (prefix,) = engine.generate(engine.render_chat(MESSAGES)["prompt"] + "<think>\n", {"thinking_token_budget": 0})
    assert prefix.text.startswith("</think>")
    ids = engine.encode("Q: A\nA:<think>")
    (by_ids,) = engine.generate({"prompt_token_ids": ids}, {"thinking_token_budget": 0})
    assert by_ids.text.startswith("</think>")
    # the model itself writes " 264" here
    monkeypatch.setitem(formats._TAGS, "think", ThinkTags("26", "!"))
    (output,) = engine.chat(MESSAGES, {"temperature": 0, "thinking_token_budget": 1})
    assert output.text.startswith(" 264!") and output.outputs[0].reasoning == "4"
    monkeypatch.setitem(formats._TAGS, "think", ThinkTags("64", "!"))
    (output,) = engine.chat(MESSAGES, {"temperature": 0, "thinking_token_budget": 0})
    assert output.text == " 264" and output.outputs[0].reasoning is None


def test_streams(engine: Engine) -> None:
    prompt = engine.render_chat(MESSAGES, chat_template=OPEN)
    params = SamplingParams(temperature=1, seed=3, max_tokens=20, thinking_token_budget=4)
    (whole,) = engine.generate(prompt, params)
    assert list(engine.stream(prompt, params))[-1].text == whole.text

    async def run() -> str:
        return [output.text async for output in engine.agenerate(prompt, params)][-1]

    assert asyncio.run(run()) == whole.text and "</think>" in whole.text


def test_other_requests_keep_their_tokens(engine: Engine) -> None:
    prompts = [engine.render_chat(MESSAGES, chat_template=OPEN)] * 4
    params = [SamplingParams(temperature=1, seed=seed, max_tokens=12) for seed in range(4)]
    alone = [output.outputs[0].token_ids for output in engine.generate(prompts, params)]
    mixed = [param.clone(thinking_token_budget=2) if seed % 2 else param for seed, param in enumerate(params)]
    beside = [output.outputs[0].token_ids for output in engine.generate(prompts, mixed)]
    assert [a == b for a, b in zip(alone, beside)] == [True, False, True, False]


@pytest.mark.parametrize("value", [-2, 1.5, "4", True])
def test_wrong_values(value: Any) -> None:
    with pytest.raises(ValidationError, match="thinking_token_budget must be") as caught:
        SamplingParams(thinking_token_budget=value)
    assert caught.value.field == "thinking_token_budget"


def test_where_it_cannot_act(engine: Engine, nano: Engine) -> None:
    with pytest.raises(ValidationError, match="this one's reasoning parser is none") as caught:
        nano.generate("a", {"thinking_token_budget": 4})
    assert caught.value.field == "thinking_token_budget"
    assert nano.generate("a", {"thinking_token_budget": -1, "max_tokens": 1})
    with pytest.raises(ValidationError, match="got both"):
        SamplingParams(thinking_token_budget=4, forced_token_ids=[3])
    # the tag's tokens may not be drawn: that request alone ends with an error
    (output,) = chat(engine, 2, allowed_token_ids=[5, 6])
    assert output.finish_reason == "error" and output.error


HARMONY = piece_tokenizer(
    [*"abcdefghijklmnopqrstuvwxyz", " ", "=", "."],
    ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<think>", "</think>"),
)


@pytest.mark.parametrize(
    ("parser", "prompt", "text", "expected"),
    [
        (
            "openai",
            "<|start|>assistant",
            "<|channel|>analysis<|message|>ab<|end|><|start|>assistant<|channel|>final",
            2,
        ),
        ("openai", "<|start|>assistant<|channel|>analysis<|message|>", "abc<|end|>", 3),
        ("openai", "<|start|>assistant<|channel|>analysis<|message|>x<|end|><|start|>assistant", "abc", 0),
        (
            "openai",
            "<|start|>assistant",
            "<|channel|>commentary<|message|>abc<|end|><|start|>assistant<|channel|>analysis<|message|>a b",
            3,
        ),
        ("think", "a", "<think>ab</think>c<think>d", 2),
        ("think", "a<think>", "ab", 2),
        ("think", "a", "b<think>ab", 0),
        (None, "a<think>", "ab", None),
    ],
)
def test_trackers_of_formats(parser: str | None, prompt: str, text: str, expected: int | None) -> None:
    tracker = ResponseFormat.of(None, parser, tokenizer=HARMONY).tracker(prompt, HARMONY.token_bytes)
    if expected is None:
        assert tracker is None
        return
    assert tracker is not None
    for token in HARMONY.encode(text, add_special_tokens=False):
        tracker.accept(token)
    assert tracker.num_tokens == expected


def test_reasoning_after_a_call() -> None:
    tracker = ReasoningTracker(TAGS, SMALL.token_bytes, inside=False)
    for token in SMALL.encode("a <t>a"):
        tracker.accept(token)
    assert tracker.num_tokens == 0
    tracker.expect()
    for token in SMALL.encode(" <t>aa"):
        tracker.accept(token)
    tracker.expect()
    for token in SMALL.encode("a</t>a"):
        tracker.accept(token)
    assert tracker.num_tokens == 3
