"""Parsers of responses: every way of cutting an output into pieces gives the same result, and each character is looked at once."""

from __future__ import annotations

import json
import random
import re
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_responses import FAMILIES, TOOLS, Call, Family, stream

from lynx_rt.text.response import ResponseFormat

# Texts without the characters that begin tags, for outputs whose parts are known.
PLAIN = st.text(st.sampled_from([*"ab 1.,'\"\\ü日🌧\n"]), max_size=20)
# Values may look like tags, but for those that would end them in formats that do not escape.
TEXT = st.lists(
    st.sampled_from(
        [
            *'ab 7"\\\n\tü日🌧{}[]():,=<>',
            "</tool_call>",
            "<tool_call>",
            "</think>",
            "[TOOL_CALLS]",
            "</function",
            "</arg",
        ]
    ),
    max_size=8,
).map("".join)
SCALARS = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(-1e9, 1e9) | TEXT
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "city": TEXT,
        "days": st.integers(),
        "where": st.dictionaries(TEXT, JSON, max_size=3),
        "list": st.lists(JSON, max_size=3),
        "exact": st.booleans(),
        "ratio": st.floats(allow_nan=False, allow_infinity=False),
    },
)
CALLS = st.lists(
    st.tuples(st.just("get_weather"), ARGUMENTS) | st.tuples(st.just("now"), st.just({})), min_size=0, max_size=3
)


def cuts(text: str, seed: int) -> list[str]:
    """Cuts a text at random places, which may be the same."""
    choose = random.Random(seed)
    places = sorted(choose.randint(0, len(text)) for _ in range(choose.choice([1, 3, 10, len(text)])))
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)])]


def check_splits(format: ResponseFormat, text: str, seed: int, **options: Any) -> None:
    """All ways of cutting agree with each other and with parse(), but for calls that parse() leaves out: those given up."""
    reason = random.Random(seed).choice(["stop", "length", None])
    whole = format.parser(tools=TOOLS, **options).parse(text, finish_reason=reason)
    once = stream(format.parser(tools=TOOLS, **options), [text], reason)
    for pieces in (list(text), cuts(text, seed), cuts(text, seed + 1)):
        assert "".join(pieces) == text
        streamed = stream(format.parser(tools=TOOLS, **options), pieces, reason)
        streamed.ids = once.ids
        assert streamed == once
    assert (whole.content or "", whole.reasoning or "", whole.failed) == (once.content, once.reasoning, once.failed)
    complete = [(call.name, call.arguments) for call in whole.tool_calls]
    assert all(isinstance(json.loads(arguments), dict) for _, arguments in complete)
    left = iter(once.calls)
    assert all(call in left for call in complete), "the complete calls stand in the stream in their order"
    if not whole.failed and reason != "length":
        assert once.calls == complete


@pytest.mark.parametrize("family", FAMILIES)
@given(reasoning=PLAIN, content=PLAIN, calls=CALLS, seed=st.integers(0, 2**32))
@settings(max_examples=12)
def test_written_outputs(family: str, reasoning: str, content: str, calls: list[Call], seed: int) -> None:
    writer = FAMILIES[family]
    reasoning = reasoning.strip() if writer.reasoning_parser else ""
    content = content.strip() if writer.text_before or not calls else ""
    text = writer.write(reasoning, content, calls)
    parsed = writer.format().parser(tools=TOOLS).parse(text)
    assert (parsed.reasoning or "", parsed.content or "", parsed.failed) == (reasoning, content, False)
    found = [(call.name, json.loads(call.arguments)) for call in parsed.tool_calls]
    assert dump(found) == dump(calls)
    check_splits(writer.format(), text, seed)


def dump(value: Any) -> str:
    """Tells 1 from 1.0 and True, which == does not."""
    return json.dumps(value)


@pytest.mark.parametrize("family", FAMILIES)
@given(
    content=PLAIN,
    calls=CALLS,
    faults=st.lists(
        st.tuples(st.integers(0, 10**6), st.integers(0, 20), TEXT), min_size=1, max_size=3
    ),  # (place, characters that are lost, text that comes in their stead)
    seed=st.integers(0, 2**32),
    inside=st.booleans(),
    parallel=st.booleans(),
)
@settings(max_examples=12)
def test_damaged_outputs(
    family: str,
    content: str,
    calls: list[Call],
    faults: list[tuple[int, int, str]],
    seed: int,
    inside: bool,
    parallel: bool,
) -> None:
    writer = FAMILIES[family]
    text = writer.write("hm", content, calls) + "\nand then " + writer.write("", "", calls)
    for place, size, new in faults:
        place %= len(text) + 1
        text = text[:place] + new + text[place + size :]
    tail = "<|assistant|>" + writer.reasoning.split("{")[0] if inside else ""
    check_splits(writer.format(), text, seed, prompt_tail=tail, parallel_tool_calls=parallel)


MARKS = re.compile(r"<[^<>\n]*>|\[[A-Z_/]+\]|\w+|\s+|.", re.DOTALL)


@pytest.mark.parametrize("family", FAMILIES)
@given(choose=st.randoms(use_true_random=False))
@settings(max_examples=12)
def test_shuffled_outputs(family: str, choose: random.Random) -> None:
    """Tags, names and JSON of the family in any order, with parts that stay together."""
    calls: list[Call] = [("get_weather", {"city": "a", "days": 1}), ("now", {})]
    marks = MARKS.findall(FAMILIES[family].write("hm", "so", calls))
    text = ""
    for _ in range(choose.randint(1, 8)):
        start = choose.randrange(len(marks))
        text += "".join(marks[start : start + choose.choice([1, 2, 10, 30])])
    check_splits(FAMILIES[family].format(), text, choose.randrange(10**6))


@pytest.mark.parametrize("forced", ["required", "named:now"])
@given(calls=CALLS, fault=st.integers(0, 500), seed=st.integers(0, 2**32))
@settings(max_examples=12)
def test_forced_outputs(forced: str, calls: list[Call], fault: int, seed: int) -> None:
    values = [{"name": name, "parameters": arguments} for name, arguments in calls]
    text = json.dumps(values if forced == "required" else calls[0][1] if calls else {})
    text = "<think>hm</think>" + text[:fault]
    check_splits(FAMILIES["hermes"].format(), text, seed, forced=forced)


def output_of(family: Family, size: int) -> str:
    """An output of about `size` characters, most of them in one argument; then as much content again."""
    value = ('word </tool_call> \\ " { [ <\n' * (size // 27))[:size]
    return family.write("", "", [("get_weather", {"city": value, "where": {"a": [value[: size // 4]]}})]) + value


# One family of each kind of parser.
KINDS = ["hermes", "qwen3_coder", "mistral_named", "llama3_json", "llama4_pythonic", "deepseek_v3", "kimi_k2", "openai"]


@pytest.mark.parametrize("family", KINDS)
def test_time_is_linear(family: str) -> None:
    """Four times the characters, one by one, take about four times the processor time; a parser that reads again takes sixteen times."""

    def seconds(size: int) -> float:
        text = output_of(FAMILIES[family], size)
        best = 1e9
        for _ in range(3):
            parser = FAMILIES[family].format().parser(tools=TOOLS)
            start = time.thread_time()
            for char in text:
                parser.feed(char)
            parser.finish()
            best = min(best, time.thread_time() - start)
        return best

    assert seconds(4000) < 9 * seconds(1000)
