# ruff: noqa: RUF001  (DeepSeek's special tokens have full-width bars)
"""Chat templates with the features of the families' own render and tokenize as in transformers."""

from __future__ import annotations

import copy
import dataclasses
import datetime
from pathlib import Path
from typing import Any

import made_tokenizers as made
import pytest
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from lynx_rt import CheckpointError, Tokenizer, ValidationError
from lynx_rt.text import chat_template
from lynx_rt.text.chat import render_chat

TEMPLATES = Path(__file__).parent / "chat_templates"

# Family: special tokens, bos, eos, byte fallback.
FAMILIES: dict[str, tuple[list[str], str | None, str, bool]] = {
    "qwen3": (["<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>"], None, "<|im_end|>", False),
    "mixtral": (["[INST]", "[/INST]"], "<s>", "</s>", True),
    "deepseek_v3": (
        ["<｜User｜>", "<｜Assistant｜>", "<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>"],
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        False,
    ),
    "gpt_oss": (["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>"], None, "<|return|>", False),
    "glm4_moe": (["[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|observation|>"], None, "<|endoftext|>", False),
    "llama4": (["<|header_start|>", "<|header_end|>", "<|eom|>"], "<|begin_of_text|>", "<|eot|>", False),
}

SYSTEM = {"role": "system", "content": "Be <brief> & \"kind\" — 简短, it's 'fine'."}
HELLO = {"role": "user", "content": "What's the weather in Köln? <b>&amp;</b> \\n {{ 7 * 7 }}  "}
ANSWER = {"role": "assistant", "content": "  Rain, 12 °C 🌧\n"}
AGAIN = {"role": "user", "content": "And tomorrow?"}
THOUGHT = {"role": "assistant", "content": "<think>\nHm, <maybe>.\n</think>\n\nSun."}
REASONED = {"role": "assistant", "reasoning_content": "\nLook & see.\n", "content": "Sun."}
OLDER_NAME = {"role": "assistant", "thinking": "An older name.", "content": "Sun."}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather <now> & here",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": 'City, e.g. "Köln"'},
                    "unit": {"type": "string", "enum": ["°C", "°F"], "default": "°C"},
                    "days": {"type": ["integer", "null"]},
                    "where": {"type": "array", "items": {"oneOf": [{"type": "number"}, {"type": "string"}]}},
                    "more": {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"]},
                },
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "description": "The time", "parameters": {}}},
]
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "abcdef012",
            "type": "function",
            "function": {"name": "get_weather", "arguments": {"city": "Köln <&> 'x'", "days": 2, "where": [1.5, None]}},
        }
    ],
}
RESULT = {"role": "tool", "tool_call_id": "abcdef012", "content": '{"sky": "<clear> & 晴"}'}
PARTS = [
    {"role": "system", "content": [{"type": "text", "text": " Parts. "}]},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": " Look: "},
            {"type": "text", "text": "here"},
            {"type": "text", "text": "Ω"},
        ],
    },
]
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "user": [HELLO],
    "system": [SYSTEM, HELLO],
    "turns": [SYSTEM, HELLO, ANSWER, AGAIN],
    "answered": [HELLO, ANSWER],
    "thought": [HELLO, THOUGHT],
    "thought before": [HELLO, THOUGHT, AGAIN],
    "reasoned": [HELLO, REASONED],
    "older name": [HELLO, OLDER_NAME],
    "call": [SYSTEM, HELLO, CALL],
    "call and result": [HELLO, CALL, RESULT],
    "call to answer": [SYSTEM, HELLO, CALL, RESULT, ANSWER, AGAIN],
    "parts": PARTS,
    "late system": [HELLO, ANSWER, SYSTEM, AGAIN],
    "unknown roles": [HELLO, ANSWER, {"role": "comment", "content": "x"}, {"role": "stop", "content": ""}, AGAIN],
    "two users": [HELLO, AGAIN],
}
EXTRA: list[dict[str, Any]] = [
    {},
    {"enable_thinking": False},
    {"thinking": True, "reasoning_effort": "high", "model_identity": "You are <X>.", "date_string": "1 May 2026"},
]


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Clock:
        return cls(2026, 2, 3, 4, 5, 6)


