"""Writes safetensors files, the form in which the engine reads the tables of expert-selection policies."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_NAMES = {"float32": "F32", "int32": "I32"}


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, NDArray[np.generic]], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes float32 and int32 arrays. An existing file is replaced by renaming, because an engine may have it mapped."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    data = b""
    for name, array in tensors.items():
        start = len(data)
        data += array.astype(array.dtype.newbyteorder("<")).tobytes()
        header[name] = {
            "dtype": _NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [start, len(data)],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    part = Path(f"{os.fspath(path)}.part")
    part.write_bytes(len(text).to_bytes(8, "little") + text + data)
    part.replace(path)
