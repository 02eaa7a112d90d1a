"""Keeps llguidance's calls within the life of the interpreter.

llguidance releases Python's lock (GIL) while it works, and a thread that comes back from it to an interpreter that has ended
crashes the process. So the exit waits for the call that runs, and other threads' later calls are refused.
"""

from __future__ import annotations

import atexit
import os
import threading
from types import TracebackType

from lynx_rt.errors import EngineClosedError

_lock = threading.Lock()
_exiting_thread = 0  # the one that runs the hooks at exit; 0 = the interpreter is not exiting


class _NativeCall:
    """The context of one call, which must be short: one runs at a time. Raises EngineClosedError when the interpreter exits."""

    def __enter__(self) -> None:
        _lock.acquire()
        if _exiting_thread not in (0, threading.get_ident()):
            _lock.release()
            raise EngineClosedError("the interpreter is exiting")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _lock.release()


native_call = _NativeCall()


def _exit() -> None:
    global _exiting_thread
    with _lock:
        _exiting_thread = threading.get_ident()


def _renew() -> None:
    """Makes a new lock in the child of a fork: a thread of the parent may have been in a call."""
    global _lock
    _lock = threading.Lock()


atexit.register(_exit)
os.register_at_fork(after_in_child=_renew)