@pytest.fixture(autouse=True)
def pinned_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    monkeypatch.setattr(chat_template.datetime, "datetime", Clock)


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Tokenizer, Any]:
    """Returns a family's name, its tokenizer here, and transformers'."""
    family = request.param
    special, bos, eos, fallback = FAMILIES[family]
    folder = made.save(
        tmp_path_factory.mktemp(family),
        made.byte_fallback() if fallback else made.byte_level(),
        bos_token=bos,
        eos_token=eos,
        extra_special_tokens=special,
    )
    (folder / "chat_template.jinja").write_text((TEMPLATES / f"{family}.jinja").read_text(), encoding="utf-8")
    return family, Tokenizer(folder), AutoTokenizer.from_pretrained(folder)


def joined(messages: list[Any]) -> list[Any]:
    """As vLLM gives them to a template that takes no parts."""
    return [
        {**message, "content": "\n".join(part["text"] for part in content)}
        if isinstance(content := message.get("content"), list) and all("text" in part for part in content)
        else message
        for message in messages
    ]


def check_equal(ours: Tokenizer, theirs: Any, messages: list[Any], options: dict[str, Any], extra: Any) -> bool:
    """Checks that both render it equally, or both refuse it. Parts may be joined for transformers. Returns whether both render."""
    before = copy.deepcopy(messages)
    given = messages
    try:
        try:
            expected = theirs.apply_chat_template(given, tokenize=False, **options, **extra)
            assert "'type': 'text'" not in expected  # a list printed as it stands
        except Exception:
            given = joined(messages)
            expected = theirs.apply_chat_template(given, tokenize=False, **options, **extra)
    except Exception:
        with pytest.raises(ValidationError):
            render_chat(messages, ours, **options, template_kwargs=extra)
        return False
    text = render_chat(messages, ours, **options, template_kwargs=extra)
    assert text == expected
    ids = theirs.apply_chat_template(given, tokenize=True, return_dict=False, **options, **extra)
    assert ours.encode(text, add_special_tokens=False) == ids
    assert messages == before
    return True


@pytest.mark.parametrize("tools", [None, [], TOOLS], ids=["no tools", "empty tools", "tools"])
def test_conversations(pair: tuple[str, Tokenizer, Any], tools: list[Any] | None) -> None:
    _, ours, theirs = pair
    rendered = {
        name
        for name, messages in CONVERSATIONS.items()
        for extra in EXTRA
        for prompting in (False, True)
        if check_equal(ours, theirs, messages, {"tools": tools, "add_generation_prompt": prompting}, extra)
    }
    assert {"user", "system", "turns", "answered", "reasoned"} <= rendered


@pytest.mark.parametrize(
    "messages",
    [
        [HELLO, {"role": "assistant", "content": "It will "}],
        [HELLO, {"role": "assistant", "content": "It will"}],
        [HELLO, {"role": "assistant", "content": "<think>a</think>\n\nb "}],
        [HELLO, {"role": "assistant", "content": ""}],
        [HELLO, {"role": "assistant", "content": [{"type": "text", "text": "It "}, {"type": "text", "text": "will "}]}],
        [HELLO, {"role": "assistant", "content": [{"type": "image"}]}],
        [HELLO, CALL],
        [HELLO],
    ],
)
def test_continued_messages(pair: tuple[str, Tokenizer, Any], messages: list[Any]) -> None:
    _, ours, theirs = pair
    options = {"continue_final_message": True, "add_generation_prompt": False}
    rendered = check_equal(ours, theirs, messages, options, {})
    if str(messages[-1].get("content")).startswith("It will"):
        assert rendered and render_chat(messages, ours, **options).rstrip().endswith("It will")


