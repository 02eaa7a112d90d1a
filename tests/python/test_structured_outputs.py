"""Structured outputs of the Engine on the shipped model: the text keeps its form, and nothing else in the batch changes."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
import time
from typing import Any

import jsonschema
import pytest
from made_schemas import made_schemas

from lynx_rt import CompletionOutput, Engine, SamplingParams, StructuredOutputs, ValidationError

SUM = "Q: 12 times 22 = ?\nA:"
POINT = {
    "type": "object",
    "properties": {
        "x": {"type": "integer", "minimum": -99, "maximum": 99},
        "tags": {"type": "array", "maxItems": 2, "items": {"enum": ["a", "b"]}},
    },
    "required": ["x"],
    "additionalProperties": False,
}
SLOW = {"grammar": "start: " + " | ".join(f'"{number}x"' for number in range(50000))}  # seconds to compile


def one(engine: Engine, structured_outputs: Any, **fields: Any) -> CompletionOutput:
    params = {"temperature": 0, "max_tokens": 40} | fields
    return engine.generate(SUM, SamplingParams(structured_outputs=structured_outputs, **params))[0].outputs[0]


def check_schemas(engine: Engine, schemas: list[dict[str, Any]], max_tokens: int) -> None:
    params = [
        SamplingParams(
            temperature=(0.5, 1.0, 1.5)[seed % 3], seed=seed, max_tokens=max_tokens, structured_outputs={"json": schema}
        )
        for seed, schema in enumerate(schemas)
    ]
    outputs = engine.generate([SUM] * len(schemas), params)
    ends = {"stop": 0, "length": 0}
    for schema, output in zip(schemas, outputs):
        completion = output.outputs[0]
        assert completion.finish_reason in ends, (schema, completion.text, completion.error)
        ends[completion.finish_reason] += 1
        if completion.finish_reason == "stop":
            formats = jsonschema.FormatChecker(["uuid", "ipv4"])
            jsonschema.Draft202012Validator(schema, format_checker=formats).validate(json.loads(completion.text))
    assert ends["stop"] > 0.75 * len(schemas), ends


def test_json_of_random_schemas(nano: Engine) -> None:
    check_schemas(nano, made_schemas(24), max_tokens=120)


@pytest.mark.slow
def test_json_of_many_random_schemas(nano: Engine) -> None:
    check_schemas(nano, made_schemas(200), max_tokens=250)


@pytest.mark.parametrize(
    ("structured_outputs", "pattern"),
    [
        ({"regex": r"[a-f]{2,4}\d"}, r"[a-f]{2,4}\d"),
        ({"choice": ["yes", "no", "né, 😀"]}, "yes|no|né, 😀"),
        ({"grammar": 'start: "<" NUMBER ("," NUMBER)? ">"\nNUMBER: /[0-9]{1,3}/'}, r"<\d{1,3}(,\d{1,3})?>"),
        ({"grammar": 'root ::= "<" [0-9] ("," [0-9])? ">"'}, r"<\d(,\d)?>"),
        ({"json_object": True}, r"\{.*\}"),
        ({"json": POINT, "disable_any_whitespace": True}, r"\{\"x\":-?\d+(,\"tags\":\[\S*\])?\}"),
        ({"json": json.dumps(POINT), "whitespace_pattern": "~?"}, r"[^ \n]*"),
    ],
)
def test_the_whole_text_has_the_form(nano: Engine, structured_outputs: dict[str, Any], pattern: str) -> None:
    params = SamplingParams(temperature=1.5, seed=1, n=4, max_tokens=60, structured_outputs=structured_outputs)
    for completion in nano.generate(SUM, params)[0].outputs:
        if structured_outputs.get("json_object") and completion.finish_reason == "length":
            continue
        assert completion.finish_reason == "stop" and completion.stop_reason is None, completion
        assert re.fullmatch(pattern, completion.text, re.DOTALL), completion.text


def test_structural_tag(nano: Engine) -> None:
    """Text is free up to the trigger, and a call after it is one of the structures."""
    tag = {"triggers": [" 2"], "structures": [{"begin": " 26=", "schema": {"enum": ["b"]}, "end": "!"}]}
    assert one(nano, {"structural_tag": tag}).text.startswith(' 26="b"!')
    assert one(nano, {"structural_tag": tag | {"triggers": [" 26="]}}).text == " 264"  # as without


def test_completions_of_a_request_are_held_apart(nano: Engine) -> None:
    params = SamplingParams(temperature=2.0, n=8, seed=4, max_tokens=30, structured_outputs={"regex": "[0-9]{1,8}"})
    texts = [completion.text for completion in nano.generate(SUM, params)[0].outputs]
    assert len(set(texts)) > 4 and all(re.fullmatch("[0-9]{1,8}", text) for text in texts)
    alone = [one(nano, {"regex": "[0-9]{1,8}"}, temperature=2.0, seed=4 + place).text for place in range(8)]
    assert texts == alone


def test_logprobs_are_those_before_the_mask(nano: Engine) -> None:
    plain = nano.generate(SUM, SamplingParams(temperature=0, max_tokens=1, logprobs=3))[0].outputs[0]
    held = one(nano, {"regex": "z+"}, max_tokens=1, logprobs=3)
    assert held.text.startswith("z")
    chosen, *likely = held.logprobs[0].values()
    assert chosen.rank > 3
    assert [entry.logprob for entry in likely] == [entry.logprob for entry in plain.logprobs[0].values()]


def test_an_end_comes_no_sooner_than_min_tokens(nano: Engine) -> None:
    assert one(nano, {"regex": " [0-9]*"}).text == " 264"
    longer = one(nano, {"regex": " [0-9]*"}, min_tokens=9)
    assert len(longer.token_ids) >= 9 and longer.finish_reason == "stop" and longer.text.startswith(" 264")
    full = one(nano, {"regex": " [0-9]{2}"}, min_tokens=9)  # then nothing but the end can follow
    assert full.text == " 26" and full.finish_reason == "stop" and len(full.token_ids) == 4


def test_ends_beside_the_form(nano: Engine) -> None:
    assert one(nano, {"regex": " [0-9]{9}"}, stop="4").text == " 26"
    assert one(nano, {"regex": " [0-9]{9}"}, max_tokens=3).finish_reason == "length"
    ignoring = one(nano, {"regex": " [0-9]{2}"}, ignore_eos=True, max_tokens=9)
    assert ignoring.text == " 26" and ignoring.finish_reason == "length"


@pytest.mark.parametrize("tag", ["4", " 26", "64"])
def test_text_before_start_after_is_free(nano: Engine, tag: str) -> None:
    held = one(nano, StructuredOutputs(regex="x[yz]", start_after=tag), min_tokens=2)
    assert re.fullmatch(f".*?{tag}x[yz]", held.text) and " 264".startswith(held.text[:-2])
    never = one(nano, StructuredOutputs(regex="x[yz]", start_after="</think>"), max_tokens=8)
    assert never.finish_reason == "length" and never.text.startswith(" 264")  # it may not end before the tag


def test_free_requests_have_the_same_tokens_beside_constrained_ones(nano: Engine) -> None:
    free = [SamplingParams(temperature=1.0, seed=seed, max_tokens=24, logprobs=0) for seed in range(4)]
    held = [
        SamplingParams(temperature=1.0, seed=9, max_tokens=24, structured_outputs={"json": POINT}),
        SamplingParams(temperature=1.0, seed=9, max_tokens=24, structured_outputs={"regex": "[a-z ]+"}, logprobs=1),
        SamplingParams(temperature=0, max_tokens=24, structured_outputs={"regex": "b"}, allowed_token_ids=[5]),
    ]
    alone = [nano.generate(SUM, params)[0].outputs[0] for params in free + held]
    mixed = [output.outputs[0] for output in nano.generate([SUM] * 7, free + held)]
    for one_of, other in zip(alone, mixed):
        assert (one_of.token_ids, one_of.logprobs, one_of.finish_reason) == (
            other.token_ids,
            other.logprobs,
            other.finish_reason,
        )
    assert [output.finish_reason for output in mixed[4:]] == ["length", "stop", "error"]


def test_a_dead_end_ends_that_request_alone(nano: Engine) -> None:
    """The token that completes start_after goes on with what the form does not allow."""
    tokens = nano.encode(" times", add_special_tokens=False)
    assert nano.get_tokenizer().token_bytes(tokens[0]) == b" times"
    dead = SamplingParams(
        temperature=0, structured_outputs=StructuredOutputs(regex="x", start_after=" t"), logit_bias={tokens[0]: 100}
    )
    outputs = nano.generate([SUM] * 3, [SamplingParams(temperature=0), dead, SamplingParams(temperature=0)])
    assert [output.text for output in outputs[::2]] == [" 264", " 264"]
    completion = outputs[1].outputs[0]
    assert completion.finish_reason == "error" and completion.token_ids == tokens[:1]
    assert "structured_outputs: no token can follow" in completion.error
    assert nano.stats().num_running == 0


def test_preempted_requests_keep_their_form(nano_path: str) -> None:
    """Preemption throws a request's pages away, and it computes them again; its grammar goes on."""
    with Engine(nano_path) as engine:
        per_token = engine._core.model_info()["kv_bytes_per_token"]
    params = [
        SamplingParams(temperature=1.0, seed=seed, max_tokens=60, structured_outputs={"regex": "([a-e]{3}-)+"})
        for seed in range(6)
    ]
    with Engine(nano_path, max_model_len=128, kv_cache_memory_bytes=160 * per_token) as engine:
        tight = engine.generate([SUM] * 6, params)
        assert engine.stats().preemptions > 0
        alone = [engine.generate(SUM, each)[0] for each in params]
    for output, single in zip(tight, alone):
        assert output.outputs[0].token_ids == single.outputs[0].token_ids
        assert re.fullmatch("([a-e]{3}-)*[a-e]{0,3}", output.text)


