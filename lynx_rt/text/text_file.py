"""Reads text files as editors write them."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

from lynx_rt.errors import ValidationError

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(file: str | os.PathLike[str], field: str) -> str:
    """Returns the text of a UTF-8 file, without a byte order mark, with "\\n" at the ends of lines.

    Raises OSError, and ValidationError for `field` that says which byte of which file is not UTF-8.
    """
    return decode_text(Path(file).read_bytes(), os.fspath(file), field)


def decode_text(content: bytes, source: str, field: str) -> str:
    """Returns the text of a file's bytes, as read_text() does; errors name `source`."""
    if content.startswith(_UTF16):
        raise ValidationError(f"{source} is UTF-16, not UTF-8: `iconv -f utf-16 -t utf-8` makes it that", field)
    body = content.removeprefix(codecs.BOM_UTF8)
    try:
        return body.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        raise ValidationError(
            f"{source} is not UTF-8 text: byte {len(content) - len(body) + error.start} is 0x{body[error.start]:02x} "
            f"(line {line}); `iconv -f latin1 -t utf-8` converts Latin-1",
            field,
        ) from None
