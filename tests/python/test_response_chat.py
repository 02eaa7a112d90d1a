"""Engine.chat: reasoning, content and tool calls of what the model writes. The output is forced token by token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lynx_rt import CompletionOutput, Engine, RequestMetrics, RequestOutput, SamplingParams, ToolCall, ValidationError
from lynx_rt.engine.chat_results import fill_in

MESSAGES = [{"role": "user", "content": "12 times 22 = ?"}]
TEXT = (
    '<think>\nHm.\n</think>\n\nI ask.\n<tool_call>\n{"name": "times", "arguments": {"a": 12, "b": "2}"}}\n</tool_call>'
)


def times(a: int, b: int) -> int:
    """Multiplies.

    Args:
        a: one
        b: another
    """
    return a * b


@pytest.fixture(scope="module")
def engine(nano_path: str) -> Any:
    with Engine(nano_path, tool_parser="hermes", reasoning_parser="qwen3") as engine:
        yield engine


def forced(engine: Engine, text: str, **params: Any) -> dict[str, Any]:
    """Returns sampling parameters that make the model write a text, which then ends by its length."""
    return {"forced_token_ids": engine.encode(text, add_special_tokens=False), **params}


def test_parts(engine: Engine) -> None:
    assert (engine.response_format.tool_parser, engine.response_format.reasoning_parser) == ("hermes", "think")
    first, second = engine.chat([MESSAGES, MESSAGES], forced(engine, TEXT, n=2), tools=[times])
    for completion in (*first.outputs, *second.outputs):
        assert completion.text == TEXT
        assert (completion.reasoning, completion.content) == ("Hm.", "I ask.")
        [call] = completion.tool_calls
        assert (call.name, json.loads(call.arguments)) == ("times", {"a": 12, "b": "2}"}) and isinstance(call, ToolCall)
    (output,) = engine.chat(MESSAGES, forced(engine, TEXT))
    assert not output.outputs[0].tool_calls and output.outputs[0].content == TEXT.split("</think>\n\n")[1]


def test_reasoning_that_the_template_began(engine: Engine) -> None:
    template = "{{ messages[0].content }}<think>"
    (output,) = engine.chat(MESSAGES, forced(engine, "Hm.</think>Yes"), chat_template=template)
    assert (output.outputs[0].reasoning, output.outputs[0].content) == ("Hm.", "Yes")
    (output,) = engine.chat(MESSAGES, forced(engine, "Hm. Well "), chat_template=template)
    assert output.outputs[0].finish_reason == "length"
    assert (output.outputs[0].reasoning, output.outputs[0].content) == ("Hm. Well", "")


def test_json_is_the_content(engine: Engine) -> None:
    """A tag in a text of the JSON ends nothing."""
    schema = {"const": {"a": "</think><tool_call>"}}
    template = "{{ messages[0].content }}"
    (output,) = engine.chat(MESSAGES, {"structured_outputs": {"json": schema}}, chat_template=template, tools=[times])
    completion = output.outputs[0]
    assert completion.content == output.text and json.loads(output.text) == schema["const"]
    assert completion.reasoning is None and not completion.tool_calls


def test_reasoning_is_free_of_the_form(engine: Engine) -> None:
    params = {"temperature": 0, "max_tokens": 8, "structured_outputs": {"regex": "x"}}
    (plain,) = engine.chat(MESSAGES, params, chat_template="{{ messages[0].content }}")
    assert plain.text == "x" and plain.outputs[0].finish_reason == "stop"
    (thinking,) = engine.chat(
        MESSAGES, params, chat_template="{{ messages[0].content }}<think>"
    )  # it writes no end tag
    assert "x" not in thinking.text and thinking.outputs[0].finish_reason == "length"


def test_only_chat_has_parts(engine: Engine) -> None:
    prompt = engine.render_chat(MESSAGES)
    for output in (
        engine.generate(prompt, forced(engine, TEXT))[0],
        list(engine.stream(prompt, forced(engine, TEXT)))[-1],
    ):
        assert (output.outputs[0].content, output.outputs[0].reasoning, output.outputs[0].tool_calls) == (
            None,
            None,
            [],
        )


def test_plain_answers_are_the_content(nano: Engine) -> None:
    (output,) = nano.chat(MESSAGES, {"temperature": 0})
    assert output.outputs[0].content == output.text == " 264"
    assert nano.response_format.tool_parser is None


def test_tags_that_are_special_tokens(tmp_path: Path, nano_path: str) -> None:
    """The text hides them, so the parts are read from the tokens. A stop string or stop token is of none."""
    for name in ("tokenizer.json", "special_tokens_map.json"):
        (tmp_path / name).write_bytes((Path(nano_path) / name).read_bytes())
    config = json.loads((Path(nano_path) / "tokenizer_config.json").read_text())
    config["response_template"] = {
        "start_anchor": "A:",
        "fields": {"thinking": {"open": "<|pad|>", "close": "<|bos|>"}, "content": {}},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with Engine(nano_path, tokenizer=tmp_path) as engine:
        assert engine.response_format.needs_special_tokens
        (output,) = engine.chat(MESSAGES, forced(engine, "<|pad|>Hm.<|bos|>Yes"))
        assert output.text == "Hm.Yes"
        assert (output.outputs[0].reasoning, output.outputs[0].content) == ("Hm.", "Yes")
        ended = {None: "Yes<|eos|>", "!": "Yes!!", engine.encode("?", add_special_tokens=False)[0]: "Yes?"}
        for stop_reason, text in ended.items():
            ids = engine.encode(f"<|pad|>Hm.<|bos|>{text}", add_special_tokens=False)
            completion = CompletionOutput(0, "Hm.Yes", ids, finish_reason="stop", stop_reason=stop_reason)
            output = RequestOutput("", "A:", [1], [completion], True, RequestMetrics())
            fill_in(output, SamplingParams(), engine.response_format, engine.get_tokenizer(), None)
            assert (completion.reasoning, completion.content) == ("Hm.", "Yes")


@pytest.mark.parametrize("option", ["tool_parser", "reasoning_parser"])
def test_parsers_that_do_not_exist(nano_path: str, option: str) -> None:
    for wrong, fault in (("other", "must be one of auto, none, "), (5, "must be a string or None, got 5")):
        with pytest.raises(ValidationError, match=f"{option} {fault}") as caught:
            Engine(nano_path, **{option: wrong})
        assert caught.value.field == option
    with pytest.raises(ValidationError, match="no response_template"):
        Engine(nano_path, tool_parser="response_template")
