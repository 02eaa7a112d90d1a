"""Chat templates render as transformers renders them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lynx_rt import Tokenizer, ValidationError
from lynx_rt.text.chat import render_chat

HELLO = [{"role": "user", "content": "What is 1 + 1?"}]
TRICKY = """{% if messages[0]['role'] == 'robot' %}
    {{ raise_exception('no robots') }}
{% endif %}
{% for m in messages %}
    {% if loop.index0 == 3 %}{% break %}{% endif %}
    {{ m.content | tojson }}{% generation %}[{{ m.role }}]{% endgeneration %}
{% endfor %}
{% if tools %}{{ tools | tojson(indent=1) }}{% endif %}{{ mode }}{{ strftime_now('%Y') | length }}"""


@pytest.fixture(scope="module")
def tokenizer(nano_path: str) -> Tokenizer:
    return Tokenizer(nano_path)


def test_own_template(tokenizer: Tokenizer) -> None:
    assert render_chat(HELLO, tokenizer) == "<|bos|>Q: What is 1 + 1?\nA:"
    answered = [*HELLO, {"role": "assistant", "content": "2"}]
    text = render_chat(answered, tokenizer, add_generation_prompt=False)
    assert text == "<|bos|>Q: What is 1 + 1?\nA: 2<|eos|>"


def test_functions_filters_and_tags(tokenizer: Tokenizer) -> None:
    text = render_chat(
        [{"role": "user", "content": "<é> & 'x'"}],
        tokenizer,
        chat_template=TRICKY,
        tools=[{"name": "f"}],
        template_kwargs={"mode": "!"},
    )
    assert text == '    "<é> & \'x\'"[user][\n {\n  "name": "f"\n }\n]!4'


def test_continue_final_message(tokenizer: Tokenizer) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "The sum "}]
    text = render_chat(messages, tokenizer, add_generation_prompt=False, continue_final_message=True)
    assert text == "<|bos|>Q: What is 1 + 1?\nA: The sum "
    stripping = "{% for m in messages %}<{{ m.content | trim }}>{% endfor %}"
    text = render_chat(
        messages, tokenizer, chat_template=stripping, add_generation_prompt=False, continue_final_message=True
    )
    assert text == "<What is 1 + 1?><The sum"


def test_a_template_may_be_a_path(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "t.jinja"
    file.write_text("{{ messages[0].content }}!")
    assert render_chat(HELLO, tokenizer, chat_template=str(file)) == "What is 1 + 1?!"


@pytest.mark.parametrize(
    ("messages", "template", "text"),
    [
        ([{"role": "robot", "content": "x"}], TRICKY, "no robots"),
        ([], None, "at least one"),
        (["hi"], None, r"messages\[0\] must be a dict"),
        (HELLO, "{% for %}", "does not compile"),
        (HELLO, "no-such-file.jinja", "cannot be read"),
        (HELLO, "{{ messages.__class__.__mro__ }}", "rejects"),
        (HELLO, "{{ messages.append(1) }}", "rejects"),
    ],
)
def test_errors(tokenizer: Tokenizer, messages: list, template: str | None, text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        render_chat(messages, tokenizer, chat_template=template)


def test_no_template(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValidationError, match="has no chat template"):
        render_chat(HELLO, Tokenizer(tokenizer.backend))
