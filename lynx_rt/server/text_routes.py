"""Routes that show how text becomes tokens: /tokenize, /detokenize, /tokenizer_info, /v1/chat/completions/render."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from lynx_rt.server.conversation import model_prompt
from lynx_rt.server.errors import bad_request
from lynx_rt.server.media import fetch_images
from lynx_rt.server.prompts import chat_prompt, in_thread, parse, size_of
from lynx_rt.server.protocol import ChatBody, ChatFields, DetokenizeBody, TokenizeBody
from lynx_rt.server.state import state_of
from lynx_rt.text.prompts import ParsedPrompt

router = APIRouter(tags=["text"])


@router.post("/tokenize")
async def tokenize(body: TokenizeBody, request: Request) -> dict[str, Any]:
    """The token ids of a text, or of a conversation after its chat template. vLLM's shape."""
    state = state_of(request)
    engine = state.ready_engine()
    state.model_name(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise bad_request("give either prompt or messages", "prompt")

    def work() -> ParsedPrompt:
        prompt: Any = body.prompt
        special = True if body.add_special_tokens is None else body.add_special_tokens
        if body.messages is not None:
            prompt = chat_prompt(ChatFields(**body.model_dump(exclude={"model", "prompt"})), state)
            special = bool(body.add_special_tokens)
        (parsed,) = parse(engine, prompt, add_special_tokens=special)
        return parsed

    if body.prompt == "":
        ids: list[int] = []
    else:
        slow = await fetch_images(body.messages, state)
        ids = (await in_thread(state, size_of(body.prompt or body.messages), work, slow)).token_ids
    tokenizer = engine.get_tokenizer()
    return {
        "count": len(ids),
        "max_model_len": engine.max_model_len,
        "tokens": ids,
        "token_strs": [tokenizer.piece(token) for token in ids] if body.return_token_strs else None,
    }


@router.post("/detokenize")
async def detokenize(body: DetokenizeBody, request: Request) -> dict[str, str]:
    """The text of token ids, special tokens included."""
    state = state_of(request)
    engine = state.ready_engine()
    state.model_name(body.model)
    size = engine.model_config["vocab_size"]
    for place, token in enumerate(body.tokens):
        if not 0 <= token < size:
            raise bad_request(f"tokens[{place}] is {token}, outside the vocabulary of {size}", "tokens")
    text = await in_thread(state, len(body.tokens), lambda: engine.decode(body.tokens, skip_special_tokens=False))
    return {"prompt": text}


@router.get("/tokenizer_info")
async def tokenizer_info(request: Request) -> dict[str, Any]:
    """What lm-eval and others read of tokenizer_config.json."""
    tokenizer = state_of(request).ready_engine().get_tokenizer()
    return {
        "tokenizer_class": type(tokenizer.backend).__name__,
        "chat_template": tokenizer.chat_template,
        "vocab_size": tokenizer.vocab_size,
        **tokenizer.special_tokens,
    }


@router.post("/v1/chat/completions/render")
async def render(body: ChatBody, request: Request) -> dict[str, Any]:
    """What the chat template makes of a conversation, without generating."""
    state = state_of(request)
    engine = state.ready_engine()
    state.model_name(body.model)

    def work() -> ParsedPrompt:
        prompt, special, cut = model_prompt(body, state), body.add_special_tokens, body.truncate_prompt_tokens
        (parsed,) = parse(engine, prompt, name="messages", add_special_tokens=special, truncate=cut)
        return parsed

    slow = await fetch_images(body.messages, state)
    parsed = await in_thread(state, size_of(body.messages), work, slow)
    return {"prompt": parsed.text, "prompt_token_ids": parsed.token_ids, "count": len(parsed.token_ids)}
