"""Files that commands read and write: text of any editor in, and results only where they can be written."""

from __future__ import annotations

import codecs
import os
import sys
from pathlib import Path

from lynx_rt.errors import ValidationError

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(file: Path, name: str = "file") -> str:
    """The text of a UTF-8 file, "-" = standard input; without a byte order mark, with "\\n" at the ends of lines.

    Raises OSError, and ValidationError for field `name` that says which byte of which file is not UTF-8.
    """
    if str(file) != "-":
        return decode_text(file.read_bytes(), str(file), name)
    if sys.stdin is None:
        raise ValidationError("standard input is closed", name)
    raw = getattr(sys.stdin, "buffer", None)  # a test's own stream may hold text
    return decode_text(raw.read(), "standard input", name) if raw is not None else sys.stdin.read()


def decode_text(content: bytes, source: str, name: str = "file") -> str:
    """As read_text(), of bytes that came from `source`."""
    if content.startswith(_UTF16):
        raise ValidationError(f"{source} is UTF-16, not UTF-8: `iconv -f utf-16 -t utf-8` makes it that", name)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = error.start + (len(codecs.BOM_UTF8) if content.startswith(codecs.BOM_UTF8) else 0)
        raise ValidationError(
            f"{source} is not UTF-8 text: byte {start} is 0x{content[start]:02x} (line {content.count(10, 0, start) + 1}); "
            "`iconv -f latin1 -t utf-8` converts Latin-1",
            name,
        ) from None
    return text.replace("\r\n", "\n")


def check_output(file: Path | None, name: str) -> None:
    """Raises ValidationError for field `name` where a file could not be written: for before the work, not after it."""
    if file is None:
        return
    folder = file.parent
    if file.is_dir():
        raise ValidationError(f"--{name}: {file} is a folder, expected a file", name)
    if not folder.is_dir():
        raise ValidationError(f"--{name}: the folder {folder} of {file.name} does not exist", name)
    if not os.access(file if file.exists() else folder, os.W_OK):
        raise ValidationError(f"--{name}: {file} cannot be written", name)


def check_output_folder(folder: Path, name: str) -> None:
    """Makes the folder; raises ValidationError for field `name` where that or writing to it is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a file" if folder.exists() else error.strerror
        raise ValidationError(f"--{name}: {folder} cannot be a folder: {reason}", name) from None
    if not os.access(folder, os.W_OK):
        raise ValidationError(f"--{name}: {folder} cannot be written to", name)
