"""A server whose model answers with the last question. lynx-nano calls no tools and does not reason by itself."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator

import pytest
import uvicorn

from lynx_rt import Engine
from lynx_rt.engine.outputs import CompletionDelta
from lynx_rt.server import conversation
from lynx_rt.server.app import make_app
from lynx_rt.server.generation import Generation
from lynx_rt.server.settings import Settings
from lynx_rt.server.state import ServerState

CALLS = (
    "<think>Hm, 2.</think>I call.\n"
    '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "x y"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "sub", "arguments": {}}\n</tool_call>'
)
ENDLESS = '<tool_call>\n{"name": "add", "arguments": {"a": "' + "1 2 3 " * 60


class Parrot(Generation):
    """Generates the text between "Q: " and "A:" at the end of the prompt."""

    async def __aenter__(self) -> Parrot:
        return self

    async def __aexit__(self, *error: object) -> None:
        pass

    async def deltas(self) -> AsyncIterator[tuple[int, CompletionDelta]]:
        [request] = self.requests
        assert request.prompt is not None
        text = request.prompt.rpartition("Q: ")[2].removesuffix("\nA:")
        tokenizer, limit = request.tokenizer, request.params.max_tokens
        assert tokenizer is not None
        ids = tokenizer.encode(text, add_special_tokens=False)
        for token_id in ids[:limit]:
            await asyncio.sleep(0)
            yield 0, CompletionDelta(0, tokenizer.piece(token_id), [token_id], None, None, None, None)
        reason = "length" if limit is not None and limit < len(ids) else "stop"
        yield 0, CompletionDelta(0, "", [], None, reason, None, None)


@contextlib.contextmanager
def parrot_server(model: str) -> Iterator[str]:
    """Runs a server in a thread that reads tool calls as Hermes writes them, and reasoning in <think>. Yields its URL."""
    settings = Settings(model=model, served_model_names=("parrot",))
    state = ServerState(settings)
    with pytest.MonkeyPatch.context() as patch, Engine(model, tool_parser="hermes", reasoning_parser="think") as engine:
        patch.setattr(conversation, "Generation", Parrot)
        state.set_ready(engine)
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(make_app(state), lifespan="off", log_level="warning"))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
