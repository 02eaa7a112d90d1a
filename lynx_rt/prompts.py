"""The forms that a prompt may take, brought to one."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lynx_rt.errors import ValidationError
from lynx_rt.tokenizer import Tokenizer

Prompt = str | Sequence[int] | Mapping[str, Any]


@dataclass(slots=True)
class ParsedPrompt:
    label: str  # how error texts call it: "prompt" or "prompts[3]"
    text: str | None
    token_ids: list[int]


def parse_prompts(
    prompts: Prompt | Iterable[Prompt],
    tokenizer: Tokenizer | None,
    *,
    vocab_size: int,
    max_model_len: int,
    name: str = "prompt",
    add_special_tokens: bool = True,
) -> list[ParsedPrompt]:
    """One entry per prompt, with valid token ids.

    prompts: text, token ids, {"prompt": text}, {"prompt_token_ids": ids}, or several of these.
    max_model_len: prompts must be shorter, so that a token can follow.  name: how error texts call one.
    Raises ValidationError that says which prompt.
    """
    if _is_one_prompt(prompts):
        parsed = [_parse(prompts, name)]
    else:
        try:
            items = list(prompts)
        except TypeError:
            raise ValidationError(
                f"{name}s must be text, token ids or a list of them, got {prompts!r}", "prompts"
            ) from None
        parsed = [_parse(item, f"{name}s[{index}]") for index, item in enumerate(items)]
    _tokenize([prompt for prompt in parsed if prompt.text is not None], tokenizer, add_special_tokens)
    for prompt in parsed:
        _check_ids(prompt, vocab_size, max_model_len)
    return parsed


def _is_one_prompt(prompts: Any) -> bool:
    if isinstance(prompts, (str, Mapping)):
        return True
    shape = getattr(prompts, "shape", None)
    if shape is not None:  # an array: one row is one prompt
        return len(shape) == 1
    return isinstance(prompts, Sequence) and len(prompts) > 0 and isinstance(prompts[0], numbers.Integral)


def _parse(prompt: Any, label: str) -> ParsedPrompt:
    if isinstance(prompt, Mapping):
        if set(prompt) == {"prompt"}:
            prompt = prompt["prompt"]
            if not isinstance(prompt, str):
                raise ValidationError(f"{label}: 'prompt' must be text, got {type(prompt).__name__}", "prompts")
        elif "prompt_token_ids" in prompt and set(prompt) <= {"prompt", "prompt_token_ids"}:
            parsed = _parse(prompt["prompt_token_ids"], label)
            if parsed.text is not None:
                raise ValidationError(f"{label}: 'prompt_token_ids' must be token ids, got text", "prompts")
            return parsed
        else:
            raise ValidationError(
                f"{label}: a dict prompt has the key 'prompt' or 'prompt_token_ids', got {sorted(map(str, prompt))}",
                "prompts",
            )
    if isinstance(prompt, str):
        return ParsedPrompt(label, prompt, [])
    if hasattr(prompt, "tolist"):  # numpy, torch
        prompt = prompt.tolist()
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        raise ValidationError(f"{label} must be text or token ids, got {type(prompt).__name__}", "prompts")
    for place, item in enumerate(prompt):
        if isinstance(item, bool) or not isinstance(item, numbers.Integral):
            raise ValidationError(f"{label}: token {place} must be an integer, got {item!r}", "prompts")
    return ParsedPrompt(label, None, [int(item) for item in prompt])


def _tokenize(prompts: list[ParsedPrompt], tokenizer: Tokenizer | None, add_special_tokens: bool) -> None:
    if not prompts:
        return
    if tokenizer is None:
        raise ValidationError(
            f"{prompts[0].label}: text needs a tokenizer, and this engine was made without one; pass token ids",
            "prompts",
        )
    encoded = tokenizer.encode_batch([prompt.text or "" for prompt in prompts], add_special_tokens)
    for prompt, ids in zip(prompts, encoded, strict=True):
        prompt.token_ids = ids


def _check_ids(prompt: ParsedPrompt, vocab_size: int, max_model_len: int) -> None:
    ids = prompt.token_ids
    if not ids:
        raise ValidationError(f"{prompt.label} is empty: it must have at least one token", "prompts")
    if len(ids) >= max_model_len:
        raise ValidationError(
            f"{prompt.label} has {len(ids)} tokens, but prompt and output together may have {max_model_len} "
            "(max_model_len)",
            "prompts",
        )
    if min(ids) < 0 or max(ids) >= vocab_size:
        place, bad = next((p, i) for p, i in enumerate(ids) if not 0 <= i < vocab_size)
        raise ValidationError(
            f"{prompt.label}: token {place} is {bad}, outside the vocabulary of {vocab_size}", "prompts"
        )
