# ruff: noqa: RUF001  (DeepSeek's special tokens have full-width bars)
"""The formats of responses by name, and how the format of a model is found."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lynx_rt.errors import ValidationError, shown
from lynx_rt.text.response import harmony
from lynx_rt.text.response.calls import CallFormat, Context, DeepSeekCalls, JsonCalls, KimiCalls, MistralCalls
from lynx_rt.text.response.output import Output, call_id, kimi_call_id, mistral_call_id
from lynx_rt.text.response.parser import HarmonyMachine, Machine, ResponseParser, TextMachine, ThinkTags
from lynx_rt.text.response.pythonic_calls import PythonicCalls
from lynx_rt.text.response.reader import Reader
from lynx_rt.text.response.tagged_calls import DEEPSEEK_V32, GLM45, MINIMAX_M2, QWEN3_CODER, SEED_OSS
from lynx_rt.text.response.template import TemplateMachine
from lynx_rt.text.response.template_fields import ResponseTemplate
from lynx_rt.text.response.thinking import ReasoningTracker
from lynx_rt.text.response.tools import Tools

if TYPE_CHECKING:
    from lynx_rt.text.tokenizer import Tokenizer

_HARMONY = "openai"
_TEMPLATE = "response_template"
_CALLS: dict[str, CallFormat] = {
    "deepseek_v3": DeepSeekCalls(fenced=True),
    "deepseek_v31": DeepSeekCalls(fenced=False),
    "deepseek_v32": DEEPSEEK_V32,
    "ernie45": JsonCalls(("<tool_call>",), ("</tool_call>",)),
    "glm45": GLM45,
    "granite": JsonCalls(("<|tool_call|>", "<tool_call>"), ("</tool_call>",)),
    "granite-20b-fc": JsonCalls(("<function_call>",)),
    "hermes": JsonCalls(("<tool_call>",), ("</tool_call>",)),
    "hunyuan_a13b": JsonCalls(("<tool_calls>",), ("</tool_calls>",)),
    "kimi_k2": KimiCalls(),
    "llama3_json": JsonCalls(("<|python_tag|>",), bare="{", separator=";"),
    "llama4_pythonic": PythonicCalls(("<|python_start|>",), ("<|python_end|>",)),
    "minimax_m2": MINIMAX_M2,
    "mistral": MistralCalls(),
    "phi4_mini_json": JsonCalls(("functools",)),
    "qwen3_coder": QWEN3_CODER,
    "seed_oss": SEED_OSS,
}
_THINK = ThinkTags("<think>", "</think>")
_TAGS: dict[str, ThinkTags] = {
    "think": _THINK,
    "ernie45": ThinkTags("<think>", "</think>", ("<response>", "</response>")),
    "hunyuan_a13b": ThinkTags("<think>", "</think>", ("<answer>", "</answer>")),
    "mistral": ThinkTags("[THINK]", "[/THINK]"),
    "seed_oss": ThinkTags("<seed:think>", "</seed:think>"),
}
# Names that vLLM and SGLang have for the same formats.
_CALL_ALIASES = {
    "qwen3": "hermes",
    "qwen25": "hermes",
    "granite4": "hermes",
    "qwen3_xml": "qwen3_coder",
    "glm47": "glm45",
    "gpt-oss": _HARMONY,
    "hf": _TEMPLATE,
    "llama3": "llama3_json",
    "llama4_json": "llama3_json",
    "pythonic": "llama4_pythonic",
    "hunyuan": "hunyuan_a13b",
    "deepseekv3": "deepseek_v3",
    "deepseekv31": "deepseek_v31",
    "deepseekv32": "deepseek_v32",
}
_REASONING_ALIASES = {
    **dict.fromkeys(
        ["qwen3", "deepseek_r1", "deepseek-r1", "deepseek_v3", "deepseek-v3", "glm45", "minimax_m2", "granite"], "think"
    ),
    "hunyuan": "hunyuan_a13b",
    "openai_gptoss": _HARMONY,
    "gpt-oss": _HARMONY,
}
_MAKE_ID: dict[str | None, Callable[[str, int], str]] = {"mistral": mistral_call_id, "kimi_k2": kimi_call_id}
_PROMPT_TAIL = 4096  # characters at the end of the prompt in which an unfinished thought is looked for, at most

TOOL_PARSERS = tuple(sorted([*_CALLS, _HARMONY, _TEMPLATE]))
REASONING_PARSERS = tuple(sorted([*_TAGS, _HARMONY, _TEMPLATE]))
# Texts in a chat template that tell the format of tool calls; the first that has all of its texts counts.
_SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (_HARMONY, ("<|channel|>", "<|message|>")),
    ("mistral", ("[TOOL_CALLS]",)),
    ("deepseek_v32", ("DSML", "function_calls")),
    ("deepseek_v3", ("<｜tool▁calls▁begin｜>", "```json")),
    ("deepseek_v31", ("<｜tool▁calls▁begin｜>",)),
    ("kimi_k2", ("<|tool_calls_section_begin|>",)),
    ("minimax_m2", ("<minimax:tool_call>",)),
    ("seed_oss", ("<seed:tool_call>",)),
    ("qwen3_coder", ("<function=", "<parameter=")),
    ("glm45", ("<arg_key>",)),
    ("phi4_mini_json", ("functools[",)),
    ("hunyuan_a13b", ("<tool_calls>",)),
    ("granite", ("<|tool_call|>",)),
    ("ernie45", ("<tool_call>", "<response>")),
    ("hermes", ("<tool_call>",)),
    ("granite-20b-fc", ("<function_call>",)),
    ("llama4_pythonic", ("func_name1",)),  # in the words that explain the form to the model
    ("llama3_json", ("<|python_tag|>",)),
    ("llama3_json", ("parameters", "<|header_start|>")),
    ("llama3_json", ("parameters", "<|start_header_id|>")),
)
_REASONING_SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (_HARMONY, ("<|channel|>", "<|message|>")),
    ("mistral", ("[THINK]",)),
    ("seed_oss", ("<seed:think>",)),
    ("ernie45", ("<think>", "<response>")),
    ("hunyuan_a13b", ("<think>", "<answer>")),
    ("think", ("</think>",)),
)


@dataclass(frozen=True)
class ResponseFormat:
    """How a model writes its responses.

    tool_parser, reasoning_parser: names; None = tool calls, or reasoning, stay in the content.
    needs_special_tokens: the text must be generated with skip_special_tokens=False, because it is marked by special tokens.
    """

    tool_parser: str | None = None
    reasoning_parser: str | None = None
    needs_special_tokens: bool = False
    special_tokens: tuple[str, ...] = ()  # texts of the tokenizer's, as far as it is known
    template: ResponseTemplate | None = None  # what the parser "response_template" reads by

    @staticmethod
    def of(
        tool_parser: str | None = "auto",
        reasoning_parser: str | None = "auto",
        *,
        tokenizer: Tokenizer | None = None,
        chat_template: str | None = None,
    ) -> ResponseFormat:
        """Returns the format by the names of its parsers: "auto", "none" or None, one of TOOL_PARSERS or REASONING_PARSERS, or a
        name that vLLM or SGLang has for it.

        tokenizer, chat_template: of the model; they tell what "auto" is.
        Raises ValidationError for a name that does not exist.
        """
        template = _load_template(tokenizer, needed=_TEMPLATE in (tool_parser, reasoning_parser) or tool_parser == "hf")
        found = _detect(tokenizer, chat_template, template)
        tools = _named("tool_parser", tool_parser, found[0], TOOL_PARSERS, _CALL_ALIASES)
        reasoning = _named("reasoning_parser", reasoning_parser, found[1], REASONING_PARSERS, _REASONING_ALIASES)
        special = () if tokenizer is None else tokenizer.all_special_tokens
        marks = _marks(tools, reasoning, template)
        needed = any(token in mark or re.escape(token) in mark for token in special for mark in marks)
        return ResponseFormat(tools, reasoning, needed, special, template)

    def parser(
        self,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        prompt_tail: str = "",
        parallel_tool_calls: bool = True,
        tools_allowed: bool = True,
        forced: str | None = None,
    ) -> ResponseParser:
        """Returns the parser of one response.

        tools: as OpenAI's API has them; None = there are none, and nothing is read as a call.
        prompt_tail: the end of the rendered prompt, or all of it: it may begin the reasoning.
        parallel_tool_calls: False = the first call counts, others are left out.  tools_allowed: False = as without tools.
        forced: what a grammar makes of the output, after the reasoning if there is any: "required" = an array of {"name",
        "parameters"}; "named:NAME" = the arguments of NAME; "content" = content alone, from the first token on.
        Raises ValidationError for another `forced`.
        """
        if forced not in (None, "required", "content") and not (
            str(forced).startswith("named:") and len(str(forced)) > 6
        ):
            raise ValidationError(
                f"forced must be 'required', 'content' or 'named:NAME', got {shown(forced)}", "forced"
            )
        context = Context(Reader(), Output(_MAKE_ID.get(self.tool_parser, call_id), parallel_tool_calls), Tools(tools))
        with_calls = tools is not None and tools_allowed
        machine, prefix = self._machine(with_calls, prompt_tail, forced)
        return ResponseParser(machine, context, prefix)

    @property
    def reasoning_tags(self) -> tuple[str, str] | None:
        """The texts around reasoning; None where there are none, and where they depend on the message (gpt-oss)."""
        if self.reasoning_parser == _TEMPLATE and self.template is not None:
            return self.template.think
        tags = _TAGS.get(self.reasoning_parser or "")
        return None if tags is None else (tags.start, tags.end)

    def begins_inside(self, prompt_tail: str) -> bool:
        """Whether the prompt ends in reasoning. A tag that a user wrote has special tokens after it, or other text."""
        if self.reasoning_tags is None:
            return False
        opening, closing = self.reasoning_tags
        tail = prompt_tail[-_PROMPT_TAIL:]
        start = tail.rfind(opening)
        thought = tail[start + len(opening) :]
        if start < 0 or closing in thought:
            return False
        return not thought.strip() or (bool(self.special_tokens) and not any(t in thought for t in self.special_tokens))

    def tracker(self, prompt_tail: str, token_bytes: Callable[[int], bytes]) -> ReasoningTracker | None:
        """Returns what counts the tokens of one response's reasoning; None where the tags are no plain texts, or there are none.

        token_bytes: what a token adds to the text, special tokens included.
        """
        if self.reasoning_parser == _HARMONY:
            inside = harmony.opened(prompt_tail).startswith(harmony.ANALYSIS)
            return ReasoningTracker((harmony.ANALYSIS, harmony.END), token_bytes, inside, anywhere=True)
        tags = self.reasoning_tags
        return None if tags is None else ReasoningTracker(tags, token_bytes, self.begins_inside(prompt_tail))

    def _machine(self, with_calls: bool, prompt_tail: str, forced: str | None) -> tuple[Machine, str]:
        """Returns how to read a response, and what the prompt has of it."""
        if forced == "content":
            return TextMachine(None, None), ""
        if _HARMONY in (self.tool_parser, self.reasoning_parser):
            with_calls, with_reasoning = with_calls and self.tool_parser == _HARMONY, self.reasoning_parser == _HARMONY
            return HarmonyMachine(with_calls, with_reasoning, forced), harmony.opened(prompt_tail)
        if self.template is not None and _TEMPLATE in (self.tool_parser, self.reasoning_parser):
            with_calls = with_calls and self.tool_parser == _TEMPLATE
            if forced is None:
                with_reasoning = self.reasoning_parser == _TEMPLATE
                return TemplateMachine(self.template, with_calls, with_reasoning), self.template.prefix(prompt_tail)
            tags = None if self.reasoning_tags is None else ThinkTags(*self.reasoning_tags)
            return TextMachine(tags, None, self.begins_inside(prompt_tail), forced), ""
        think = None if self.reasoning_parser is None else _TAGS[self.reasoning_parser]
        calls = _CALLS[self.tool_parser] if with_calls and self.tool_parser is not None else None
        return TextMachine(think, calls, self.begins_inside(prompt_tail), forced), ""


def detect_format(tokenizer: Tokenizer, chat_template: str | None = None) -> ResponseFormat:
    """Returns the format of a model's responses, as far as its files tell.

    chat_template: a template's text; None = the tokenizer's own.
    """
    return ResponseFormat.of(tokenizer=tokenizer, chat_template=chat_template)


def _load_template(tokenizer: Tokenizer | None, needed: bool) -> ResponseTemplate | None:
    """Returns the tokenizer's response template. Where it cannot be used and is not needed, a warning says so."""
    spec = None if tokenizer is None else tokenizer.response_template
    if spec is None:
        if needed:
            raise ValidationError("this model's tokenizer_config.json has no response_template", "tool_parser")
        return None
    try:
        return ResponseTemplate.of(spec)
    except ValidationError as error:
        if needed:
            raise
        warnings.warn(f"{error}; the parsers are chosen by the chat template instead", stacklevel=4)
        return None


