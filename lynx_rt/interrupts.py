"""Signals at safe points only."""

from __future__ import annotations

import functools
import os
import signal
import threading
from types import CodeType, FrameType, TracebackType
from typing import Any

# Those whose handlers usually raise, to end the program or what it does at the moment.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGALRM", "SIGUSR1", "SIGUSR2")
_SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]


def comes_from_signal_handler(error: BaseException) -> bool:
    """Whether the handler of a signal raised it, as for a time limit: no fault of the call that the signal interrupted."""
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
        function = type(handler).__call__ if callable(handler) else None  # an object that is called
    return getattr(function, "__code__", None)


class DeferInterrupts:
    """Within the block, signals wait until `check()` or the end of the block, and then go to the handlers it found.

    A KeyboardInterrupt in the middle of handing out a step's results would lose tokens of other threads' requests; so would
    what handlers of other signals raise. Python runs signal handlers in the main thread only, so elsewhere this does nothing.
    Blocks may be nested.
    """

    def __enter__(self) -> DeferInterrupts:
        self._pending: list[tuple[Any, int, FrameType | None]] = []  # handler and its arguments
        self._handlers: dict[int, Any] = {}  # of the signals that wait
        self._pid = os.getpid()
        if threading.current_thread() is threading.main_thread():
            try:
                for number in _SIGNALS:
                    handler = signal.getsignal(number)
                    if callable(handler):  # not where the signal is ignored or ends the process
                        self._handlers[number] = handler
                        signal.signal(number, self._note)
            except BaseException:  # from the handler of a signal whose turn had not come
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
            if self._handlers:  # a handler that is back already raised
                self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        handler = self._handlers[number]
        if os.getpid() != self._pid:  # the child of a fork in another thread: nobody comes to the end of the block here
            handler(number, frame)
        else:
            self._pending.append((handler, number, frame))
