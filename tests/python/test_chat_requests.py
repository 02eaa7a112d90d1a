"""Conversations in every place of a prompt, and special tokens around prompts: added once, and where the caller wants them."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_tokenizers as made
import pytest

from lynx_rt import Engine, Tokenizer, ValidationError
from lynx_rt.engine.outputs import RequestOutput
from lynx_rt.text.chat import render_chats
from lynx_rt.text.prompts import parse_prompts

MESSAGES = [{"role": "user", "content": "12 times 22 = ?"}]
SUM = "Q: 12 times 22 = ?\nA:"
GREEDY = {"temperature": 0, "max_tokens": 16}


def by_generate(engine: Engine, prompt: Any, **options: Any) -> RequestOutput:
    (output,) = engine.generate(prompt, GREEDY, **options)
    return output


def by_stream(engine: Engine, prompt: Any, **options: Any) -> RequestOutput:
    *_, last = engine.stream(prompt, GREEDY, **options)
    return last


def by_agenerate(engine: Engine, prompt: Any, **options: Any) -> RequestOutput:
    async def read() -> RequestOutput:
        outputs = [output async for output in engine.agenerate(prompt, GREEDY, **options)]
        return outputs[-1]

    return asyncio.run(read())


def by_step(engine: Engine, prompt: Any, **options: Any) -> RequestOutput:
    engine.add_request(prompt, GREEDY, **options)
    outputs = []
    while engine.has_unfinished_requests():
        outputs += engine.step()
    return outputs[-1]


Way = Callable[..., RequestOutput]
ways = pytest.mark.parametrize("way", [by_generate, by_stream, by_agenerate, by_step])


@dataclasses.dataclass
class Message:
    role: str
    content: str


@ways
def test_a_conversation_is_a_prompt(nano: Engine, way: Way) -> None:
    (expected,) = nano.chat(MESSAGES, GREEDY)
    assert expected.text == " 264" and expected.prompt == "<|bos|>" + SUM
    assert expected.prompt_token_ids == nano.encode(SUM)  # one start token, the template's
    for prompt in (
        MESSAGES,
        tuple(MESSAGES),
        [Message("user", "12 times 22 = ?")],
        {"messages": MESSAGES, "tools": None},
        nano.render_chat(MESSAGES),
        render_chats(MESSAGES, nano.get_tokenizer())[0],
    ):
        output = way(nano, prompt)
        assert (output.text, output.prompt) == (expected.text, expected.prompt)
        assert output.prompt_token_ids == expected.prompt_token_ids


def test_chat_options_in_a_dict(nano: Engine) -> None:
    options: dict[str, Any] = {
        "chat_template": "{{ bos_token }}{{ tools[0].name }}{{ mood }}{{ messages[0].content }}:{{ messages[-1].content }}",
        "add_generation_prompt": False,
        "continue_final_message": "content",
        "tools": [{"name": "f"}],
        "chat_template_kwargs": {"mood": "!"},
    }
    messages = [*MESSAGES, {"role": "assistant", "content": "26"}]
    output = by_stream(nano, {"messages": messages, **options})
    assert output.prompt == "<|bos|>f!12 times 22 = ?:26" == nano.chat(messages, GREEDY, **options)[0].prompt
    assert nano.render_chat(messages, **options)["prompt_token_ids"] == output.prompt_token_ids
    with pytest.raises(ValidationError, match="'continue_final_message'"):
        nano.render_chat(messages, continue_last=True)


def test_a_template_without_a_start_token_gets_none(nano: Engine) -> None:
    bare = {"messages": MESSAGES, "chat_template": "{{ messages[0].content }}"}
    own = nano.encode("12 times 22 = ?", add_special_tokens=False)
    assert nano.render_chat(**bare)["prompt_token_ids"] == own
    assert by_generate(nano, bare).prompt_token_ids == own
    assert nano.chat(sampling_params=GREEDY, **bare)[0].prompt_token_ids == own
    assert by_generate(nano, bare, add_special_tokens=True).prompt_token_ids == [1, *own]


def test_several_conversations_and_prompts_together(nano: Engine) -> None:
    outputs = nano.generate([MESSAGES, SUM, {"messages": MESSAGES}, nano.encode(SUM)], GREEDY)
    assert [output.text for output in outputs] == [" 264"] * 4
    assert [output.text for output in nano.chat([MESSAGES, tuple(MESSAGES)], GREEDY)] == [" 264"] * 2
    with pytest.raises(ValidationError, match=r"conversations\[1\]: messages\[0\] must be a dict"):
        nano.chat([MESSAGES, ["x"]], GREEDY)
    with pytest.raises(ValidationError, match="one prompt, got 2"):
        nano.stream([MESSAGES, MESSAGES])


@ways
def test_special_tokens_are_the_callers_choice(nano: Engine, way: Way) -> None:
    bare = nano.encode("hello", add_special_tokens=False)
    assert (
        way(nano, "hello").prompt_token_ids
        == [1, *bare]
        == way(nano, "hello", add_special_tokens=True).prompt_token_ids
    )
    assert way(nano, "hello", add_special_tokens=False).prompt_token_ids == bare
    assert way(nano, "<|bos|>hello", add_special_tokens=False).prompt_token_ids == [1, *bare]
    with pytest.raises(ValidationError, match="add_special_tokens must be True, False or None"):
        way(nano, "hello", add_special_tokens=1)


def test_text_beside_token_ids_is_kept(nano: Engine) -> None:
    output = by_generate(nano, {"prompt": "as it was", "prompt_token_ids": nano.encode(SUM)})
    assert output.prompt == "as it was" and output.prompt_token_ids == nano.encode(SUM) and output.text == " 264"
    harmless = {"multi_modal_data": None, "mm_processor_kwargs": {}, "cache_salt": None, "prompt": None}
    assert by_generate(nano, {"prompt_token_ids": nano.encode(SUM), **harmless}).text == " 264"
    assert by_generate(nano, {**harmless, "prompt": SUM, "cache_salt": ""}).text == " 264"


def bert_like() -> str:
    """A tokenizer.json that puts two tokens before a text and one behind it."""
    backend = made.tokenizers.Tokenizer.from_str(made.byte_level())
    backend.add_special_tokens(["<a>", "<b>", "<z>"])
    ids = [(token, backend.token_to_id(token)) for token in ("<a>", "<b>", "<z>")]
    backend.post_processor = made.processors.TemplateProcessing("<a> <b> $A <z>", None, ids)
    return backend.to_str()


@pytest.mark.parametrize(
    ("kind", "text", "count"),
    [
        ("sentencepiece", "hi", 1),
        ("sentencepiece", "<s>hi", 0),
        ("sentencepiece", "<s>", 0),
        ("sentencepiece", "hi<s>", 1),
        ("sentencepiece", "<s><s>hi", 0),  # one of the two is not the tokenizer's
        ("sentencepiece", "", 1),
        ("bert", "hi", 3),
        ("bert", "<a><b>hi", 1),
        ("bert", "<a>hi", 3),  # not what the tokenizer would put there
        ("bert", "<a><b>", 1),
        ("none", "<s>hi", 0),
    ],
)
def test_what_a_text_starts_with_is_not_put_there_twice(tmp_path: Path, kind: str, text: str, count: int) -> None:
    """count: tokens added to the text's own."""
    source = {"sentencepiece": made.byte_fallback, "bert": bert_like, "none": made.byte_level}[kind]()
    tokenizer = Tokenizer(made.save(tmp_path, source))
    limits = {"vocab_size": 10_000, "max_model_len": 100}
    (parsed,) = parse_prompts(text, tokenizer, **limits)
    own = tokenizer.encode(text, add_special_tokens=False)
    assert len(parsed.token_ids or ()) == len(own) + count
    (bare,) = parse_prompts(text or "x", tokenizer, add_special_tokens=False, **limits)
    assert bare.token_ids == tokenizer.encode(text or "x", add_special_tokens=False)
