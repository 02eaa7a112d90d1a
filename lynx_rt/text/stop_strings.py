"""Stop strings in a stream of text: cut where one ends, and hold back what may yet become one."""

from __future__ import annotations

from collections.abc import Sequence


class StopFilter:
    """The visible text of one completion. Not thread-safe.

    The stop string that ends first wins (the longest of those, if several end there), so the result depends on the text
    alone and not on how it was cut into pieces.
    """

    def __init__(self, stops: Sequence[str] = (), include_stop: bool = False) -> None:
        self._stops = tuple(stops)
        self._include_stop = include_stop
        self._held = ""  # the longest end of the text that a stop string starts with
        self._fresh: list[str] = []  # visible, not yet taken
        self.text = ""  # visible and taken
        self.stopped_by: str | None = None

    def add(self, delta: str, armed: bool = True) -> bool:
        """Appends text; True once a stop string is complete. Unarmed text may begin one but not complete it."""
        if not delta or self.stopped_by is not None:
            return self.stopped_by is not None
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
        """No more text will come, so nothing needs to be held back."""
        self._fresh.append(self._held)
        self._held = ""

    def append(self, text: str) -> None:
        """Shows text that is not looked at; after finish()."""
        self._fresh.append(text)

    def take(self) -> str:
        """What became visible since the last call."""
        delta = "".join(self._fresh)
        self._fresh.clear()
        self.text += delta
        return delta

    def _first_stop(self, window: str) -> tuple[int, int, str] | None:
        """(start, end, stop) of the stop string that ends first, among those that end in the new text."""
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
        """Length of the longest end of `window` that is the beginning of a stop string."""
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(window)), longest, -1):
                if window.endswith(stop[:size]):
                    longest = size
                    break
        return longest
