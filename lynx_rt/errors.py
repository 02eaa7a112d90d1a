"""The exceptions of lynx_rt: one class per error code of the C++ library.

The compiled module raises these very classes, so one `except` covers both layers. `str(error)` says what was expected
and what was found; `error.field` names the argument, key, tensor or file at fault, and is empty where there is none.
"""

_SHOWN_CHARS = 200


class LynxError(Exception):
    """Everything that lynx_rt raises on purpose.

    message: the whole text.  field: what is at fault ("temperature", "model.layers.0.mlp.gate.weight"), or "".
    """

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)  # one argument only: OSError would read two as errno and strerror
        self.field = field


class ValidationError(LynxError, ValueError):
    """A value passed by the caller is out of range, malformed or of the wrong shape."""


class ModelNotFoundError(LynxError, FileNotFoundError):
    """A model folder or one of its files does not exist."""


class UnsupportedModelError(LynxError):
    """A model, option or value is understood, but this build or version does not support it."""


class CheckpointError(LynxError):
    """A checkpoint file or config contradicts itself or its format."""


class OutOfMemoryError(LynxError, MemoryError):
    """Memory is too small; the text says how much is needed and what would make it fit."""


class QueueFullError(LynxError):
    """More requests or prompt tokens would wait than `max_num_queued_reqs` or `max_num_queued_tokens` allows."""


class RequestAborted(LynxError):
    """A request whose result was needed was aborted by someone else."""


class EngineClosedError(LynxError):
    """The engine has been closed, belongs to the process that this one was forked from, or the interpreter is exiting."""


class DeviceError(LynxError):
    """The device or its driver failed."""


class InternalError(LynxError):
    """A broken invariant of this library: a bug worth reporting."""


def shown(value: object) -> str:
    """A value as error texts show it: its repr, cut where it is long. Some values have no repr (integers of 4300 digits)."""
    try:
        text = repr(value)
    except Exception:
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}... ({len(text)} characters)"


def encoding_fault(text: str) -> str | None:
    """Why a text cannot be encoded as UTF-8 (a lone surrogate); None where it can."""
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"text cannot be encoded as UTF-8: {error.reason} at character {error.start}"
    return None
