"""Iterates over a request's output while it is generated."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import TracebackType

from lynx_rt.engine.outputs import RequestOutput
from lynx_rt.engine.request import Request


class TokenStream:
    """The result of `Engine.stream`: an iterator of RequestOutput, each with the text so far and its `delta_text`.

    Leaving it early (`close()`, the end of a `with` block, or dropping it) aborts the request. Not thread-safe.
    """

    def __init__(
        self, request: Request, wait: Callable[[Request], RequestOutput], abort: Callable[[list[Request]], int]
    ) -> None:
        self._request = request
        self._wait = wait
        self._abort = abort
        self._done = False

    @property
    def request_id(self) -> str:
        """The id that the caller gave, or else the engine's own; for `Engine.abort`."""
        return self._request.request_id

    def __iter__(self) -> TokenStream:
        return self

    def __next__(self) -> RequestOutput:
        """Waits for new text or tokens. One output may hold several tokens, and text may be held back."""
        if self._done:
            raise StopIteration
        try:
            output = self._wait(self._request)
        except BaseException:
            self.close()
            raise
        self._done = output.finished
        return output

    def close(self) -> None:
        """Aborts the request if it is not finished. Idempotent."""
        self._done = True
        self._abort([self._request])

    def __enter__(self) -> TokenStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()
