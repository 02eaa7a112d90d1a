"""Every public method of Engine, given values of any type: the right answer or a ValidationError that names the argument."""

from __future__ import annotations

import asyncio
import inspect
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lynx_rt import Engine, LynxError, RequestOutput, ValidationError

EXAMPLES = int(os.environ.get("LYNX_RT_SURFACE_EXAMPLES", "25"))
ONE = {"temperature": 0, "max_tokens": 1}
CHAT = [{"role": "user", "content": "x"}]


def odd_values() -> list[Any]:
    """One of each kind; made anew, since generators can be read once."""
    return [
        *(None, True, 5, -1, 10**5000, 1.5, math.nan, 1j),
        *("x", "", "\ud800", b"x", bytearray(b"z"), memoryview(b"x")),
        *(np.int64(3), np.float32(1), np.bool_(True), np.array(3), np.array([1]), np.array([[1.5]]), np.array(["a"])),
        *([], {}, set(), {"a"}, (1,), range(3), [True], [b"x"], [None], [[[]]], [["a"]], [np.float64(1)], [object()]),
        *({"role": 5}, {1: 2}, [{"role": "user"}], [{"role": "user", "content": b"x"}]),
        *(object(), int, math.sin, (item for item in [1]), (item for item in ["x"])),
    ]


def stream(engine: Engine, prompt: Any, sampling_params: Any = ONE, **options: Any) -> list[RequestOutput]:
    return list(engine.stream(prompt, sampling_params, **options))[-1:]


def agenerate(engine: Engine, prompt: Any, sampling_params: Any = ONE, **options: Any) -> list[RequestOutput]:
    async def read() -> list[RequestOutput]:
        return [output async for output in engine.agenerate(prompt, sampling_params, **options)]

    return asyncio.run(read())[-1:]


def steps(engine: Engine, prompt: Any, sampling_params: Any = ONE, **options: Any) -> list[RequestOutput]:
    engine.add_request(prompt, sampling_params, **options)
    outputs = []
    while engine.has_unfinished_requests():
        outputs += engine.step()
    return outputs[-1:]


ONE_PROMPT = {"prompt": "a", "sampling_params": ONE, "request_id": None, "add_special_tokens": None}
RUN = {"sampling_params": ONE, "use_tqdm": None, "timeout": None}
RENDER = {
    "messages": CHAT,
    "chat_template": None,
    "add_generation_prompt": True,
    "continue_final_message": False,
    "tools": None,
    "chat_template_kwargs": None,
}
# Method -> how it is called, and arguments that are right.
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "generate": (Engine.generate, {"prompts": "a", "add_special_tokens": None, **RUN}),
    "chat": (Engine.chat, {**RENDER, **RUN, "mm_processor_kwargs": None}),
    "render_chat": (Engine.render_chat, RENDER),
    "stream": (stream, ONE_PROMPT),
    "agenerate": (agenerate, ONE_PROMPT),
    "add_request": (steps, ONE_PROMPT),
    "abort": (Engine.abort, {"request_id": "nobody's"}),
    "score": (Engine.score, {"prompts": ["a"], "completions": ["b"]}),
    "encode": (Engine.encode, {"text": "a", "add_special_tokens": True}),
    "decode": (Engine.decode, {"ids": [1], "skip_special_tokens": True}),
    "set_expert_selection": (Engine.set_expert_selection, {"selection": None}),
}
# Argument, or method(argument) -> the odd values that are right, as texts.
TEXTS, IDS = {"'x'", "''"}, {"array([1])", "(1,)", "range(0, 3)"}
RIGHT: dict[str, set[str]] = {
    "prompts": TEXTS | IDS | {"[]", "generator of 'x'"},
    "prompt": TEXTS | IDS | {"generator of 'x'"},
    "score(prompts)": TEXTS | IDS | {"generator of 'x'"},
    "completions": {"'x'", "generator of 'x'"} | IDS,
    "sampling_params": set(),
    "add_special_tokens": {"None", "True"},
    "encode(add_special_tokens)": {"True"},
    "use_tqdm": {"None", "True"},
    "timeout": {"None", "5", "-1", "1.5", "np.int64(3)", "np.float32(1.0)", "huge"},
    "request_id": {"None", "'x'", "'\\ud800'"},
    "abort(request_id)": TEXTS
    | {"'\\ud800'", "[]", "{}", "set()", "{'a'}", "{'role': 5}", "generator of 'x'", "array(['a'], dtype='<U1')"},
    "messages": set(),
    "chat_template": {"None"},
    "add_generation_prompt": {"None", "True"},
    "continue_final_message": {"None"},
    "tools": {"None", "[]", "[{'role': 'user'}]"},
    "chat_template_kwargs": {"None", "{}", "{'role': 5}"},
    "mm_processor_kwargs": {"None", "{}", "[]", "''"},
    "text": TEXTS,
    "skip_special_tokens": {"True"},
    "selection": {"None", "''"},
}


