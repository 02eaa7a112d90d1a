"""Messages and tools in the forms that OpenAI's clients, vLLM and transformers accept."""

from __future__ import annotations

import dataclasses
import enum
import json
from pathlib import Path
from typing import Any, Literal, Optional, Union

import made_tokenizers as made
import pytest
from transformers import AutoTokenizer
from transformers.utils import get_json_schema

from lynx_rt import Tokenizer, ValidationError
from lynx_rt.text.chat import render_chat
from lynx_rt.text.tool_schema import schema_of_function

TEMPLATES = {file.stem: file.read_text() for file in (Path(__file__).parent / "chat_templates").glob("*.jinja")}
USER = {"role": "user", "content": "Weather?"}
ARGUMENTS = {"city": "Köln", "days": 2}
DUMP = "{% for m in messages %}{{ m | tojson }}{% endfor %}"
TEXT = "{% for m in messages %}<{{ m.role }}>{{ m.content + '.' }}{% endfor %}"
PARTS = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}[{{ p.text }}]{% endfor %}{% endif %}{% endfor %}"
)
MACRO = (  # the loop is where no look at the template's text expects it
    "{% macro show(c) %}{% for p in c %}({{ p['text'] }}){% endfor %}{% endmacro %}"
    "{% for m in messages %}{{ show(m.content) if m.content is not string else m.content }}{% endfor %}"
)
ONE_PART = "{% for m in messages %}{{ m.content if m.content is string else m.content[0].text }}{% endfor %}"
SILENT = "{% for m in messages %}{{ m.content if m.content is string else '' }};{% endfor %}"
PRINTED = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(made.tokenizers.Tokenizer.from_str(made.byte_level()))


def call(arguments: Any, **more: Any) -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"id": "abcdef012", "type": "function", "function": function}]} | more


@pytest.mark.parametrize("family", TEMPLATES)
def test_arguments_as_a_json_text_are_as_good_as_a_dict(tokenizer: Tokenizer, family: str) -> None:
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    options = {"chat_template": TEMPLATES[family], "template_kwargs": special}
    result = {"role": "tool", "tool_call_id": "abcdef012", "content": "rain"}
    texts = {
        render_chat([USER, call(arguments, **content), result], tokenizer, **options)
        for arguments in (ARGUMENTS, json.dumps(ARGUMENTS), json.dumps(ARGUMENTS, indent=1, ensure_ascii=False))
        for content in ({}, {"content": None})
    }
    assert len(texts) == 1 and "Köln" in texts.pop()
    empty = {render_chat([USER, call(none)], tokenizer, **options) for none in ({}, "{}", "", " ", None)}
    assert len(empty) == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"city": ', "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[1]", "must be a dict or the JSON text of an object"),
        ('"x"', "must be a dict or the JSON text of an object"),
        (5, "must be a dict or the JSON text of an object"),
    ],
)
def test_bad_arguments_are_named(tokenizer: Tokenizer, arguments: Any, text: str) -> None:
    with pytest.raises(ValidationError, match=rf"messages\[1\]\.tool_calls\[0\]\.function\.arguments {text}"):
        render_chat([USER, call(arguments)], tokenizer, chat_template=DUMP)
    with pytest.raises(ValidationError, match=r"messages\[1\]\.tool_calls must be a list"):
        render_chat([USER, {"role": "assistant", "tool_calls": "f()"}], tokenizer, chat_template=DUMP)
    with pytest.raises(ValidationError, match=r"messages\[1\]\.tool_calls\[0\] must be a dict"):
        render_chat([USER, {"role": "assistant", "tool_calls": ["f()"]}], tokenizer, chat_template=DUMP)


def test_a_list_without_tool_calls_counts_as_none(tokenizer: Tokenizer) -> None:
    with_list = [USER, {"role": "assistant", "content": "Rain.", "tool_calls": []}]
    assert "Rain." in render_chat(with_list, tokenizer, chat_template=TEMPLATES["llama4"])


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (TEXT, "<user>one\ntwo."),
        (PARTS, "<user>[one][two]"),
        (MACRO, "(one)(two)"),
        (ONE_PART, "one\ntwo"),  # the second part would be lost
        (SILENT, "one\ntwo;"),  # all would be
        (PRINTED, "one\ntwo"),  # as Python prints a list
    ],
)
def test_content_comes_in_the_form_that_the_template_takes(tokenizer: Tokenizer, template: str, expected: str) -> None:
    for parts in (
        [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}],
        [{"type": "text", "text": "one"}, {"type": "text", "text": None}, "two"],
        ({"type": "input_text", "text": "one"}, {"type": "refusal", "refusal": "two"}),
    ):
        messages = [{"role": "user", "content": parts}]
        assert render_chat(messages, tokenizer, chat_template=template) == expected
        assert messages[0]["content"] is parts
    assert "plain" in render_chat([{"role": "user", "content": "plain"}], tokenizer, chat_template=template)