def _detect(
    tokenizer: Tokenizer | None, chat_template: str | None, template: ResponseTemplate | None
) -> tuple[str | None, str | None]:
    """Returns the names of both parsers."""
    if template is not None:
        return _TEMPLATE, _TEMPLATE
    text = chat_template if chat_template is not None else _template_text(tokenizer)
    tools = next((name for name, signs in _SIGNS if all(sign in text for sign in signs)), None)
    reasoning = next((name for name, signs in _REASONING_SIGNS if all(sign in text for sign in signs)), None)
    if reasoning is None and tokenizer is not None:
        # Models may think although their template does not mention it: the tags are tokens then.
        pairs = ((name, (tags.start, tags.end)) for name, tags in _TAGS.items())
        reasoning = next((name for name, pair in pairs if None not in map(tokenizer.token_id, pair)), None)
    return tools, reasoning


def _template_text(tokenizer: Tokenizer | None) -> str:
    """Returns the text of all templates that the tokenizer has."""
    own = None if tokenizer is None else tokenizer.chat_template
    return own if isinstance(own, str) else "\n".join((own or {}).values())


def _named(
    field: str, name: str | None, found: str | None, names: Sequence[str], aliases: Mapping[str, str]
) -> str | None:
    if name is None or name == "none":
        return None
    if name == "auto":
        return found
    name = aliases.get(name, name) if isinstance(name, str) else name
    if name not in names:
        known = ", ".join(["auto", "none", *names])
        raise ValidationError(f"{field} must be one of {known}; got {shown(name)}", field)
    return name


def _marks(tools: str | None, reasoning: str | None, template: ResponseTemplate | None) -> list[str]:
    """Returns the texts that the parsers look for."""
    if template is not None and _TEMPLATE in (tools, reasoning):
        return list(template.marks)
    marks = [harmony.START, harmony.CHANNEL, harmony.MESSAGE] if _HARMONY in (tools, reasoning) else []
    if tools in _CALLS:
        marks += _CALLS[tools].openers
    if reasoning in _TAGS:
        marks += (_TAGS[reasoning].start, _TAGS[reasoning].end)
    return marks
