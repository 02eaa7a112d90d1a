"""Brings all forms of a prompt to one."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from lynx_rt.errors import ValidationError, encoding_fault, shown
from lynx_rt.text.image_parts import DATA, KWARGS, UUIDS, ImageSource, images_beside, max_pixels_of
from lynx_rt.text.message import is_message
from lynx_rt.text.tokenizer import Tokenizer

# Text, token ids, a conversation, or a dict that holds one of them.
Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]] | Mapping[str, Any]
_BYTES = (bytes, bytearray, memoryview)  # sequences of integers that nobody means as token ids
_CHAT_OPTIONS = ("chat_template", "add_generation_prompt", "continue_final_message", "tools", "chat_template_kwargs")
# Keys of a dict prompt; the first key that is there decides the form.
_FORMS = (("messages", *_CHAT_OPTIONS), ("prompt_token_ids", "prompt"), ("prompt",))
_IMAGE_KEYS = (DATA, UUIDS, KWARGS)  # that texts and token ids may have beside them; messages have their images within
# Keys of vLLM's prompts that have no counterpart here. They are accepted where their value says nothing.
_UNSUPPORTED = {
    "prompt_embeds": "pass text or token ids",
    "token_type_ids": "pass text or token ids",
    "cache_salt": "all requests share one prefix cache; Engine(enable_prefix_caching=False) shares nothing",
}


_TEXT_ONLY = "this engine reads text only"


@dataclass(slots=True)
class ParsedPrompt:
    label: str  # its name in error texts: "prompt" or "prompts[3]"
    text: str | None
    token_ids: list[int]
    needs_ids: bool = False  # token_ids are yet to be made from the text
    rendered: bool = False  # the text is that of a chat, which has its special tokens
    images: list[ImageSource] = field(default_factory=list)  # in the order of their placeholders
    max_pixels: int | None = None  # of an image; None = the engine's


def parse_prompts(
    prompts: Prompt | Iterable[Prompt],
    tokenizer: Tokenizer | None,
    *,
    vocab_size: int,
    max_model_len: int,
    name: str = "prompt",
    add_special_tokens: bool | None = None,
    chat_template: Any = None,
    place_images: Callable[[ParsedPrompt], None] | None = None,
) -> list[ParsedPrompt]:
    """Returns one entry per prompt, with valid token ids.

    prompts: text, token ids, a conversation, {"prompt": text}, {"prompt_token_ids": ids}, {"messages": conversation}, or
    several of these.
    max_model_len: prompts must be shorter, so that a token can follow.  name: of a prompt in error texts.
    add_special_tokens: whether the tokenizer adds its special tokens to texts; None = to all but chats, whose template
    adds them. Tokens that a text starts with already are not added twice.
    chat_template: for conversations that bring none.
    place_images: makes the placeholders of a prompt's images as many tokens as they take; None = the model reads text only.
    Raises ValidationError that names the prompt.
    """
    reads_images = place_images is not None
    if not isinstance(add_special_tokens, (bool, type(None))):
        raise ValidationError(
            f"add_special_tokens must be True, False or None, got {shown(add_special_tokens)}", "add_special_tokens"
        )
    if _is_one_prompt(prompts):
        parsed = [_parse(prompts, name, tokenizer, chat_template, reads_images)]
    else:
        try:
            items = (
                None if isinstance(prompts, (Set, bytes, bytearray, memoryview)) else list(prompts)
            )  # a set has no order
        except TypeError:
            items = None
        if items is None:
            raise ValidationError(f"{name}s must be text, token ids or a list of them, got {shown(prompts)}", "prompts")
        parsed = [
            _parse(item, f"{name}s[{index}]", tokenizer, chat_template, reads_images)
            for index, item in enumerate(items)
        ]
    _tokenize([prompt for prompt in parsed if prompt.needs_ids], tokenizer, add_special_tokens)
    for prompt in parsed:
        if place_images is not None:
            place_images(prompt)
        _check_ids(prompt, vocab_size, max_model_len)
    return parsed


def _is_one_prompt(prompts: Any) -> bool:
    if isinstance(prompts, (str, Mapping)):
        return True
    if isinstance(prompts, _BYTES):
        return False
    shape = getattr(prompts, "shape", None)
    if shape is not None:  # an array: one row is one prompt
        return len(shape) == 1
    if not isinstance(prompts, Sequence) or len(prompts) == 0:
        return False
    return isinstance(prompts[0], numbers.Integral) or _begins_chat(prompts[0])


def _begins_chat(value: Any) -> bool:
    return not isinstance(value, (str, Sequence)) and is_message(value)


def _parse(
    prompt: Any, label: str, tokenizer: Tokenizer | None, chat_template: Any, reads_images: bool
) -> ParsedPrompt:
    if isinstance(prompt, Mapping):
        return _parse_dict(prompt, label, tokenizer, chat_template, reads_images)
    if isinstance(prompt, str):
        return ParsedPrompt(label, prompt, [], needs_ids=True)
    if isinstance(prompt, Sequence) and len(prompt) > 0 and _begins_chat(prompt[0]):
        return _parse_dict({"messages": prompt}, label, tokenizer, chat_template, reads_images)
    return ParsedPrompt(label, None, _token_ids(prompt, label))


def _parse_dict(
    prompt: Mapping[str, Any], label: str, tokenizer: Tokenizer | None, chat_template: Any, reads_images: bool
) -> ParsedPrompt:
    given = {key: value for key, value in prompt.items() if value is not None}
    for key, advice in {**_UNSUPPORTED, **({} if reads_images else dict.fromkeys(_IMAGE_KEYS, _TEXT_ONLY))}.items():
        if key in given and not (isinstance(given[key], (Mapping, Sequence)) and len(given[key]) == 0):
            raise ValidationError(f"{label}: {key!r} is not supported: {advice}", "prompts")
        given.pop(key, None)
    form = next((keys for keys in _FORMS if keys[0] in given), None)
    beside = {KWARGS} if form is not None and form[0] == "messages" else set(_IMAGE_KEYS)
    if form is None or not set(given) <= {*form, *beside}:
        keys = "'prompt', 'prompt_token_ids' or 'messages'" if form is None else " and ".join(map(repr, form))
        found = shown(sorted(map(str, prompt)))
        raise ValidationError(f"{label}: a dict prompt may have the keys {keys}, got {found}", "prompts")
    parsed = ParsedPrompt(label, None, [], images=images_beside(given, label))
    parsed.max_pixels = max_pixels_of(given.get(KWARGS), label)
    text = given.get("prompt")
    if text is not None and not isinstance(text, str):
        raise ValidationError(f"{label}: 'prompt' must be text, got {type(text).__name__}", "prompts")
    parsed.text = text
    if "prompt_token_ids" in given:
        ids = given["prompt_token_ids"]
        if isinstance(ids, str):
            raise ValidationError(f"{label}: 'prompt_token_ids' must be token ids, got text", "prompts")
        parsed.token_ids = _token_ids(ids, label)
        return parsed
    parsed.needs_ids = True
    if "messages" in given:
        given.pop(KWARGS, None)
        parsed.text = _rendered(given, label, tokenizer, chat_template, parsed.images if reads_images else None)
        parsed.rendered = True
        for image in parsed.images if label.endswith("]") else ():
            image.name = f"{label}: {image.name}"
    return parsed


def _rendered(
    given: dict[str, Any],
    label: str,
    tokenizer: Tokenizer | None,
    chat_template: Any,
    images: list[ImageSource] | None,
) -> str:
    from lynx_rt.text.chat import render_chat

    tokenizer = _need_tokenizer(tokenizer, label)
    options = {"chat_template": chat_template, **given}
    messages, variables = options.pop("messages"), options.pop("chat_template_kwargs", None)
    try:
        return render_chat(messages, tokenizer, template_kwargs=variables, images=images, **options)
    except ValidationError as error:
        raise ValidationError(f"{label}: {error}" if label.endswith("]") else str(error), error.field) from None


def _token_ids(ids: Any, label: str) -> list[int]:
    """Returns a list, or an array of one axis, as Python integers."""
    if hasattr(ids, "tolist") and not isinstance(ids, _BYTES):  # numpy, torch
        ids = ids.tolist()
    if not isinstance(ids, Sequence) or isinstance(ids, (str, *_BYTES)):
        raise ValidationError(f"{label} must be text or token ids, got {type(ids).__name__}", "prompts")
    for place, item in enumerate(ids):
        if isinstance(item, bool) or not isinstance(item, numbers.Integral):
            raise ValidationError(f"{label}: token {place} must be an integer, got {shown(item)}", "prompts")
    return [int(item) for item in ids]


def _need_tokenizer(tokenizer: Tokenizer | None, label: str) -> Tokenizer:
    if tokenizer is None:
        raise ValidationError(
            f"{label}: text needs a tokenizer, and this engine was made without one; pass token ids", "prompts"
        )
    return tokenizer


def _tokenize(prompts: list[ParsedPrompt], tokenizer: Tokenizer | None, add_special_tokens: bool | None) -> None:
    if not prompts:
        return
    tokenizer = _need_tokenizer(tokenizer, prompts[0].label)
    for prompt in prompts:
        if (fault := encoding_fault(prompt.text or "")) is not None:
            raise ValidationError(f"{prompt.label}: {fault}", "prompts")
    for special in (True, False):
        group = [
            p for p in prompts if (not p.rendered if add_special_tokens is None else add_special_tokens) == special
        ]
        texts = [prompt.text or "" for prompt in group]
        for prompt, ids in zip(group, tokenizer.encode_batch(texts, special), strict=True):
            prompt.token_ids = _undoubled(ids, prompt.text or "", tokenizer) if special else ids


def _undoubled(ids: list[int], text: str, tokenizer: Tokenizer) -> list[int]:
    """Returns the ids without the special tokens that were added before a text which has them already ("<s>" of a chat)."""
    if not ids or ids[0] not in tokenizer.special_token_ids or not text.startswith(tokenizer.piece(ids[0])):
        return ids
    own = tokenizer.encode(text, add_special_tokens=False)
    for count in range(len(ids) - len(own), 0, -1):
        if ids[count : count + len(own)] == own and own[:count] == ids[:count]:
            return ids[count:]
    return ids


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
            f"{prompt.label}: token {place} is {shown(bad)}, outside the vocabulary of {vocab_size}", "prompts"
        )