def test_streams_and_asyncio(nano: Engine) -> None:
    params = SamplingParams(temperature=0, max_tokens=40, structured_outputs={"json": POINT})
    expected = nano.generate(SUM, params)[0].text
    assert "".join(output.outputs[0].delta_text for output in nano.stream(SUM, params)) == expected

    async def last() -> str:
        async for output in nano.agenerate(SUM, params):
            text = output.text
        return text

    assert asyncio.run(last()) == expected


@pytest.mark.parametrize(
    ("structured_outputs", "text"),
    [
        ({"json": {"not": {"type": "string"}}}, 'Unimplemented keys: \\["not"\\]'),
        ({"json": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ({"json": {"if": {}, "then": {}}}, '"if", "then"'),
        ({"json": {"type": "strin"}}, "Invalid type: strin"),
        ({"json": {"type": "string", "pattern": "(?=a)b"}}, "look-around"),
        ({"json": {"type": "integer", "minimum": 5, "maximum": 3}}, "minimum \\(5\\) is greater"),
        ({"json": {"$ref": "#/$defs/none"}}, "does not exist"),
        ({"json": {"$ref": "#"}}, "no text satisfies it"),
        ({"regex": "(a"}, "unclosed group"),
        ({"grammar": "start: nothing"}, 'unknown name: "nothing"'),
        ({"grammar": "root ::= ("}, "the grammar is refused"),
        ({"structural_tag": {"format": {}}}, '"format" is not supported'),
        ({"structural_tag": {"structures": [], "triggers": []}}, '"structures" must be'),
        (
            {"structural_tag": {"structures": [{"begin": "a", "schema": {}, "end": ""}], "triggers": ["b"]}},
            "must start with a trigger",
        ),
        ({"json": {}, "regex": "a"}, "got json and regex"),
        ({}, "got none of them"),
        ({"jsn": {}}, "did you mean json"),
        ({"choice": []}, "choice must be a list"),
        ({"choice": ["a", 1]}, "choice must hold strings"),
        ({"json": "{"}, "json must be JSON"),
        ({"json": "[1]"}, "json must be a JSON object"),
        ({"json_object": 1}, "json_object must be True"),
        ({"regex": "a", "disable_any_whitespace": True}, "goes with json"),
        ({"regex": "\ud800"}, "UTF-8"),
        (3, "expected StructuredOutputs or a dict, got 3"),
    ],
)
def test_what_is_refused(nano: Engine, structured_outputs: Any, text: str) -> None:
    with pytest.raises(ValidationError, match=text) as caught:
        one(nano, structured_outputs)
    assert caught.value.field == "structured_outputs" and str(caught.value).startswith("structured_outputs: ")
    assert "\n" not in str(caught.value)


def test_options_of_llguidance_in_a_schema(nano: Engine) -> None:
    """What the documentation says of them."""
    overlapping = {"oneOf": [{"type": "object", "properties": {name: {"type": "integer"}}} for name in "ab"]}
    with pytest.raises(ValidationError, match="oneOf"):
        one(nano, {"json": overlapping})
    for schema in (overlapping | {"x-guidance": {"coerce_one_of": True}}, {"not": {}, "x-guidance": {"lenient": True}}):
        assert one(nano, {"json": schema}).finish_reason in ("stop", "length")
    spaced = {
        "type": "array",
        "items": {"const": 1},
        "minItems": 2,
        "maxItems": 2,
        "x-guidance": {"whitespace_pattern": "~"},
    }
    assert re.fullmatch("\\[~?1~?,~?1~?\\]", one(nano, {"json": spaced}, temperature=1.5, seed=1).text)
    assert one(nano, {"json": spaced, "disable_any_whitespace": True}).text == "[1,1]"


def test_special_tokens_in_a_grammar(nano: Engine) -> None:
    held = one(nano, {"grammar": 'start: "a" <|pad|> "b"'}, skip_special_tokens=False)
    assert held.text.startswith("a<|pad|>b") and held.finish_reason == "stop"


def test_what_does_not_go_together(nano: Engine, nano_path: str) -> None:
    with pytest.raises(ValidationError, match="forced_token_ids"):
        SamplingParams(structured_outputs={"regex": "a"}, forced_token_ids=[5])
    with (
        Engine(nano_path, skip_tokenizer_init=True) as engine,
        pytest.raises(ValidationError, match="needs a tokenizer"),
    ):
        engine.generate([5], SamplingParams(structured_outputs={"regex": "a"}))


def test_a_slow_compilation_ends_in_an_error_and_others_go_on(nano_path: str) -> None:
    with Engine(nano_path) as engine:
        engine._inputs._grammars._seconds = 0.2
        long = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)
        running = threading.Thread(target=engine.generate, args=(SUM, long))
        running.start()
        while engine.stats().steps == 0:
            time.sleep(0.001)
        before, start = engine.stats().steps, time.monotonic()
        with pytest.raises(ValidationError, match=r"could not be compiled within 0\.2 s"):
            one(engine, SLOW)
        assert time.monotonic() - start < 2
        assert engine.stats().steps > before
        running.join()


def test_a_child_of_a_fork_makes_its_own(nano_path: str) -> None:
    """The child is made while threads of the parent are in llguidance's calls."""
    code = (
        "import os, sys, threading, lynx_rt\n"
        "held = lynx_rt.SamplingParams(temperature=0, max_tokens=8, structured_outputs={'regex': ' [0-9]+'})\n"
        "engine = lynx_rt.Engine(sys.argv[1])\n"
        "stop = threading.Event()\n"
        "def loop():\n"
        "    while not stop.is_set(): engine.generate(['a'] * 4, held)\n"
        "threading.Thread(target=loop, daemon=True).start()\n"
        "while engine.stats().steps < 20: pass\n"
        "for _ in range(3):\n"
        "    if (child := os.fork()) == 0:\n"
        "        with lynx_rt.Engine(sys.argv[1], num_threads=1) as own:\n"
        f"            print(own.generate({SUM!r}, held)[0].text, flush=True)\n"
        "        os._exit(0)\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
        "stop.set()"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, nano_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout == " 264\n" * 3, (done.stdout, done.stderr)
