"""lynx_rt: inference of Mixture-of-Experts language models in C++, with a thin Python layer.

    import lynx_rt
    with lynx_rt.Engine(lynx_rt.shipped_model()) as engine:
        print(engine.generate("Q: 12 times 22 = ?\\nA:")[0])

Names are imported when first used, so that `import lynx_rt` itself costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lynx_rt.engine.engine import Engine
    from lynx_rt.engine.outputs import (
        CompletionOutput,
        EngineStats,
        ExpertStats,
        Logprob,
        RequestMetrics,
        RequestOutput,
    )
    from lynx_rt.engine.sampling_params import SamplingParams
    from lynx_rt.engine.stream import TokenStream
    from lynx_rt.errors import (
        CheckpointError,
        DeviceError,
        EngineClosedError,
        InternalError,
        LynxError,
        ModelNotFoundError,
        OutOfMemoryError,
        QueueFullError,
        RequestAborted,
        UnsupportedModelError,
        ValidationError,
    )
    from lynx_rt.text.response import ParsedResponse, ResponseDelta, ResponseFormat, ToolCall, ToolCallDelta
    from lynx_rt.text.structured.spec import StructuredOutputs
    from lynx_rt.text.tokenizer import Tokenizer

    __version__: str

_ERRORS = (
    "CheckpointError",
    "DeviceError",
    "EngineClosedError",
    "InternalError",
    "LynxError",
    "ModelNotFoundError",
    "OutOfMemoryError",
    "QueueFullError",
    "RequestAborted",
    "UnsupportedModelError",
    "ValidationError",
)
_OUTPUTS = ("CompletionOutput", "EngineStats", "ExpertStats", "Logprob", "RequestMetrics", "RequestOutput")
_RESPONSES = ("ParsedResponse", "ResponseDelta", "ResponseFormat", "ToolCall", "ToolCallDelta")
_MODULE_OF = {
    "Engine": "engine.engine",
    "SamplingParams": "engine.sampling_params",
    "StructuredOutputs": "text.structured.spec",
    "TokenStream": "engine.stream",
    "Tokenizer": "text.tokenizer",
    **dict.fromkeys(_RESPONSES, "text.response"),
    **dict.fromkeys(_ERRORS, "errors"),
    **dict.fromkeys(_OUTPUTS, "engine.outputs"),
}

__all__ = [
    "CheckpointError",
    "CompletionOutput",
    "DeviceError",
    "Engine",
    "EngineClosedError",
    "EngineStats",
    "ExpertStats",
    "InternalError",
    "Logprob",
    "LynxError",
    "ModelNotFoundError",
    "OutOfMemoryError",
    "ParsedResponse",
    "QueueFullError",
    "RequestAborted",
    "RequestMetrics",
    "RequestOutput",
    "ResponseDelta",
    "ResponseFormat",
    "SamplingParams",
    "StructuredOutputs",
    "TokenStream",
    "Tokenizer",
    "ToolCall",
    "ToolCallDelta",
    "UnsupportedModelError",
    "ValidationError",
    "shipped_model",
]


def shipped_model() -> str:
    """Path of lynx-nano, the small trained MoE that comes with the package."""
    from pathlib import Path

    return str(Path(__file__).parent / "models" / "lynx-nano")


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("lynx_rt")
    except metadata.PackageNotFoundError:  # run from a source tree
        return str(__getattr__("_C").build_info()["version"])


def __getattr__(name: str) -> Any:
    if name == "_C":
        try:
            return importlib.import_module("lynx_rt._C")
        except ModuleNotFoundError as error:
            if error.name != "lynx_rt._C":
                raise
            raise ImportError(
                "the compiled part of lynx_rt is missing: this is a source tree that has not been built. "
                "Run `pip install .` in it (CMake's output says which step failed), or start Python outside of it."
            ) from error
    if name == "__version__":
        value: Any = _version()
    elif name in _MODULE_OF:
        value = getattr(importlib.import_module(f"lynx_rt.{_MODULE_OF[name]}"), name)
    else:
        raise AttributeError(f"module 'lynx_rt' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
