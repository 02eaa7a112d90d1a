"""Keeps llguidance's calls within the life of the interpreter.

llguidance releases Python's lock (GIL) while it works, and a thread that comes back from it to an interpreter that has ended
crashes the process. So the exit waits for the call that runs, and other threads' later calls are refused.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from typing import TypeVar

from lynx_rt.errors import EngineClosedError

T = TypeVar("T")
_lock = threading.Lock()
_exiting_thread = 0  # the one that runs the hooks at exit; 0 = the interpreter is not exiting


def native_call(call: Callable[..., T], *arguments: object) -> T:
    """Makes a call of llguidance, which must be short: one runs at a time. Raises EngineClosedError when the interpreter exits."""
    with _lock:
        if _exiting_thread not in (0, threading.get_ident()):
            raise EngineClosedError("the interpreter is exiting")
        return call(*arguments)


def _exit() -> None:
    global _exiting_thread
    with _lock:
        _exiting_thread = threading.get_ident()


atexit.register(_exit)
# A fork in the middle of a call would leave llguidance's own locks taken in the child for ever.
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)
