"""How often each expert is read, in windows that are too coarse to tell what the tokens of a text have chosen."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lynx_rt.engine.engine import Engine

_MIN_ROWS = 128  # decode rows of a window


class ExpertWindows:
    """Windows of Engine.expert_counts(), one after the other and the same for all who ask. Thread-safe.

    A window ends at the first look after it has 128 decode rows. Until the next one has, looks get the last.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._layers = [layer.layer for layer in engine.stats().layers]
        self._begin = engine.expert_counts()
        self._begin_time = time.monotonic()
        self._last: dict[str, Any] = {"number": 0, "seconds": 0.0, "steps": 0, "rows": 0, "wanted": [], "read": []}

    @property
    def counts_experts(self) -> bool:
        """Whether the engine's device says which experts it reads."""
        return len(self._begin.read) == len(self._layers)

    def look(self) -> dict[str, Any]:
        """Returns the last window that has ended; its number is 0 while there is none. Waits for a step in progress."""
        with self._lock:
            begin, end = self._begin, self._engine.expert_counts()
            if end.rows - begin.rows >= _MIN_ROWS:
                now = time.monotonic()
                self._last = {
                    "number": self._last["number"] + 1,
                    "seconds": now - self._begin_time,
                    "steps": end.steps - begin.steps,
                    "rows": end.rows - begin.rows,
                    "wanted": (end.wanted - begin.wanted).tolist(),
                    "read": (end.read - begin.read).tolist(),
                }
                self._begin, self._begin_time = end, now
            return {**self._last, "layers": self._layers}
