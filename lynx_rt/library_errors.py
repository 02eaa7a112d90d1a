"""Turns what other libraries raise into LynxErrors: Exceptions, panics of Rust code, RecursionErrors of deep input."""

from __future__ import annotations

from types import TracebackType

from lynx_rt.errors import CheckpointError, LynxError
from lynx_rt.interrupts import comes_from_signal_handler


class Guard:
    """A context in which whatever a library raises becomes `kind`, with `message` before it. Reusable; thread-safe.

    A panic of Rust code arrives as pyo3_runtime.PanicException, a BaseException that no module exports. Interrupts, exits,
    LynxErrors and what a signal handler raises pass through unchanged.
    """

    def __init__(self, message: str, field: str = "", kind: type[LynxError] = CheckpointError) -> None:
        self._message, self._field, self._kind = message, field, kind

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, LynxError) or comes_from_signal_handler(error):
            return
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            reason = " ".join(str(error).split()) or type(error).__name__
            raise self._kind(f"{self._message}: {reason[:300]}", self._field) from None
