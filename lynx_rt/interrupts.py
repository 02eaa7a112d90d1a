"""Ctrl-C at safe points only."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class DeferInterrupts:
    """Within the block, SIGINT waits until `check()` or the end of the block, and then goes to the handler it found.

    A KeyboardInterrupt in the middle of handing out a step's results would lose tokens of other threads' requests.
    Python runs signal handlers in the main thread only, so elsewhere this does nothing. Blocks may be nested.
    """

    def __enter__(self) -> DeferInterrupts:
        self._pending: tuple[int, FrameType | None] | None = None
        self._handler: Any = None
        if threading.current_thread() is threading.main_thread():
            handler = signal.getsignal(signal.SIGINT)
            if callable(handler):  # not where SIGINT is ignored or ends the process
                self._handler = handler
                signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            self.check()

    def check(self) -> None:
        """Delivers an interrupt that came in meanwhile; the usual handler raises KeyboardInterrupt."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._handler(*pending)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._pending = (number, frame)
