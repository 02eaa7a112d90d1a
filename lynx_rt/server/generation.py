"""The engine requests behind one HTTP request, from admission to their end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any

from lynx_rt.engine.async_stream import AsyncStream
from lynx_rt.engine.outputs import CompletionDelta, RequestMetrics
from lynx_rt.engine.request import Request
from lynx_rt.errors import QueueFullError
from lynx_rt.server.caller import Caller
from lynx_rt.server.errors import ApiError
from lynx_rt.server.state import Admission, ServerState


class Generation:
    """Runs requests; leaving its `async with` block ends those that are not finished.

    names: the ids by which it can be aborted.  operation: "chat" or "text_completion", as traces call it.
    """

    def __init__(
        self, state: ServerState, requests: Sequence[Request], answer_id: str, caller: Caller, operation: str
    ) -> None:
        self.names = (answer_id, caller.request_id)
        self.requests = list(requests)
        self._state = state
        self._caller = caller
        self._operation = operation
        self._admission: Admission | None = None
        self._streams: list[AsyncStream] = []
        self._abort_reason = "client"
        self._last_token: dict[tuple[int, int], float] = {}  # (request, completion) -> time of its last token
        self._accepted: set[int] = set()  # requests that the engine has worked on
        self._begun: set[int] = set()  # requests with a token

    async def __aenter__(self) -> Generation:
        engine = self._state.ready_engine()
        self._admission = self._state.admit(sum(len(request.completions) for request in self.requests))
        self._state.generations.add(self)
        try:
            self._streams = engine.open_streams(self.requests)
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._admission is None:
            return
        self._admission.leave()
        self._state.generations.discard(self)
        self.abort("client" if kind in (None, asyncio.CancelledError, GeneratorExit) else "error")
        for index, request in enumerate(self.requests):
            self._report(index, request)

    def abort(self, reason: str) -> None:
        """Ends what is not finished; whoever waits for it gets an error. reason: for the metrics."""
        if not all(stream.finished for stream in self._streams):
            self._abort_reason = reason
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
                    left -= self._note(0, delta)
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
                        missing[index] -= self._note(index, delta)
                        yield index, delta
                    if missing[index]:
                        waiting[asyncio.ensure_future(self._streams[index].next_deltas())] = index
        finally:
            for task in waiting:
                task.cancel()

    def _note(self, index: int, delta: CompletionDelta) -> bool:
        """Returns whether the delta is its completion's last. Raises ApiError where that failed."""
        if index not in self._accepted:
            self._accepted.add(index)
            self._state.metrics.on_accepted()
        if delta.token_ids:
            now, place, request = time.monotonic(), (index, delta.index), self.requests[index]
            if index not in self._begun:
                self._begun.add(index)
                self._state.metrics.on_first_token(request.metrics())
            last, count = self._last_token.get(place), len(delta.token_ids)
            if last is None:  # the first token ends no gap, and may not have come alone
                last, count = request.completions[delta.index].metrics.first_token_time, count - 1
            if count:
                self._state.metrics.on_tokens(count, max(0.0, now - last))
            self._last_token[place] = now
        if delta.finish_reason == "error":
            raise ApiError(500, delta.error or "the completion failed", code="generation_failed")
        if (
            delta.finish_reason == "abort"
        ):  # OpenAI's APIs have no such ending, and clients would take the text for complete
            if delta.error:
                raise ApiError(504, delta.error, code="timeout")
            raise ApiError(503, "the request was aborted before its answer was complete", code="aborted")
        return delta.finish_reason is not None

    def _report(self, index: int, request: Request) -> None:
        """Tells metrics and traces how a request has ended."""
        metrics = self._state.metrics
        if isinstance(request.error, QueueFullError):
            metrics.on_rejected("max_num_queued_tokens" if "tokens" in request.error.field else "max_num_queued_reqs")
            return
        if request.error is not None and not request.request_id:  # refused for another reason
            return
        if index not in self._accepted:
            metrics.on_accepted()
        output = request.take_output()
        if any(completion.finish_reason in (None, "abort") and not completion.error for completion in output.outputs):
            metrics.on_aborted(self._abort_reason)
        else:
            metrics.on_finished(output, request.params, request.params.n)
        self._state.tracing.on_end(
            output,
            request.params,
            self._caller.trace_headers,
            operation=self._operation,
            attributes=self._attributes(output.metrics),
        )

    def _attributes(self, metrics: RequestMetrics) -> dict[str, Any]:
        """Returns what a span says about expert selection."""
        layer_steps = metrics.num_decode_steps * self._state.num_moe_layers
        return {
            "lynx.policy": self._state.policy,
            "lynx.exact": metrics.num_selected_rows == 0,
            "lynx.selected_rows": metrics.num_selected_rows,
            "lynx.experts_read_per_layer": metrics.num_experts_read / layer_steps if layer_steps else None,
        }