def test_the_templates_do_what_they_are_there_for(pair: tuple[str, Tokenizer, Any]) -> None:
    """Both sides being equal says little where a template ignores its input."""
    family, ours, _ = pair
    tool_text = render_chat([SYSTEM, HELLO, CALL, RESULT], ours, tools=TOOLS)
    assert "get_weather" in tool_text and "<now> & here" in tool_text and "°C" in tool_text
    assert "Köln <&> 'x'" in tool_text and SYSTEM["content"] in tool_text
    plain = render_chat([HELLO, ANSWER, AGAIN], ours)
    assert "{{ 7 * 7 }}" in plain and "Rain, 12 °C 🌧" in plain
    if family == "gpt_oss":
        assert "Current date: 2026-02-03" in plain and '"°C" | "°F"' in tool_text
    if family == "llama4":
        assert "Today is 03 Feb 2026" in render_chat([SYSTEM, HELLO], ours)
    if family == "mixtral":
        assert plain.startswith("<s>[INST] ")
        with pytest.raises(ValidationError, match="Roles must go"):
            render_chat([HELLO, AGAIN], ours)
        with pytest.raises(ValidationError, match="nine characters"):
            render_chat([HELLO, {**CALL, "tool_calls": [{**CALL["tool_calls"][0], "id": "1"}]}], ours)
    if family == "qwen3":
        assert "<think>\n\n</think>" in render_chat([HELLO], ours, template_kwargs={"enable_thinking": False})
        assert "<maybe>" not in render_chat([HELLO, THOUGHT, AGAIN], ours)
    if family == "glm4_moe":
        assert "comment" not in render_chat(CONVERSATIONS["unknown roles"], ours)


def test_named_templates_in_every_form(tmp_path: Path) -> None:
    templates = {
        "default": "default {{ messages[0].content }}",
        "tool_use": "tools {{ tools | length }}",
        "rag": "{{ documents | length }}",
    }
    source = made.save(tmp_path / "source", made.byte_level(), eos_token="<e>")
    theirs = AutoTokenizer.from_pretrained(source)
    theirs.chat_template = templates
    for name, as_files in (("files", True), ("list", False)):
        theirs.save_pretrained(tmp_path / name, save_jinja_files=as_files)
        assert (tmp_path / name / "additional_chat_templates" / "rag.jinja").is_file() == as_files
    documents = {"documents": [{"title": "a", "text": "b"}]}
    for tokenizer in (Tokenizer(tmp_path / "files"), Tokenizer(tmp_path / "list"), Tokenizer(theirs)):
        assert tokenizer.chat_template == templates
        for options in ({}, {"tools": []}, {"tools": TOOLS}, {"chat_template": "rag", "tools": TOOLS}):
            expected = theirs.apply_chat_template([HELLO], tokenize=False, **documents, **options)
            assert render_chat([HELLO], tokenizer, template_kwargs=documents, **options) == expected
    (tmp_path / "files" / "chat_template.jinja").unlink()
    without = Tokenizer(tmp_path / "files")
    assert render_chat([HELLO], without, tools=TOOLS) == "tools 2"
    with pytest.raises(ValidationError, match=r"\['rag', 'tool_use'\]"):
        render_chat([HELLO], without)


@pytest.mark.parametrize("template", [5, [{"name": "default"}], {"default": 1}])
def test_malformed_templates_name_the_file(tmp_path: Path, template: Any) -> None:
    made.save(tmp_path, made.byte_level(), chat_template=template)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: chat_template must be") as caught:
        Tokenizer(tmp_path)
    assert caught.value.field == "chat_template"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja is not UTF-8"):
        Tokenizer(tmp_path)


@dataclasses.dataclass
class Part:
    type: str
    text: str


def test_rich_values_become_plain() -> None:
    import enum

    import numpy as np

    class Kind(str, enum.Enum):
        TEXT = "text"

    class Schema:
        def model_dump(self) -> dict[str, Any]:
            return {"name": "f", "n": np.int64(3), "flag": np.bool_(False), "x": np.float64(0.5)}

    messages = [{"role": Kind.TEXT, "list": [Part("text", "hi"), Kind.TEXT], "spare": None, "at": (1, 2.5, True)}]
    tokenizer = Tokenizer(made.tokenizers.Tokenizer.from_str(made.byte_level()))
    text = render_chat(
        messages,
        tokenizer,
        chat_template="{{ messages[0].role }} {{ messages | tojson }} {{ s | tojson }}",
        template_kwargs={"s": Schema()},
    )
    assert text == (
        'text [{"role": "text", "list": [{"type": "text", "text": "hi"}, "text"], "at": [1, 2.5, true]}] '
        '{"name": "f", "n": 3, "flag": false, "x": 0.5}'
    )
    for bad in (object(), np.zeros(2), {1, 2}, b"x", Part):
        with pytest.raises(ValidationError, match=r"messages\[0\]\['content'\]\[0\] must be text"):
            render_chat([{"role": "user", "content": [bad]}], tokenizer, chat_template="{{ messages }}")


