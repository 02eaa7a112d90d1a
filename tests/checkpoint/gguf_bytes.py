"""Reads GGUF files into parts that can be changed one by one, and writes them as they are, malformed or not.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

FORMATS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}  # by type of value
STRING, ARRAY, UINT32, FLOAT32, BOOL = 8, 9, 4, 6, 7


@dataclass
class Raw:
    """A value that is written as these bytes."""

    data: bytes


@dataclass
class Tensor:
    name: str | bytes
    dims: list[int]  # the fastest first
    kind: int
    offset: int


@dataclass
class File:
    """Metadata are (key, type, value); the value of an array is (type of its items, items)."""

    metadata: list[tuple[str | bytes, int, Any]] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    data: bytes = b""
    magic: bytes = b"GGUF"
    version: int = 3
    num_tensors: int | None = None  # None = the truth
    num_metadata: int | None = None
    alignment: int = 32

    def encode(self) -> bytes:
        counts = (
            len(self.tensors) if self.num_tensors is None else self.num_tensors,
            len(self.metadata) if self.num_metadata is None else self.num_metadata,
        )
        out = self.magic + struct.pack("<IQQ", self.version, *counts)
        for key, kind, value in self.metadata:
            out += _text(key) + struct.pack("<I", kind) + _value(kind, value)
        for t in self.tensors:
            out += _text(t.name) + struct.pack(f"<I{len(t.dims)}QIQ", len(t.dims), *t.dims, t.kind, t.offset)
        return out + bytes(-len(out) % self.alignment) + self.data


def _text(text: str | bytes | Raw) -> bytes:
    if isinstance(text, Raw):
        return text.data
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def _value(kind: int, value: Any) -> bytes:
    if isinstance(value, Raw):
        return value.data
    if kind == STRING:
        return _text(value)
    if kind == ARRAY:
        of, items = value
        return struct.pack("<IQ", of, len(items)) + b"".join(_value(of, item) for item in items)
    return struct.pack("<" + FORMATS[kind], value)


def decode(data: bytes) -> File:
    """Reads a sound file."""
    at = 4

    def take(form: str) -> Any:
        nonlocal at
        values = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize("<" + form)
        return values[0] if len(values) == 1 else list(values)

    def text() -> str:
        nonlocal at
        length = take("Q")
        at += length
        return data[at - length : at].decode()

    def value(kind: int) -> Any:
        if kind == STRING:
            return text()
        if kind == ARRAY:
            of = take("I")
            return of, [value(of) for _ in range(take("Q"))]
        return take(FORMATS[kind])

    file = File(version=take("I"))
    num_tensors, num_metadata = take("QQ")
    for _ in range(num_metadata):
        key, kind = text(), take("I")
        file.metadata.append((key, kind, value(kind)))
    for _ in range(num_tensors):
        name, dims = text(), take("I")
        sizes = [take("Q") for _ in range(dims)]
        file.tensors.append(Tensor(name, sizes, take("I"), take("Q")))
    file.data = data[at + -at % file.alignment :]
    return file
