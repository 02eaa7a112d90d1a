"""Jinja templates of chats, with the settings, functions and filters of transformers 5.

A template comes with the checkpoint, so it runs in a sandbox without access to Python's internals or to the caller's
messages. Its time is not bounded: Jinja only refuses ranges over 100000.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lynx_rt.errors import ValidationError
from lynx_rt.interrupts import comes_from_signal_handler
from lynx_rt.text.tokenizer import Tokenizer


class _GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's words for training; here its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own interface)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Scope:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


class _Dict:
    """`dict` for templates, without the attributes of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(jinja2.utils.Namespace):
    """`namespace()` that refuses names with a leading underscore, because those reach Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # self has no name here: a template may use it for a variable
        self, *values = args
        for name in dict(*values, **kwargs):
            _check_attribute(name)
        jinja2.utils.Namespace.__init__(self, *values, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold the name {name!r}")


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # Jinja's own filter escapes HTML characters, which is wrong in a prompt.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


@functools.lru_cache(maxsize=32)
def compile_template(text: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    try:
        return environment.from_string(text)
    except Exception as error:  # Jinja's errors, and whatever a constant expression raises
        if comes_from_signal_handler(error):
            raise
        raise ValidationError(f"the chat template does not compile: {error}", "chat_template") from None


def template_text(template: str | Path) -> str:
    """Returns the text of a template that is given as a path or as its text."""
    if isinstance(template, str) and ("{" in template or "\n" in template):
        return template
    try:
        return Path(template).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8
        raise ValidationError(
            f"chat_template {str(template)!r} is no template and cannot be read: {error}", "chat_template"
        ) from None


def pick_template(chosen: str | Path | None, tokenizer: Tokenizer, with_tools: bool) -> str:
    """Returns the text of `chosen` (text, path or the name of one of the tokenizer's), or of the tokenizer's own template."""
    own = tokenizer.chat_template
    named = own if isinstance(own, Mapping) else {}
    if chosen is not None:
        return named[str(chosen)] if str(chosen) in named else template_text(chosen)
    if isinstance(own, str):
        return own
    for name in ("tool_use", "default") if with_tools else ("default",):
        if name in named:
            return str(named[name])
    if named:
        raise ValidationError(
            f"none of this model's chat templates is the default; pass chat_template= one of {sorted(named)}",
            "chat_template",
        )
    raise ValidationError(
        "this model has no chat template; pass chat_template=..., or use generate() with a plain prompt",
        "chat_template",
    )


@functools.lru_cache(maxsize=256)
def content_forms(text: str, role: str, special_tokens: tuple[tuple[str, str], ...]) -> frozenset[str]:
    """Returns the forms of content that the template takes in a role's messages: "text", "parts" (a list), both or none known.

    A trial rendering tells: the text, or the texts of two parts, must appear in it, and other fields of the parts must not.
    special_tokens: name -> text, for templates that use them.
    """
    first = {"type": "text", "text": "FIRST-PART", "aside": "NOT-FOR-THE-PROMPT"}
    second = {"type": "text", "text": "SECOND-PART"}
    forms = {"text": "FIRST-PART, SECOND-PART", "parts": [first, second]}
    return frozenset(name for name, content in forms.items() if _shows(text, role, content, dict(special_tokens)))


def _shows(text: str, role: str, content: Any, variables: Mapping[str, Any]) -> bool:
    """Whether both parts appear in the rendering of some conversation of the kinds that templates expect."""
    function = {"name": "f", "arguments": {}}
    # The id has nine characters, as Mistral's templates require.
    call = {"id": "abcdef012", "type": "function", "function": function}
    caller = {"role": "assistant", "content": "", "tool_calls": [call]}
    for other in ("x", [{"type": "text", "text": "x"}]):
        user = {"role": "user", "content": other}
        before = {"system": [], "developer": [], "user": [], "tool": [user, caller]}.get(role, [user])
        for after in ([], [user]):
            messages = [*before, {"role": role, "content": content}, *after]
            try:
                rendered = compile_template(text).render(**variables, documents=None, tools=None, messages=messages)
            except Exception as error:  # the template refuses this form
                if comes_from_signal_handler(error):
                    raise
                continue
            if "FIRST-PART" in rendered and "SECOND-PART" in rendered:
                return "NOT-FOR-THE-PROMPT" not in rendered
    return False