REFUSED = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__bases__ }}",
    "{{ cycler.__init__.__globals__.os }}",
    "{{ raise_exception.__globals__['os'] }}",
    "{{ (messages|attr('append'))(1) }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{{ messages[0].pop('role') }}",
    "{{ messages[0]['list'].append(1) }}",
    "{{ messages.sort() }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
    "{% set ns = namespace(_x=1) %}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{% set ns = namespace({'__init__': 1}) %}",
    "{{ dict.__subclasses__() }}",
    "{{ dict.update(messages[0], {'role': 'x'}) }}",
    "{{ dict.fromkeys.__globals__.os }}",
    "{{ range(1000000000) | list }}",
    "{{ missing.attribute }}",
    "{{ missing() }}",
    "{{ 1 / 0 }}",
    "{{ messages[0].content / 2 }}",
    "{{ '%d' % 'x' }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% include 'x' %}",
    "{% import 'os' as os %}",
    "{% extends 'x' %}",
    "{{ messages | nosuchfilter }}",
    "{% do messages.append(1) %}",
    "{{ (",
    "{% if %}",
    "{% for x in messages %}",
]


@pytest.mark.parametrize("template", REFUSED)
def test_what_a_template_must_not_do(template: str) -> None:
    messages = [HELLO | {"list": [0]}]
    before = copy.deepcopy(messages)
    tokenizer = Tokenizer(made.tokenizers.Tokenizer.from_str(made.byte_level()))
    with pytest.raises(ValidationError, match=r"the chat template (rejects|does not compile)"):
        render_chat(messages, tokenizer, chat_template=template)
    assert messages == before


def test_forbidden_and_undefined_names_print_nothing() -> None:
    """As in transformers: templates ask for variables that may not be there."""
    template = "[{{ missing }}{{ raise_exception.__globals__ }}{{ messages.__class__ }}{{ dict.mro }}{{ ''.__doc__ }}]"
    tokenizer = Tokenizer(made.tokenizers.Tokenizer.from_str(made.byte_level()))
    assert render_chat([HELLO], tokenizer, chat_template=template) == "[]"


def test_a_template_may_name_a_variable_self() -> None:
    template = (
        "{% set ns = namespace(self=1, x='a') %}{% set ns.x = ns.x + 'b' %}{{ ns.self }}{{ ns.x }}{{ dict(a=1) }}"
    )
    tokenizer = Tokenizer(made.tokenizers.Tokenizer.from_str(made.byte_level()))
    assert render_chat([HELLO], tokenizer, chat_template=template) == "1ab{'a': 1}"


@pytest.mark.parametrize(
    ("messages", "options", "text"),
    [
        ("hello", {}, "must be a list of dicts, got str"),
        (None, {}, "must be a list of dicts, got NoneType"),
        ([{"content": "x"}], {}, r"messages\[0\] must be a dict with 'role'"),
        ([HELLO], {"continue_final_message": "content"}, "set add_generation_prompt=False"),
        ([HELLO], {"continue_final_message": 1}, "must be True, False or the name of a field"),
        ([HELLO], {"add_generation_prompt": "yes"}, "must be True or False"),
        ([HELLO], {"tools": "x"}, "tools must be a list"),
        ([HELLO], {"tools": [int]}, r"tools\[0\] must be a dict with a JSON schema"),
        ([HELLO], {"template_kwargs": [1]}, "chat_template_kwargs must be a dict"),
        ([HELLO], {"template_kwargs": {1: 2}}, "chat_template_kwargs must be a dict"),
        ([HELLO], {"chat_template": 5}, "chat_template must be a text or a path"),
        ([HELLO], {"continue_final_message": True}, "set add_generation_prompt=False"),
        ([HELLO], {"tools": [len]}, r"tools\[0\] must be a dict with a JSON schema"),
        ([HELLO], {"template_kwargs": {"tools": []}}, "chat_template_kwargs cannot set 'tools'"),
        ([HELLO], {"template_kwargs": {"messages": []}}, "chat_template_kwargs cannot set 'messages'"),
    ],
)
def test_errors(messages: Any, options: dict[str, Any], text: str) -> None:
    tokenizer = Tokenizer(made.tokenizers.Tokenizer.from_str(made.byte_level()))
    with pytest.raises(ValidationError, match=text):
        render_chat(messages, tokenizer, **{"chat_template": "{{ messages }}"} | options)