def name_of(value: Any) -> str:
    if inspect.isgenerator(value):
        return "generator of " + repr(next(value))
    try:
        return repr(value)
    except ValueError:
        return "huge"


NAMES = [name_of(value) for value in odd_values()]


def test_the_table_is_complete() -> None:
    methods = {name for name, _ in inspect.getmembers(Engine, inspect.isfunction) if not name.startswith("_")}
    without_arguments = {
        "close",
        "step",
        "has_unfinished_requests",
        "stats",
        "reset_stats",
        "expert_stats",
        "expert_counts",
    }
    without_arguments |= {"get_tokenizer", "get_default_sampling_params"}
    without_arguments |= {"open_streams", "on_step", "step_sums"}  # for servers
    assert methods == set(CALLS) | without_arguments
    for name, (_, right) in CALLS.items():
        parameters = inspect.signature(getattr(Engine, name)).parameters
        assert set(parameters) - {"self", "options"} <= set(right)


@pytest.mark.parametrize(
    ("method", "argument"),
    [(method, argument) for method, (_, right) in CALLS.items() for argument in right if argument != "ids"],
)
def test_values_of_any_type(nano: Engine, method: str, argument: str) -> None:
    call, right = CALLS[method]
    accepted = set()
    for name, value in zip(NAMES, odd_values(), strict=True):
        if argument == "sampling_params" and name in ("None", "{}"):  # right, and long to run
            continue
        try:
            result = call(nano, **right | {argument: value})
        except LynxError as error:
            assert isinstance(error, ValidationError), error
            assert str(error) and len(str(error)) < 1000
        else:
            accepted.add(name)
            if method in ("generate", "chat", "stream", "agenerate", "add_request") and name != "[]":
                assert all(output.finished and not output.outputs[0].error for output in result) and result
    assert accepted == RIGHT.get(f"{method}({argument})", RIGHT.get(argument))
    stats = nano.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0) and not nano.has_unfinished_requests()


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 5000)
    | st.floats(allow_nan=True)
    | st.text(max_size=3)
    | st.sampled_from(["prompt", "role", "messages", "user", "content", "\ud800", b"x", "<|bos|>"])
)
KEYS = st.sampled_from(
    ["prompt", "prompt_token_ids", "messages", "role", "content", "tool_calls", "type", "text", "function", "arguments"]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.tuples(inner)
        | st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "assistant", "tool"])}, optional={"content": inner, "tool_calls": inner}
        )
    ),
    max_leaves=8,
)


@given(VALUES, st.booleans())
@settings(max_examples=EXAMPLES)
def test_any_value_as_a_prompt(nano: Engine, value: Any, as_chat: bool) -> None:
    try:
        outputs = nano.chat(value, ONE) if as_chat else nano.generate(value, ONE, use_tqdm=False)
    except ValidationError as error:
        assert str(error)
    else:
        assert all(output.finished and output.prompt_token_ids for output in outputs)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("model", None),
        ("model", 5),
        ("max_model_len", True),
        ("max_model_len", ""),
        ("max_num_seqs", 1.5),
        ("max_num_seqs", 10**30),
        ("block_size", "16"),
        ("seed", None),
        ("enable_prefix_caching", 0),
        ("skip_tokenizer_init", "no"),
        ("quantization", []),
        ("quantization_cache", 5),
        ("expert_file", 5),
        ("expert_memory", []),
        ("expert_memory", "much"),
        ("expert_memory", -1),
        ("memory", []),
        ("memory", "much"),
        ("expert_policy", "best"),
        ("expert_prefetch", "next_router:n=0"),
        ("io_timeout_s", -1),
        ("admission", None),
        ("admission", "affinity:skips=-1"),
        ("io_timeout_s", math.nan),
        ("io_timeout_s", "10"),
        ("chat_template", 5),
        ("generation_config", 5),
        ("device", None),
        ("dtype", b"auto"),
        ("isa", 0),
        ("expert_selection", "\ud800"),
        ("num_threads", math.nan),
        ("tokenizer", 5),
        ("load_format", []),
        ("tool_parser", 5),
        ("reasoning_parser", "no such parser"),
    ],
)
def test_options_of_any_type(nano_path: str, option: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=option) as caught:
        Engine(**{"model": Path(nano_path)} | {option: value})
    assert caught.value.field == option
