# ruff: noqa: RUF001  (DeepSeek's special tokens have full-width bars)
"""Known outputs of each family, and what becomes of them: content, reasoning, calls. Then how the format of a model is found."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import made_tokenizers as made
import pytest
import test_chat_families as chats
import tokenizers
from made_responses import FAMILIES, TOOLS, stream

from lynx_rt import Tokenizer, ValidationError
from lynx_rt.text.chat import render_chat
from lynx_rt.text.response import (
    REASONING_PARSERS,
    TOOL_PARSERS,
    ParsedResponse,
    ResponseDelta,
    ResponseFormat,
    ToolCall,
    detect_format,
)

TEMPLATES = Path(__file__).parent / "chat_templates"
WEATHER = ("get_weather", {"city": 'Köln "x" \\ \n 日本', "days": 2, "where": {"a": [1.5, None, {"b": True}]}})


def parse(text: str, tool_parser: str | None, reasoning: str | None = None, **options: Any) -> ParsedResponse:
    reason = options.pop("finish_reason", None)
    return (
        ResponseFormat.of(tool_parser, reasoning).parser(**{"tools": TOOLS} | options).parse(text, finish_reason=reason)
    )


def calls(parsed: ParsedResponse) -> list[tuple[str, Any]]:
    return [(call.name, json.loads(call.arguments)) for call in parsed.tool_calls]


@pytest.mark.parametrize("family", FAMILIES)
def test_text_around_several_calls(family: str) -> None:
    writer = FAMILIES[family]
    before = "Let me see." if writer.text_before else ""
    hm = "Hm,\n日本?" if writer.reasoning_parser else ""
    text = writer.write(hm, before, [WEATHER, ("now", {}), WEATHER])
    parsed = writer.format().parser(tools=TOOLS).parse(text)
    assert calls(parsed) == [WEATHER, ("now", {}), WEATHER]
    assert (parsed.content, parsed.reasoning, parsed.failed) == (before or None, hm or None, False)
    assert len({call.id for call in parsed.tool_calls}) == 3
    if family not in ("openai", "llama3_json"):
        after = writer.format().parser(tools=TOOLS).parse(text + "\nDone. ")
        assert calls(after) == calls(parsed) and after.content == (before + "\nDone. ").lstrip()
    none = writer.format().parser(tools=None).parse(text)
    assert not none.tool_calls and "get_weather" in (none.content or "") and not none.failed
    first = writer.format().parser(tools=TOOLS, parallel_tool_calls=False).parse(text)
    assert calls(first) == [WEATHER] and first.content == parsed.content
    forbidden = writer.format().parser(tools=TOOLS, tools_allowed=False).parse(text)
    assert forbidden.content == none.content


@pytest.mark.parametrize("family", FAMILIES)
def test_cut_off(family: str) -> None:
    """A call that the output ends in is content, and no failure where the length was the reason."""
    writer = FAMILIES[family]
    text = writer.write("", "", [("now", {}), WEATHER])
    place = text.index("days")
    parsed = writer.format().parser(tools=TOOLS).parse(text[:place], finish_reason="length")
    assert calls(parsed) == [("now", {})] and not parsed.failed
    assert parsed.content is not None and "Köln" in parsed.content and text[:place].endswith(parsed.content)
    assert writer.format().parser(tools=TOOLS).parse(text[:place], finish_reason="stop").failed
    streamed = stream(writer.format().parser(tools=TOOLS), list(text[:place]), "length")
    assert streamed.calls[0] == ("now", "{}") and streamed.content == parsed.content
    if family != "llama4_pythonic":  # its arguments are known at their end
        assert streamed.calls[1][1].startswith('{"city": "K'), "arguments are handed out as they come"


@pytest.mark.parametrize("family", FAMILIES)
def test_malformed(family: str) -> None:
    """The call is passed on as it was written; others count."""
    writer = FAMILIES[family]
    bad = writer.write("", "", [WEATHER]).replace("get_weather", "get weather", 1)
    parsed = writer.format().parser(tools=TOOLS).parse(bad)
    if family == "openai":  # the recipient ends at the space
        assert calls(parsed) == [("get", WEATHER[1])]
        return
    assert (parsed.content, parsed.tool_calls) == (bad, [])
    assert parsed.failed == (
        family not in ("llama3_json", "llama4_pythonic")
    )  # there nothing else says that it is a call
    if writer.text_before:
        both = writer.format().parser(tools=TOOLS).parse(bad + "\n" + writer.write("", "", [("now", {})]))
        assert calls(both) == [("now", {})] and both.content == bad and both.failed


# parser, reasoning parser, output, content, reasoning, calls
KNOWN: dict[str, tuple[str, str | None, str, str | None, str | None, list[tuple[str, Any]]]] = {
    "tag in a string": (
        "hermes",
        None,
        '<tool_call>\n{"name": "now", "arguments": {"x": "</tool_call> \\" <tool_call>"}}\n</tool_call>',
        None,
        None,
        [("now", {"x": '</tool_call> " <tool_call>'})],
    ),
    "arguments before the name": (
        "hermes",
        None,
        '<tool_call>{"arguments": {"x": [1]}, "id": 5, "name": "now"}</tool_call>',
        None,
        None,
        [("now", {"x": [1]})],
    ),
    "arguments as a text": (
        "hermes",
        None,
        r'<tool_call>{"name": "now", "arguments": "{\"x\": 1}"}</tool_call>',
        None,
        None,
        [("now", {"x": 1})],
    ),
    "no arguments": (
        "hermes",
        None,
        '<tool_call>{"name": "now"}</tool_call><tool_call>{"name": "now", "arguments": null}',
        None,
        None,
        [("now", {}), ("now", {})],
    ),
    "raw line break": (
        "hermes",
        None,
        '<tool_call>{"name": "now", "arguments": {"x": "a\nb\t\x01"}}</tool_call>',
        None,
        None,
        [("now", {"x": "a\nb\t\x01"})],
    ),
    "a text about tags": ("hermes", None, "Write <tool_call> and so on.", "Write <tool_call> and so on.", None, []),
    "thought twice": (
        "hermes",
        "think",
        '<think>A</think>\n<tool_call>{"name": "now"}</tool_call>\n<think>\nB\n</think>C',
        "C",
        "A\nB",
        [("now", {})],
    ),
    "a thought that is not closed": (
        "hermes",
        "think",
        '<think>I ask.\n<tool_call>\n{"name": "now"}\n</tool_call>\n<tool_call>\n{"name": "now"}\n</tool_call>',
        None,
        "I ask.",
        [("now", {}), ("now", {})],
    ),
    "a call in a thought": (
        "hermes",
        "think",
        '<think>I ask.\n<tool_call>{"name": "now"}</tool_call> Good.</think>ok',
        "ok",
        "I ask.\nGood.",
        [("now", {})],
    ),
    "no call in a thought": (
        "hermes",
        "think",
        '<think>I write <tool_call>{"name": "f"}</tool_call>.</think>ok',
        "ok",
        'I write <tool_call>{"name": "f"}</tool_call>.',
        [],
    ),
    "a tag in a thought": ("hermes", "think", "<think>A <tool_call> tag.</think>ok", "ok", "A <tool_call> tag.", []),
    "unclosed thought": ("hermes", "think", "<think>\nNow I ", "", "Now I", []),
    "tag in the text": ("hermes", "think", "The tag <think> opens.", "The tag <think> opens.", None, []),
    "white space": ("hermes", "think", "\n a \n\n", "\n a \n\n", None, []),
    "empty": ("hermes", "think", "", "", None, []),
    "string of digits": (
        "qwen3_coder",
        None,
        "<tool_call>\n<function=get_weather>\n<parameter=city>\n7\n</parameter>\n<parameter=days>\n7\n</parameter>\n"
        "<parameter=ratio>\n7.50\n</parameter>\n<parameter=exact>\nTrue\n</parameter>\n<parameter=new>\n7\n</parameter>\n"
        "</function>\n</tool_call>",
        None,
        None,
        [("get_weather", {"city": "7", "days": 7, "ratio": 7.5, "exact": True, "new": "7"})],
    ),
    "without a block": ("qwen3_coder", None, "<function=now>\n</function>\n</tool_call>", None, None, [("now", {})]),
    "without the end of the function": (
        "qwen3_coder",
        None,
        "<tool_call><function=now><parameter=x>\na\n</parameter>\n</tool_call>\n<tool_call><function=now></tool_call>",
        None,
        None,
        [("now", {"x": "a"}), ("now", {})],
    ),
    "end tag in a value": (
        "qwen3_coder",
        None,
        "<tool_call><function=now><parameter=x>\na</parameter>\n</function\n\n</parameter></function></tool_call>",
        None,
        None,
        [("now", {"x": "a</parameter>\n</function\n"})],
    ),
    "value of the wrong type": (
        "glm45",
        None,
        "<tool_call>get_weather<arg_key>days</arg_key><arg_value>two</arg_value></tool_call>",
        None,
        None,
        [("get_weather", {"days": "two"})],
    ),
    "two forms": ("mistral", "mistral", '[TOOL_CALLS]now{"x": 1}', None, None, [("now", {"x": 1})]),
    "plain JSON": (
        "llama3_json",
        None,
        '{"name": "Bob", "parameters": {}}',
        '{"name": "Bob", "parameters": {}}',
        None,
        [],
    ),
    "JSON of another shape": ("llama3_json", None, '{"now": 1}', '{"now": 1}', None, []),
    "python tag": ("llama3_json", None, '<|python_tag|>{"name": "now", "parameters": {}}', None, None, [("now", {})]),
    "a list": ("llama4_pythonic", None, "[1, 2]", "[1, 2]", None, []),
    "python names": (
        "llama4_pythonic",
        None,
        "<|python_start|>[now(x=true, y=-1, z=(None, {'a': \"]\"}))]<|python_end|>",
        None,
        None,
        [("now", {"x": True, "y": -1, "z": [None, {"a": "]"}]})],
    ),
    "python strings": (
        "llama4_pythonic",
        None,
        r"""[now(x='it\'s \d \n "', y="\u00fc")]""",
        None,
        None,
        [("now", {"x": "it's \\d \n \"", "y": "ü"})],
    ),
    "half of a surrogate pair": (
        "llama4_pythonic",
        None,
        r"[now(x='\ud800', y='ü')]",
        None,
        None,
        [("now", {"x": "\ud800", "y": "ü"})],
    ),
    "code is no literal": ("llama4_pythonic", None, "[now(x=f())]", "[now(x=f())]", None, []),
    "preamble": (
        "openai",
        "openai",
        "<|channel|>analysis<|message|>A<|end|><|start|>assistant<|channel|>commentary<|message|>I call.<|end|>"
        "<|start|>assistant to=functions.now<|channel|>commentary <|constrain|>json<|message|>{}<|call|>",
        "I call.",
        "A",
        [("now", {})],
    ),
    "harmony, cut": ("openai", "openai", "<|channel|>analysis<|message|>A <", "", "A <", []),
    "built-in tool": (
        "openai",
        "openai",
        "<|channel|>analysis to=python code<|message|>1+1<|call|>",
        "",
        "1+1",
        [],
    ),
    "harmony, cut in a header": (
        "openai",
        "openai",
        "<|channel|>analysis<|message|>A<|end|><|start|>assistant<|channel|>commentary to=functions",
        "",
        "A",
        [],
    ),
    "harmony, malformed": (
        "openai",
        "openai",
        "<|channel|>final<|message|>A<|end|><|start|>assistant<|channel|>commentary to=functions.now <|constrain|>json"
        '<|message|>{"x": 1 2}<|call|><|start|>assistant<|channel|>final<|message|> B <|return|>',
        'A<|start|>assistant<|channel|>commentary to=functions.now <|constrain|>json<|message|>{"x": 1 2}\nB ',
        None,
        [],
    ),
    "harmony without a header": ("openai", "openai", "Hello", "Hello", None, []),
    "answer tags": ("ernie45", "ernie45", "<think>\nA\n</think>\n<response>\nHello\n</response>\n", "Hello", "A", []),
    "answer tags of hunyuan": (
        "hunyuan_a13b",
        "hunyuan_a13b",
        "<think>A</think><answer>Hello</answer>",
        "Hello",
        "A",
        [],
    ),
}


@pytest.mark.parametrize("case", KNOWN)
def test_known(case: str) -> None:
    tools, reasoning, text, *expected = KNOWN[case]
    parsed = parse(text, tools, reasoning)
    assert [parsed.content, parsed.reasoning, calls(parsed)] == expected
    assert all(call.arguments.encode() for call in parsed.tool_calls)


def test_ids() -> None:
    [call] = parse('<tool_call>{"name": "now"}</tool_call>', "hermes").tool_calls
    assert re.fullmatch("call_[0-9a-f]{24}", call.id)
    first, second = parse("[TOOL_CALLS]now[ARGS]{}[TOOL_CALLS]now[CALL_ID]abcdeF012[ARGS]{}", "mistral").tool_calls
    assert re.fullmatch("[A-Za-z0-9]{9}", first.id) and second == ToolCall("abcdeF012", "now", "{}")
    text = "<|tool_call_begin|>functions.now:3<|tool_call_argument_begin|>{}<|tool_call_end|>"
    assert [call.id for call in parse(text, "kimi_k2").tool_calls] == ["functions.now:3"]


@pytest.mark.parametrize(
    ("prompt", "inside"),
    [
        ("<think>", True),
        ("<|user|>x<|assistant|><think>\n", True),
        ("<|user|>Explain <think><|assistant|>", False),
        ("<|assistant|><think>\n\n</think>\n\n", False),
        ("<|user|>x<|assistant|><think>\nI was thinking that ", True),
        ("<|user|>x<|assistant|>", False),
    ],
)
def test_reasoning_that_the_prompt_began(prompt: str, inside: bool) -> None:
    format = ResponseFormat("hermes", "think", special_tokens=("<|user|>", "<|assistant|>"))
    assert format.begins_inside(prompt) == inside and format.reasoning_tags == ("<think>", "</think>")
    parsed = format.parser(tools=TOOLS, prompt_tail=prompt).parse("A</think>\n\nB")
    assert (parsed.reasoning, parsed.content) == (("A", "B") if inside else (None, "A</think>\n\nB"))


def test_messages_that_the_prompt_began() -> None:
    format = ResponseFormat.of("openai", "openai")
    tail = "<|start|>user<|message|>x<|end|><|start|>assistant<|channel|>analysis<|message|>Well, "
    parsed = format.parser(tools=TOOLS, prompt_tail=tail).parse(
        "A<|end|><|start|>assistant<|channel|>final<|message|>B"
    )
    assert (parsed.reasoning, parsed.content) == ("A", "B")


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_reasoning_parser_thoughts_are_content(family: str) -> None:
    writer = FAMILIES[family]
    text = writer.write("Hm.", "So.", [] if not writer.text_before else [("now", {})])
    parsed = parse(text, writer.tool_parser, None)
    content = "Hm.\nSo." if family == "openai" else text[: text.index("So.") + 3]
    assert (parsed.content, parsed.reasoning) == (content, None)
    assert calls(parsed) == ([("now", {})] if writer.text_before else [])


def test_forced() -> None:
    text = json.dumps([{"name": name, "parameters": arguments} for name, arguments in (WEATHER, ("now", {}))])
    for tools, reasoning, before in (
        ("hermes", "think", "<think>A</think>\n"),
        ("openai", "openai", ""),
        ("llama4_pythonic", None, ""),
        (None, None, " "),
    ):
        parsed = parse(before + text, tools, reasoning, forced="required")
        assert (calls(parsed), parsed.content, parsed.failed) == ([WEATHER, ("now", {})], None, False)
        parsed = parse(f'{before}{{"x": [1]}}\n', tools, reasoning, forced="named:now")
        assert (calls(parsed), parsed.content, parsed.failed) == ([("now", {"x": [1]})], None, False)
        assert parsed.reasoning == ("A" if before.strip() else None)
    format = ResponseFormat.of("hermes", "think")
    at_once = format.parser(tools=TOOLS, prompt_tail="<think>\n", forced="required").parse(text)
    assert calls(at_once) == [WEATHER, ("now", {})] and at_once.reasoning is None
    plain = format.parser(tools=TOOLS, prompt_tail="<think>\n", forced="content").parse(' {"x": "<tool_call>"}\n')
    assert (plain.content, plain.reasoning, plain.tool_calls) == (' {"x": "<tool_call>"}\n', None, [])
    cut = parse(text[:40], "hermes", "think", forced="required", finish_reason="length")
    assert (cut.content, cut.tool_calls, cut.failed) == (text[:40], [], False)
    for wrong in ("named:", "auto", ""):
        with pytest.raises(ValidationError, match="forced must be 'required', 'content' or 'named:NAME', got"):
            parse("", "hermes", forced=wrong)


def test_types_by_references() -> None:
    """Schemas of pydantic models: optional values, enums and references."""
    properties = {
        "a": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "b": {"$ref": "#/$defs/Color"},
        "c": {"$ref": "#/$defs/Point"},
        "d": {"$ref": "#/$defs/Circle"},
        "e": {"enum": [1, 2]},
        "f": {"type": ["boolean", "string"]},
        "g": {"const": "7"},
    }
    defs = {
        "Color": {"enum": ["1", "2"], "type": "string"},
        "Point": {"type": "object"},
        "Circle": {"allOf": [{"$ref": "#/$defs/Circle"}]},
    }
    tools = [{"name": "f", "parameters": {"properties": properties, "$defs": defs}}]
    values = {"a": "null", "b": "1", "c": '{"x": 1}', "d": "1", "e": "1", "f": "yes", "g": "7"}
    text = "".join(f"<arg_key>{key}</arg_key><arg_value>{value}</arg_value>" for key, value in values.items())
    parsed = parse(f"<tool_call>f{text}</tool_call>", "glm45", tools=tools)
    assert calls(parsed) == [("f", {"a": None, "b": "1", "c": {"x": 1}, "d": "1", "e": 1, "f": "yes", "g": "7"})]


def test_schemas_that_go_in_circles() -> None:
    many = {"anyOf": [{"$ref": "#/properties/a"}] * 50}
    deep: dict[str, Any] = {"type": "integer"}
    for _ in range(5000):
        deep = {"anyOf": [deep]}
    tools = [{"name": "f", "parameters": {"properties": {"a": {"anyOf": [many] * 50}, "b": deep}}}]
    text = "<tool_call>f<arg_key>a</arg_key><arg_value>1</arg_value><arg_key>b</arg_key><arg_value>1</arg_value></tool_call>"
    assert calls(parse(text, "glm45", tools=tools)) == [("f", {"a": "1", "b": "1"})]


# file, special tokens that mark the response, its parsers
DETECTED = {
    "qwen3": ([], "hermes", "think"),
    "deepseek_v3": (["<｜tool▁calls▁begin｜>"], "deepseek_v31", "think"),
    "glm4_moe": ([], "glm45", "think"),
    "gpt_oss": (["<|channel|>"], "openai", "openai"),
    "llama4": ([], "llama3_json", None),
    "mixtral": (["[TOOL_CALLS]"], "mistral", None),
}


def tokenizer_of(template: str | None, special: list[str], plain: list[str] | None = None) -> Tokenizer:
    raw = tokenizers.Tokenizer.from_str(made.byte_level())
    raw.add_special_tokens(special)
    raw.add_tokens(plain or [])
    tokenizer = Tokenizer(raw)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("name", DETECTED)
def test_detected_by_the_template(name: str) -> None:
    special, tools, reasoning = DETECTED[name]
    text = (TEMPLATES / f"{name}.jinja").read_text()
    found = detect_format(tokenizer_of(text, ["<|user|>", *special]))
    assert (found.tool_parser, found.reasoning_parser) == (tools, reasoning)
    assert found.needs_special_tokens == bool(special)
    assert found.special_tokens == ("<|user|>", *special)
    again = detect_format(tokenizer_of(None, special), text)
    assert (again.tool_parser, again.reasoning_parser) == (tools, reasoning)


@pytest.mark.parametrize(
    ("text", "tools", "reasoning"),
    [
        ("<tool_call><function=x><parameter=y>", "qwen3_coder", None),
        ("<minimax:tool_call> </think>", "minimax_m2", "think"),
        ("<｜tool▁calls▁begin｜>", "deepseek_v31", None),
        ("<｜tool▁calls▁begin｜> ```json", "deepseek_v3", None),
        ("<｜DSML｜function_calls>", "deepseek_v32", None),
        ("<|tool_calls_section_begin|>", "kimi_k2", None),
        ("<seed:tool_call> <seed:think>", "seed_oss", "seed_oss"),
        ("<tool_calls> <think> <answer>", "hunyuan_a13b", "hunyuan_a13b"),
        ("<tool_call> <think> <response>", "ernie45", "ernie45"),
        ("<|tool_call|>", "granite", None),
        ("functools[", "phi4_mini_json", None),
        ("[TOOL_CALLS] [THINK]", "mistral", "mistral"),
        ('<|start_header_id|> "parameters"', "llama3_json", None),
        ('<|start_header_id|> "parameters" [func_name1(a=1)]', "llama4_pythonic", None),
        ("plain", None, None),
    ],
)
def test_signs(text: str, tools: str | None, reasoning: str | None) -> None:
    found = ResponseFormat.of(chat_template=text)
    assert (found.tool_parser, found.reasoning_parser) == (tools, reasoning)


def test_reasoning_is_detected_by_tokens() -> None:
    found = detect_format(tokenizer_of("plain", [], ["<think>", "</think>"]))
    assert found.reasoning_parser == "think" and not found.needs_special_tokens
    assert detect_format(tokenizer_of("plain", ["<think>", "</think>"])).needs_special_tokens
    assert detect_format(tokenizer_of(None, [])).reasoning_parser is None


def test_names() -> None:
    assert ResponseFormat.of("none", None) == ResponseFormat()
    assert ResponseFormat.of("gpt-oss", "openai_gptoss").tool_parser == "openai"
    assert ResponseFormat.of("qwen3_xml", "deepseek_r1") == ResponseFormat.of("qwen3_coder", "think")
    for field, names in (("tool_parser", TOOL_PARSERS), ("reasoning_parser", REASONING_PARSERS)):
        for name in names:
            if name != "response_template":
                assert getattr(ResponseFormat.of(**{field: name}), field) == name
        for wrong in ("other", "", 5):
            with pytest.raises(ValidationError) as caught:
                ResponseFormat.of(**{field: wrong})
            assert caught.value.field == field and all(name in str(caught.value) for name in names)
    with pytest.raises(ValidationError, match="no response_template"):
        ResponseFormat.of("response_template")


def test_deltas_make_a_response() -> None:
    """Each index comes once, and calls that were given up are left out."""
    bad = '<tool_call>{"name": "now", "arguments": {"x": 1 2}}</tool_call>'
    good = '<tool_call>{"name": "get_weather", "arguments": {"city": "x"}}</tool_call>'
    parser = ResponseFormat.of("hermes", "think").parser(tools=TOOLS)
    deltas = [*map(parser.feed, f"<think>A</think>B{good}{bad}{good}"), parser.finish("stop")]
    whole = ResponseDelta.joined(deltas)
    assert [(call.index, call.name, call.arguments) for call in whole.tool_calls] == [
        (0, "get_weather", '{"city": "x"}'),
        (1, "now", '{"x": 1 '),
        (2, "get_weather", '{"city": "x"}'),
    ]
    assert ResponseDelta.joined([whole]) == whole and ResponseDelta.joined([]) == ResponseDelta()
    parsed = ParsedResponse.of(deltas, parser.failed)
    first, last = whole.tool_calls[0], whole.tool_calls[2]
    assert parsed.tool_calls == [ToolCall(str(call.id), str(call.name), call.arguments) for call in (first, last)]
    assert (parsed.content, parsed.reasoning, parsed.failed) == (f"B\n{bad}", "A", True)
    assert parser.num_tool_calls == 2


def test_the_document_lists_every_parser() -> None:
    text = (Path(__file__).parents[2] / "docs" / "responses.md").read_text()
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    assert sorted(re.findall("`([^`]+)`", "".join(rows))) == sorted(["tool_parser", *TOOL_PARSERS])
    [reasoning] = re.findall(r"^`reasoning_parser`: .*?\n\n", text, re.DOTALL | re.MULTILINE)
    assert set(re.findall("`(\\w+)`", reasoning)) - {"reasoning_parser"} == set(REASONING_PARSERS)


@pytest.mark.parametrize("family", chats.FAMILIES)
def test_what_the_chat_template_writes_is_read_back(family: str) -> None:
    """The next turn's prompt shows the model its own calls in the form that it was trained to write."""
    special, bos, eos, _ = chats.FAMILIES[family]
    tokenizer = tokenizer_of((TEMPLATES / f"{family}.jinja").read_text(), special)
    tokenizer.special_tokens = {"eos_token": eos, **({"bos_token": bos} if bos else {})}
    answer = {**chats.CALL, "reasoning_content": "Hm."}
    prompt = render_chat([chats.HELLO], tokenizer, tools=chats.TOOLS)
    whole = render_chat([chats.HELLO, answer], tokenizer, tools=chats.TOOLS, add_generation_prompt=False)
    assert whole.startswith(prompt)
    output = whole[len(prompt) :].rstrip().removesuffix(eos).removesuffix("<|eom|>")
    parsed = detect_format(tokenizer).parser(tools=chats.TOOLS, prompt_tail=prompt).parse(output)
    [call] = chats.CALL["tool_calls"]
    assert calls(parsed) == [(call["function"]["name"], call["function"]["arguments"])]
    thinks = family in ("qwen3", "glm4_moe", "gpt_oss")  # the others' templates leave thoughts out
    assert (parsed.content, parsed.reasoning, parsed.failed) == (None, "Hm." if thinks else None, False)
