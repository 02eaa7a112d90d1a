"""The engine requests behind one HTTP request, from admission to their end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import TracebackType

from lynx_rt.engine.async_stream import AsyncStream
from lynx_rt.engine.outputs import CompletionDelta
from lynx_rt.engine.request import Request
from lynx_rt.server.errors import ApiError
from lynx_rt.server.state import Admission, ServerState


class Generation:
    """Runs requests; leaving its `async with` block ends those that are not finished."""

    def __init__(self, state: ServerState, requests: Sequence[Request], names: Sequence[str]) -> None:
        """names: the ids by which it can be aborted."""
        self.names = tuple(names)
        self.requests = list(requests)
        self._state = state
        self._admission: Admission | None = None
        self._streams: list[AsyncStream] = []

    async def __aenter__(self) -> Generation:
        engine = self._state.ready_engine()
        self._admission = self._state.admit(sum(len(request.completions) for request in self.requests))
        self._state.generations.add(self)
        self._streams = [engine.open_stream(request) for request in self.requests]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._admission is not None:
            self._admission.leave()
        self._state.generations.discard(self)
        self.abort()

    def abort(self) -> None:
        """Ends what is not finished; whoever waits for it gets finish_reason "abort"."""
        for stream in self._streams:
            stream.close()

    async def deltas(self) -> AsyncIterator[tuple[int, CompletionDelta]]:
        """Yields what is new of each completion, with the index of its request.

        Raises ApiError where the engine refused a request, or could not finish a completion.
        """
        if len(self._streams) == 1:
            left = len(self.requests[0].completions)
            while left:
                for delta in await self._streams[0].next_deltas():
                    left -= self._note(delta)
                    yield 0, delta
            return
        waiting = {asyncio.ensure_future(s.next_deltas()): index for index, s in enumerate(self._streams)}
        missing = [len(request.completions) for request in self.requests]
        try:
            while waiting:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in sorted(done, key=waiting.__getitem__):
                    index = waiting.pop(task)
                    for delta in task.result():
                        missing[index] -= self._note(delta)
                        yield index, delta
                    if missing[index]:
                        waiting[asyncio.ensure_future(self._streams[index].next_deltas())] = index
        finally:
            for task in waiting:
                task.cancel()

    def _note(self, delta: CompletionDelta) -> bool:
        """Returns whether the delta is its completion's last. Raises ApiError where that failed."""
        if delta.finish_reason == "error":
            raise ApiError(500, delta.error or "the completion failed", code="generation_failed")
        return delta.finish_reason is not None