def test_a_template_that_takes_parts_only_gets_a_text_as_a_part(tokenizer: Tokenizer) -> None:
    """Going through a text as through a list, it would find nothing in its characters."""
    template = (
        "{% for m in messages %}<{{ m.role }}>{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}"
        "{% endfor %}{% endfor %}"
    )
    messages = [
        USER,
        {"role": "assistant", "content": "Rain."},
        {"role": "user", "content": [{"type": "text", "text": "A"}]},
    ]
    text = render_chat(messages, tokenizer, chat_template=template)
    assert text == "<user>Weather?<assistant>Rain.<user>A"
    options = {"chat_template": template, "add_generation_prompt": False, "continue_final_message": True}
    assert render_chat(messages[:2], tokenizer, **options) == "<user>Weather?<assistant>Rain."
    spelled = "{% for m in messages %}{% for c in m.content %}{{ c }}{% endfor %}{% endfor %}"
    assert render_chat([USER], tokenizer, chat_template=spelled) == "Weather?"


def test_roles_may_take_different_forms(tokenizer: Tokenizer) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}{% for p in m.content %}[{{ p.text }}]{% endfor %}"
        "{% else %}{{ m.role + m.content }}{% endif %}{% endfor %}"
    )
    two = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    roles = ("system", "user", "assistant", "tool", "critic")
    text = render_chat([{"role": role, "content": two} for role in roles], tokenizer, chat_template=template)
    assert text == "systema\nb[a][b]assistanta\nbtoola\nbcritica\nb"


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (
            {"type": "image_url", "image_url": {"url": "x"}},
            r"content\[0\] is of type 'image_url', but this engine reads",
        ),
        ({"type": "input_audio", "input_audio": {}}, "reads text only"),
        ({"type": "tool_reference", "name": "x"}, "chat template takes text only"),
        ({"type": "text", "text": 5}, r"content\[0\]\.text must be text, got 5"),
        ({"no": "type"}, r"content\[0\] must be text or a dict with a 'type'"),
        (7, r"content\[0\] must be text or a dict with a 'type'"),
    ],
)
def test_parts_that_are_no_text_are_named(tokenizer: Tokenizer, part: Any, text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        render_chat([{"role": "user", "content": [part]}], tokenizer, chat_template=TEXT)


@dataclasses.dataclass
class Function:
    name: str
    arguments: str


class Model:
    """As pydantic's models are seen from outside."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)

    def model_dump(self) -> dict[str, Any]:
        return {name: value.model_dump() if isinstance(value, Model) else value for name, value in vars(self).items()}


@dataclasses.dataclass
class Message:
    role: str
    content: str | None = None
    tool_calls: list[Any] | None = None
    refusal: str | None = None


def test_message_objects(tokenizer: Tokenizer) -> None:
    function = Function("f", '{"a": 1}')
    expected = call({"a": 1})
    expected["tool_calls"][0]["function"]["name"] = "f"
    tool_call = {"id": "abcdef012", "type": "function", "function": function}
    for objects in (
        [Message("user", "Weather?"), Message("assistant", None, [tool_call])],
        [
            Model(role="user", content="Weather?"),
            Model(role="assistant", content=None, audio=None, tool_calls=[tool_call]),
        ],
    ):
        text = render_chat(objects, tokenizer, chat_template=DUMP)
        assert text == render_chat([USER, expected], tokenizer, chat_template=DUMP)


NONE_FORMS = {
    "asks whether it is None": (
        "{% for m in messages %}{% if m.role == 'assistant' and m['content'] is none %}CALL {{ m.tool_calls[0].function.name }}"
        "{% else %}{{ '<a>' + m['content'] + '</a>' }}{% endif %}{% endfor %}",
        "<a>Weather?</a>CALL get_weather",
    ),
    "adds to it": (
        "{% for m in messages %}{{ m['content'] + '|' }}{% if m.tool_calls %}CALL{% endif %}{% endfor %}",
        "Weather?||CALL",
    ),
    "leaves it out": (
        "{% for m in messages %}{% if 'content' in m %}{{ m.content }}{% else %}CALL{% endif %}{% endfor %}",
        "Weather?CALL",
    ),
}


@pytest.mark.parametrize("form", NONE_FORMS)
@pytest.mark.parametrize("content", [{}, {"content": None}])
def test_no_content_beside_tool_calls(tokenizer: Tokenizer, form: str, content: dict[str, Any]) -> None:
    template, expected = NONE_FORMS[form]
    assert render_chat([USER, call({}, **content)], tokenizer, chat_template=template) == expected


def test_the_first_failure_is_told(tokenizer: Tokenizer) -> None:
    template = "{{ raise_exception('no content' if 'content' not in messages[1] else 'other') }}"
    with pytest.raises(ValidationError, match="no content"):
        render_chat([USER, call({})], tokenizer, chat_template=template)


@pytest.mark.parametrize("field", ["reasoning_content", "thinking", "reasoning"])
@pytest.mark.parametrize("read", ["reasoning_content", "thinking"])
def test_reasoning_can_be_continued(tmp_path: Path, field: str, read: str) -> None:
    template = f"{{% for m in messages %}}<{{{{ m.role }}}}>{{{{ m.{read} }}}}|{{{{ m.content }}}}{{% endfor %}}<end>"
    folder = made.save(tmp_path, made.byte_level(), eos_token="<e>", chat_template=template)
    messages = [USER, {"role": "assistant", field: "Let me see: ", "content": ""}]
    options = {"continue_final_message": field, "add_generation_prompt": False}
    text = render_chat(messages, Tokenizer(folder), **options)
    theirs = AutoTokenizer.from_pretrained(folder)
    assert text == theirs.apply_chat_template(messages, tokenize=False, **options)
    assert text == "<user>|Weather?<assistant>Let me see: "
    with pytest.raises(ValidationError, match="a last message with text as its 'nothing'"):
        render_chat(messages, Tokenizer(folder), **options | {"continue_final_message": "nothing"})


def test_hopeless_values(tokenizer: Tokenizer) -> None:
    nested: list[Any] = []
    nested.append(nested)
    for value, text in (
        (nested, "nested too deeply"),
        ({1, 2}, "must be text, a number, a list or a dict, got set"),
        (b"x", "got bytes"),
    ):
        with pytest.raises(ValidationError, match=text):
            render_chat([{"role": "user", "content": "x", "extra": value}], tokenizer, chat_template=DUMP)


class Unit(enum.Enum):
    C = "celsius"
    F = "fahrenheit"


def plain_function(a: int, b: float = 1.0, c: str = "", d: bool = False) -> str:
    """Does something.

    Over several lines: with a colon.

    Args:
        a: The first
            goes: on here
        b: The second
           and on
        c: One of these (choices: ["x", " y "])
        d: The last

    Returns:
        What it found.
    """
    return ""


def rich_function(
    a: list[int],
    b: dict[str, float],
    c: tuple[int, str],
    d: Optional[int],  # noqa: UP045
    e: Union[int, str],  # noqa: UP007
    f: int | list[str] | None,
    g: Literal["x", 1],
    h: Unit,
    i: Any,
    j: list,
    k: dict,
    *,
    m: list[list[str | None]] | None = None,
) -> object:
    """Everything.
    Args:
        a: A
        b: B
        c: C
        d: D
        e: E
        f: F
        g: G
        h: H
        i: I
        j: J
        k: K

        m: M
    Raises:
        ValueError: never
    """


def no_arguments() -> int:
    """Tells the time"""
    return 0


class Tool:
    def run(self, x: "int") -> None:  # noqa: UP037
        """Runs.

        Args:
            x: How far
        """


@pytest.mark.parametrize("function", [plain_function, rich_function, no_arguments, Tool().run, Tool.run])
def test_functions_as_tools_become_the_schemas_of_transformers(function: Any) -> None:
    assert schema_of_function(function, "tools[0]") == get_json_schema(function)


def test_a_function_among_tools_is_rendered(tokenizer: Tokenizer) -> None:
    options = {"chat_template": "{{ tools | tojson }}", "template_kwargs": {}}
    text = render_chat([USER], tokenizer, tools=[no_arguments, get_json_schema(plain_function)], **options)
    assert json.loads(text) == [get_json_schema(no_arguments), get_json_schema(plain_function)]


def test_an_argument_may_name_its_type_in_the_docstring() -> None:
    def f(x: int) -> int:
        """F.

        Args:
            x (int): Google's own style
        """
        return x

    assert (
        schema_of_function(f, "t")["function"]["parameters"]["properties"]["x"]["description"] == "Google's own style"
    )


def untyped(x):  # type: ignore[no-untyped-def]
    """U.

    Args:
        x: y
    """


def undocumented(x: int) -> None: ...


def without_entry(x: int) -> None:
    """W."""


def odd_type(x: Path) -> None:
    """O.

    Args:
        x: y
    """


def odd_choices(x: str) -> None:
    """O.

    Args:
        x: y (choices: [a, b])
    """


def unreadable(x: "Nowhere") -> None:  # type: ignore[name-defined]  # noqa: F821, UP037
    """O.

    Args:
        x: y
    """


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (untyped, "argument 'x' has no type hint"),
        (undocumented, "has no docstring"),
        (without_entry, "no entry for the argument 'x'"),
        (odd_type, "argument 'x' has the type .*Path.*, which has no JSON schema"),
        (odd_choices, "choices must be a JSON list"),
        (unreadable, "type hints cannot be read"),
    ],
)
def test_functions_without_a_schema_are_named(tokenizer: Tokenizer, function: Any, text: str) -> None:
    with pytest.raises(ValidationError, match=rf"tools\[1\] \({function.__name__}\).*{text}") as caught:
        render_chat([USER], tokenizer, tools=[{}, function], chat_template=DUMP)
    assert caught.value.field == "tools"
