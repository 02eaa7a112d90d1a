"""Delivers signals at safe points only."""

from __future__ import annotations

import functools
import os
import signal
import threading
from types import CodeType, FrameType, TracebackType
from typing import Any

# Signals whose handlers usually raise, to end the program or its current work.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGALRM", "SIGUSR1", "SIGUSR2")
_SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]


def comes_from_signal_handler(error: BaseException) -> bool:
    """Whether a signal's handler raised the error, as for a time limit: then the interrupted call is not at fault."""
    codes = {code for number in signal.valid_signals() if (code := _code_of(signal.getsignal(number))) is not None}
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code in codes:
            return True
        trace = trace.tb_next
    return False


def _code_of(handler: Any) -> CodeType | None:
    while isinstance(handler, functools.partial):
        handler = handler.func
    function = getattr(handler, "__func__", handler)
    if not hasattr(function, "__code__"):
        function = type(handler).__call__ if callable(handler) else None  # a callable object
    return getattr(function, "__code__", None)


class DeferInterrupts:
    """Holds signals back until `check()` or the end of its block; they then go to the handlers that it found.

    A KeyboardInterrupt while a step's results are handed out would lose tokens of other threads' requests, and so would an
    exception of another signal's handler. Python runs signal handlers in the main thread only, so elsewhere this does
    nothing. Blocks may be nested.
    """

    def __enter__(self) -> DeferInterrupts:
        self._pending: list[tuple[Any, int, FrameType | None]] = []  # handler and its arguments
        self._handlers: dict[int, Any] = {}  # signal -> the handler that it had before the block
        self._pid = os.getpid()
        if threading.current_thread() is threading.main_thread():
            try:
                for number in _SIGNALS:
                    handler = signal.getsignal(number)
                    if callable(handler):  # an ignored or default signal has none
                        self._handlers[number] = handler
                        signal.signal(number, self._note)
            except BaseException:  # a signal came whose handler was not replaced yet
                self._restore()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        self.check()

    def check(self) -> None:
        """Delivers the signals that came in meanwhile; SIGINT's usual handler raises KeyboardInterrupt."""
        while self._pending:
            handler, number, frame = self._pending.pop(0)
            handler(number, frame)

    def _restore(self) -> None:
        try:
            while self._handlers:
                number, handler = next(iter(self._handlers.items()))
                signal.signal(number, handler)
                del self._handlers[number]
        finally:
            if self._handlers:  # a handler that was put back first has raised
                self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        handler = self._handlers[number]
        if os.getpid() != self._pid:  # child of a fork in another thread: it never reaches the end of the block
            handler(number, frame)
        else:
            self._pending.append((handler, number, frame))
