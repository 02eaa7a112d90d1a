"""Finds stop strings in a stream of text: cuts the text at one, and holds back an end that may become one."""

from __future__ import annotations

from collections.abc import Sequence


class StopFilter:
    """Keeps the visible text of one completion. Not thread-safe.

    The stop string that ends first wins (the longest of those, if several end there), so the result depends on the text
    alone, and not on the pieces in which it came.
    """

    def __init__(self, stops: Sequence[str] = (), include_stop: bool = False) -> None:
        self._stops = tuple(stops)
        self._include_stop = include_stop
        self._held = ""  # the longest end of the text that is the start of a stop string
        self._fresh: list[str] = []  # visible, not yet taken
        self._taken: list[str] = []
        self.stopped_by: str | None = None

    @property
    def text(self) -> str:
        """What is visible and taken."""
        if len(self._taken) > 1:
            self._taken = ["".join(self._taken)]
        return self._taken[0] if self._taken else ""

    def add(self, delta: str, armed: bool = True) -> bool:
        """Appends text; returns True once a stop string is complete. Unarmed text may begin a stop string but not complete it."""
        if not delta or self.stopped_by is not None:
            return self.stopped_by is not None
        if not self._stops:
            self._fresh.append(delta)
            return False
        window = self._held + delta
        if armed and (found := self._first_stop(window)) is not None:
            start, end, self.stopped_by = found
            self._fresh.append(window[: end if self._include_stop else start])
            self._held = ""
            return True
        cut = len(window) - self._open_prefix(window)
        self._fresh.append(window[:cut])
        self._held = window[cut:]
        return False

    def finish(self) -> None:
        """Shows the text that was held back; no more text will come."""
        self._fresh.append(self._held)
        self._held = ""

    def append(self, text: str) -> None:
        """Shows text without a search for stop strings; to be called after finish()."""
        self._fresh.append(text)

    def take(self) -> str:
        """Returns the text that became visible since the last call."""
        fresh = self._fresh
        delta = fresh[0] if len(fresh) == 1 else "".join(fresh)
        fresh.clear()
        if delta:
            self._taken.append(delta)
        return delta

    def _first_stop(self, window: str) -> tuple[int, int, str] | None:
        """Returns (start, end, stop) of the stop string that ends first, among those that end in the new text."""
        held = len(self._held)
        ends = []
        for stop in self._stops:
            start = window.find(stop, max(0, held + 1 - len(stop)))
            if start >= 0:
                ends.append((start + len(stop), start, stop))
        if not ends:
            return None
        end, start, stop = min(ends)
        return start, end, stop

    def _open_prefix(self, window: str) -> int:
        """Returns the length of the longest end of `window` that is the start of a stop string."""
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(window)), longest, -1):
                if window.endswith(stop[:size]):
                    longest = size
                    break
        return longest
