# ruff: noqa: RUF001  (DeepSeek's special tokens have full-width bars)
"""Outputs of models in every format of tool calls, written the way the models do, and what the streaming parser makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lynx_rt.text.response import ResponseFormat, ResponseParser

Call = tuple[str, dict[str, Any]]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "where": {"type": "object"},
                    "list": {"type": "array"},
                    "exact": {"type": "boolean"},
                    "ratio": {"type": "number"},
                },
            },
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]


def dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def named(call: Call, key: str = "arguments") -> str:
    return f'{{"name": "{call[0]}", "{key}": {dump(call[1])}}}'


def tagged(value: Any) -> str:
    return value if isinstance(value, str) else dump(value)


def hermes(calls: Sequence[Call]) -> str:
    return "\n".join(f"<tool_call>\n{named(call)}\n</tool_call>" for call in calls)


def qwen3_coder(calls: Sequence[Call], block: str = "tool_call") -> str:
    texts = []
    for name, arguments in calls:
        body = "".join(f"<parameter={key}>\n{tagged(value)}\n</parameter>\n" for key, value in arguments.items())
        texts.append(f"<{block}>\n<function={name}>\n{body}</function>\n</{block}>")
    return "\n".join(texts)


def glm45(calls: Sequence[Call]) -> str:
    texts = []
    for name, arguments in calls:
        body = "".join(
            f"<arg_key>{key}</arg_key>\n<arg_value>{tagged(value)}</arg_value>\n" for key, value in arguments.items()
        )
        texts.append(f"<tool_call>{name}\n{body}</tool_call>")
    return "\n".join(texts)


def minimax_m2(calls: Sequence[Call]) -> str:
    texts = []
    for name, arguments in calls:
        body = "".join(f'<parameter name="{key}">{tagged(value)}</parameter>\n' for key, value in arguments.items())
        texts.append(f'<invoke name="{name}">\n{body}</invoke>\n')
    return f"<minimax:tool_call>\n{''.join(texts)}</minimax:tool_call>"


def deepseek_v32(calls: Sequence[Call]) -> str:
    texts = []
    for name, arguments in calls:
        body = "".join(
            f'<｜DSML｜parameter name="{key}" string="{dump(isinstance(value, str))}">{tagged(value)}</｜DSML｜parameter>\n'
            for key, value in arguments.items()
        )
        texts.append(f'<｜DSML｜invoke name="{name}">\n{body}</｜DSML｜invoke>\n')
    return f"<｜DSML｜function_calls>\n{''.join(texts)}</｜DSML｜function_calls>"


def deepseek_v3(calls: Sequence[Call]) -> str:
    each = [
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{dump(arguments)}\n```<｜tool▁call▁end｜>"
        for name, arguments in calls
    ]
    return "<｜tool▁calls▁begin｜>" + "\n".join(each) + "<｜tool▁calls▁end｜>"


def deepseek_v31(calls: Sequence[Call]) -> str:
    each = [
        f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{dump(arguments)}<｜tool▁call▁end｜>" for name, arguments in calls
    ]
    return "<｜tool▁calls▁begin｜>" + "".join(each) + "<｜tool▁calls▁end｜>"


def kimi_k2(calls: Sequence[Call]) -> str:
    each = [
        f"<|tool_call_begin|>functions.{name}:{place}<|tool_call_argument_begin|>{dump(arguments)}<|tool_call_end|>"
        for place, (name, arguments) in enumerate(calls)
    ]
    return "<|tool_calls_section_begin|>" + "".join(each) + "<|tool_calls_section_end|>"


def array(before: str, after: str = "") -> Callable[[Sequence[Call]], str]:
    return lambda calls: f"{before}[{', '.join(map(named, calls))}]{after}"


def mistral_named(calls: Sequence[Call]) -> str:
    return "".join(f"[TOOL_CALLS]{name}[ARGS]{dump(arguments)}" for name, arguments in calls)


def llama3_json(calls: Sequence[Call]) -> str:
    return "; ".join(named(call, "parameters") for call in calls)


def llama4_pythonic(calls: Sequence[Call]) -> str:
    each = [f"{name}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})" for name, arguments in calls]
    return f"[{', '.join(each)}]"


@dataclass(frozen=True)
class Family:
    """How a family writes its responses."""

    tool_parser: str
    calls: Callable[[Sequence[Call]], str]
    reasoning: str = "<think>\n{}\n</think>\n\n"
    reasoning_parser: str | None = "think"
    text_before: bool = True  # whether there may be content before calls

    def format(self) -> ResponseFormat:
        return ResponseFormat.of(self.tool_parser, self.reasoning_parser)

    def write(self, reasoning: str, content: str, calls: Sequence[Call]) -> str:
        before = self.reasoning.format(reasoning) if reasoning else ""
        return before + content + (self.calls(calls) if calls else "")


@dataclass(frozen=True)
class Harmony(Family):
    def write(self, reasoning: str, content: str, calls: Sequence[Call]) -> str:
        messages = [f"<|channel|>analysis<|message|>{reasoning}<|end|>"] if reasoning else []
        if content:
            messages.append(f"<|channel|>{'commentary' if calls else 'final'}<|message|>{content}<|end|>")
        messages += [
            f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{dump(arguments)}<|call|>"
            for name, arguments in calls
        ]
        return "<|start|>assistant".join(messages)


FAMILIES: dict[str, Family] = {
    "hermes": Family("hermes", hermes),
    "qwen3_coder": Family("qwen3_coder", qwen3_coder),
    "seed_oss": Family(
        "seed_oss",
        lambda calls: qwen3_coder(calls, "seed:tool_call"),
        "<seed:think>{}</seed:think>",
        "seed_oss",
    ),
    "mistral_array": Family("mistral", array("[TOOL_CALLS]"), "[THINK]{}[/THINK]", "mistral"),
    "mistral_named": Family("mistral", mistral_named, "[THINK]{}[/THINK]", "mistral"),
    "llama3_json": Family("llama3_json", llama3_json, reasoning_parser=None, text_before=False),
    "llama4_pythonic": Family("llama4_pythonic", llama4_pythonic, reasoning_parser=None, text_before=False),
    "deepseek_v3": Family("deepseek_v3", deepseek_v3),
    "deepseek_v31": Family("deepseek_v31", deepseek_v31),
    "deepseek_v32": Family("deepseek_v32", deepseek_v32),
    "glm45": Family("glm45", glm45),
    "minimax_m2": Family("minimax_m2", minimax_m2),
    "kimi_k2": Family("kimi_k2", kimi_k2),
    "granite": Family("granite", array("<|tool_call|>")),
    "granite-20b-fc": Family(
        "granite-20b-fc", lambda calls: "\n".join(f"<function_call> {named(call)}" for call in calls)
    ),
    "hunyuan_a13b": Family("hunyuan_a13b", array("<tool_calls>", "</tool_calls>")),
    "ernie45": Family("ernie45", hermes, reasoning_parser="ernie45"),
    "phi4_mini_json": Family("phi4_mini_json", array("functools"), reasoning_parser=None),
    "openai": Harmony("openai", hermes, reasoning_parser="openai"),
}


@dataclass
class Streamed:
    """What a client puts together of the deltas."""

    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)  # (name, arguments), also those that were given up
    ids: list[str] = field(default_factory=list)
    failed: bool = False


def stream(parser: ResponseParser, pieces: Sequence[str], finish_reason: str | None = "stop") -> Streamed:
    """Feeds pieces and puts the deltas together. Checks that indexes rise without gaps, and that ids come once."""
    result = Streamed()
    for piece in (*pieces, None):
        delta = parser.finish(finish_reason) if piece is None else parser.feed(piece)
        result.content += delta.content
        result.reasoning += delta.reasoning
        assert bool(delta) == bool(delta.content or delta.reasoning or delta.tool_calls)
        for call in delta.tool_calls:
            if call.id is not None:
                assert call.index == len(result.calls) and call.name is not None
                result.calls.append((call.name, ""))
                result.ids.append(call.id)
            else:
                assert call.name is None and call.index == len(result.calls) - 1 and call.arguments
            name, arguments = result.calls[call.index]
            result.calls[call.index] = (name, arguments + call.arguments)
    result.failed = parser.failed
    return result
