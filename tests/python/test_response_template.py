"""Response templates of tokenizer_config.json: the same parts as in transformers, and clear errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_responses import TOOLS, stream
from test_response_splits import cuts
from transformers.utils.chat_parsing import parse_response

from lynx_rt import Tokenizer, ValidationError
from lynx_rt.text.response import ResponseFormat, ResponseParser, detect_format
from lynx_rt.text.response.template_fields import ResponseTemplate

QWEN = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>"},
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"\s*(?:<\|im_end\|>|<\|endoftext\|>)"},
    },
}
QWEN_CODER = {
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "thinking": {"open": "<think>", "close": "</think>"},
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>\s*<function=(?P<name>[^>\n]+)>",
            "close_pattern": r"</function>\s*</tool_call>",
            "repeats": True,
            "content": "xml-inline",
            "content_args": {"tag_pattern": r"<parameter=(?P<key>[^>\n]+)>\n(?P<value>.*?)\n</parameter>"},
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
        "content": {},
    },
}
GPT_OSS = {
    "start_anchor": "<|start|>assistant",
    "fields": {
        "thinking": {"open": "<|channel|>analysis<|message|>", "close": ["<|end|>", "<|return|>"]},
        "content": {"open": "<|channel|>final<|message|>", "close": ["<|end|>", "<|return|>"]},
        "tool_calls": {
            "open_pattern": r"<\|channel\|>commentary to=functions\.(?P<name>\w+) ?(?:<\|constrain\|>)?json<\|message\|>",
            "close": "<|call|>",
            "content": "json",
            "repeats": True,
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
    },
}
LIST = {
    "start_anchor": "<|CHATBOT|>",
    "fields": {
        "content": {"open": "<|RESPONSE|>", "close": "<|END|>", "repeats": True, "join": " / "},
        "thinking": {"open": "<|THOUGHT|>", "close": "<|END|>", "content_args": {"strip": False}},
        "tool_calls": {
            "open": "<|ACTION|>",
            "close": "<|END|>",
            "content": "json",
            "transform": {"type": "function", "function": {"name": "{tool_name}", "arguments": "{parameters}"}},
            "transform_each": True,
        },
    },
}
DIALECT = {
    "start_anchor": ["<turn>model\n", "<turn>model"],
    "fields": {
        "tool_calls": {
            "open_pattern": r"<call>call:(?P<name>\w+)",
            "close": "</call>",
            "content": "json",
            "content_args": {"string_delims": [['<|"|>', '<|"|>']], "unquoted_keys": True},
            "repeats": True,
            "transform": {"function": {"name": "{name}", "arguments": "{content}"}},
        },
        "content": {"close": "<end>"},
    },
}
LINES = {
    "start_anchor_pattern": r"<bot\d*>",
    "fields": {
        "tool_calls": {
            "open_pattern": r"CALL (?P<name>\w+)\n",
            "close": "END",
            "content": "kv-lines",
            "content_args": {"kv_sep": "=", "value_parser": {"name": "json", "args": {"allow_non_json": True}}},
            "repeats": True,
            "transform": {"function": {"name": "{name}", "arguments": "{content}"}},
        },
        "content": {},
    },
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln \\"x\\"", "days": "7", "where": {"a": [1, null]}}}\n</tool_call>'
CODED = (
    "<tool_call>\n<function=get_weather>\n<parameter=city>\n7\n</parameter>\n<parameter=days>\n7\n</parameter>\n"
    '<parameter=where>\n{"a": [true]}\n</parameter>\n<parameter=exact>\nfalse\n</parameter>\n</function>\n</tool_call>'
)
# template, the end of the prompt, the output
CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "plain": (QWEN, "<|im_start|>assistant\n", "Hello, 日本\n\nworld  \n"),
    "thought": (QWEN, "<|im_start|>assistant\n", "<think>\nHm.\n</think>\n\nHello"),
    "inside": (QWEN, "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n<think>\n", "Hm.\n</think>\n\nHello"),
    "not inside": (QWEN, "<|im_start|>assistant\n<think>\n\n</think>\n\n", "Hello"),
    "call": (QWEN, "<|im_start|>assistant\n", CALL),
    "thought, text and calls": (QWEN, "<|im_start|>assistant\n<think>", f"Hm.</think>Sure.\n{CALL}\n{CALL}"),
    "end tag": (QWEN, "<|im_start|>assistant\n", "Hello\n<|im_end|>"),
    "coder": (QWEN_CODER, "<|im_start|>assistant\n", f"Sure.\n{CODED}\n{CODED}"),
    "no arguments": (
        QWEN_CODER,
        "<|im_start|>assistant\n",
        "<tool_call>\n<function=now>\n</function>\n</tool_call>",
    ),
    "harmony": (
        GPT_OSS,
        "<|start|>assistant",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hello<|return|>",
    ),
    "harmony call": (
        GPT_OSS,
        "<|start|>assistant",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather "
        '<|constrain|>json<|message|>{"city": "x<|end|>"}<|call|>',
    ),
    "list": (
        LIST,
        "<|CHATBOT|>",
        "<|THOUGHT|> hm <|END|><|RESPONSE|>One. <|END|><|RESPONSE|> Two.<|END|><|ACTION|>"
        '[{"tool_name": "now", "parameters": {}}, {"tool_name": "get_weather", "parameters": {"city": "x"}}]<|END|>',
    ),
    "dialect": (
        DIALECT,
        "<turn>model\n",
        'Yes.<call>call:get_weather{city:<|"|>a "b" {c:d}<|"|>,days:2}</call><call>call:now{}</call>',
    ),
    "lines": (LINES, "<bot3>", "Yes.\nCALL get_weather\ncity = x y\nlist=[1, 2]\nexact=true\nEND"),
}


def parser(template: dict[str, Any], prompt: str) -> ResponseParser:
    format = ResponseFormat("response_template", "response_template", template=ResponseTemplate.of(template))
    return format.parser(tools=TOOLS, prompt_tail=prompt)


@pytest.mark.parametrize("case", CASES)
def test_same_as_transformers(case: str) -> None:
    template, prompt, text = CASES[case]
    expected = parse_response(text, template, prefix=prompt, tools=TOOLS)
    parsed = parser(template, prompt).parse(text)
    calls = [call["function"] for call in expected.get("tool_calls", [])]
    assert [(call.name, json.loads(call.arguments)) for call in parsed.tool_calls] == [
        (call["name"], call["arguments"]) for call in calls
    ]
    reasoning = expected.get("thinking", expected.get("reasoning_content"))
    assert (parsed.content or "", parsed.reasoning) == (expected.get("content", ""), reasoning)
    assert parsed.content is not None or parsed.tool_calls


@pytest.mark.parametrize("case", CASES)
def test_every_split(case: str) -> None:
    template, prompt, text = CASES[case]
    for damage in range(0, len(text), 7):  # cut off, and with a gap
        for output in (text[: len(text) - damage], text[:damage] + text[damage + 3 :]):
            once = stream(parser(template, prompt), [output])
            for pieces in (list(output), cuts(output, damage)):
                streamed = stream(parser(template, prompt), pieces)
                streamed.ids = once.ids
                assert streamed == once


def test_malformed_calls_are_content() -> None:
    start = "<|im_start|>assistant\n"
    broken = '<tool_call>\n{"name": "now", "arguments": {1}}\n</tool_call>'
    mixed = parser(QWEN, start).parse(f"Yes.\n{broken}\n{CALL}")
    assert [call.name for call in mixed.tool_calls] == ["get_weather"] and mixed.content == f"Yes.\n{broken}"
    parsed = parser(QWEN, start).parse(broken)
    assert (parsed.content, parsed.tool_calls, parsed.failed) == (broken, [], True)
    cut = parser(QWEN_CODER, start).parse(CODED[:100], finish_reason="length")
    assert (cut.content, cut.tool_calls, cut.failed) == (CODED[:100], [], False)


@pytest.mark.parametrize("case", ["call", "harmony call", "list"])
def test_arguments_come_while_they_are_written(case: str) -> None:
    template, prompt, text = CASES[case]
    place = text.index('"city": "') + 10
    started = stream(parser(template, prompt), list(text[:place]), "length").calls[-1]
    assert started == ("get_weather", '{"city": "' + text[place - 1])


def test_a_tag_in_a_string_ends_nothing() -> None:
    """transformers fails here: it looks for the end tag first."""
    text = '<tool_call>{"name": "get_weather", "arguments": {"city": "</tool_call> \\" <tool_call>"}}</tool_call>'
    [call] = parser(QWEN, "<|im_start|>assistant\n").parse(text).tool_calls
    assert json.loads(call.arguments) == {"city": '</tool_call> " <tool_call>'}
    with pytest.raises(ValueError):
        parse_response(text, QWEN, prefix="<|im_start|>assistant\n")


def test_a_thought_that_is_not_closed() -> None:
    prompt = "<|im_start|>assistant\n<think>\n"
    parsed = parser(QWEN, prompt).parse(f"I ask.\n{CALL}")
    assert (parsed.reasoning, parsed.content) == ("I ask.", None)
    assert [call.name for call in parsed.tool_calls] == ["get_weather"]
    other = CALL.replace("get_weather", "other")
    parsed = parser(QWEN, prompt).parse(f"I ask. {other} Good.</think>Yes")
    assert (parsed.reasoning, parsed.content) == (f"I ask. {other} Good.", "Yes")
    assert (parsed.tool_calls, parsed.failed) == ([], False)


@pytest.mark.parametrize(
    ("field", "value"), [("start_anchor_pattern", "$"), ("start_anchor_pattern", "(?=x)"), ("open_pattern", "x*")]
)
def test_patterns_that_may_be_empty(field: str, value: str) -> None:
    template: dict[str, Any] = {"fields": {"thinking": {"open": "<a>", "close": "</a>"}, "content": {}}}
    if field == "open_pattern":
        template["start_anchor"] = "A:"
        template["fields"]["tool_calls"] = {"open_pattern": value, "close": "</b>", "content": "json"}
    else:
        template[field] = value
    assert parser(template, "A: x").parse("<a>hm</a>Yes").content == "Yes"


@pytest.mark.parametrize(("template", "content"), [(QWEN, "<think>hm</think>Yes"), (GPT_OSS, "hm\nYes")])
def test_without_a_reasoning_parser_thoughts_are_content(template: dict[str, Any], content: str) -> None:
    format = ResponseFormat("response_template", None, template=ResponseTemplate.of(template))
    mark = "<|channel|>{}<|message|>" if template is GPT_OSS else ""
    start, end = (mark.format("analysis"), "<|end|>" + mark.format("final")) if mark else ("<think>", "</think>")
    parsed = format.parser(tools=TOOLS).parse(f"{start}hm{end}Yes")
    assert (parsed.content, parsed.reasoning) == (content, None)


def test_without_tools_calls_are_content() -> None:
    format = ResponseFormat("response_template", "response_template", template=ResponseTemplate.of(QWEN))
    assert format.parser(prompt_tail="<|im_start|>assistant\n").parse(CALL).content == CALL
    forced = format.parser(tools=TOOLS, prompt_tail="<|im_start|>assistant\n<think>\n", forced="named:now")
    streamed = stream(forced, ["hm</think>\n{", "}"])
    assert (streamed.reasoning, streamed.content, streamed.calls) == ("hm", "", [("now", "{}")])


def save(folder: Path, nano_path: str, template: Any) -> Tokenizer:
    """Makes a tokenizer with a response template."""
    for name in ("tokenizer.json", "special_tokens_map.json"):
        (folder / name).write_bytes((Path(nano_path) / name).read_bytes())
    config = json.loads((Path(nano_path) / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"response_template": template}))
    return Tokenizer(folder)


def test_detected(tmp_path: Path, nano_path: str) -> None:
    format = detect_format(save(tmp_path, nano_path, QWEN))
    assert (format.tool_parser, format.reasoning_parser) == ("response_template", "response_template")
    assert not format.needs_special_tokens
    marked = {"start_anchor": "A:", "fields": {"thinking": {"open": "<|bos|>", "close": "<|eos|>"}, "content": {}}}
    assert detect_format(save(tmp_path, nano_path, marked)).needs_special_tokens


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (5, "it must be an object, got 5"),
        ({"version": 2}, "version must be 1, got 2"),
        ({"fields": {}}, "fields must be an object with at least one field"),
        ({"field": {}}, "it must be of the keys"),
        ({"start_anchor": None}, "start_anchor must be a text or several, got None"),
        ({"start_anchor": ""}, "start_anchor must be a text or several, got ''"),
        ({"start_anchor_pattern": "x"}, "start_anchor must be without start_anchor_pattern"),
        ({"fields": {"a": {}, "b": {}}}, "fields must be at most one without an 'open'"),
        ({"fields": {"a": {"open_pattern": "("}}}, "is no pattern: missing )"),
        ({"fields": {"a": {"content": "yaml"}}}, "a.content must be one of"),
        ({"fields": {"a": {"content": "xml-inline"}}}, "a.content_args.tag_pattern must be a pattern"),
        ({"fields": {"a": {"transform": "x {content}"}}}, "a.transform must be of plain texts and whole placeholders"),
        ({"fields": {"a": {"transform_each": True}}}, "a.transform_each must be true or false"),
        ({"fields": {"a": {"join": ","}}}, "a.join must be a text, in a field that repeats"),
        ({"fields": {"a": {"closes": ","}}}, "a must be of the keys"),
    ],
)
def test_faults(tmp_path: Path, nano_path: str, change: Any, fault: str) -> None:
    """A template that cannot be used is warned of, and raises where it is asked for."""
    tokenizer = save(tmp_path, nano_path, QWEN | change if isinstance(change, dict) else change)
    with pytest.warns(UserWarning, match="response_template: "):
        assert detect_format(tokenizer).tool_parser is None
    with pytest.raises(ValidationError, match="response_template: ") as caught:
        ResponseFormat.of("response_template", tokenizer=tokenizer)
    assert fault in str(caught.value)


def test_patterns_need_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "regex", None)
    with pytest.raises(ValidationError, match="pip install regex"):
        ResponseTemplate.of(QWEN)
