"""Reads text from a file or standard input, and checks that results can be written."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from lynx_rt.errors import ValidationError
from lynx_rt.text.text_file import decode_text, read_text


def read_input(file: Path, field: str) -> str:
    """Returns the text of a file, or of standard input for "-", as read_text() does."""
    if str(file) != "-":
        return read_text(file, field)
    if sys.stdin is None:
        raise ValidationError("standard input is closed", field)
    raw = getattr(sys.stdin, "buffer", None)  # a stream that a caller put there may hold text
    return decode_text(raw.read(), "standard input", field) if raw is not None else sys.stdin.read()


def check_output(file: Path | None, name: str) -> None:
    """Raises ValidationError for field `name` if a file could not be written; to be called before the work."""
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
    """Makes the folder. Raises ValidationError for field `name` if that or writing to it is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a file" if folder.exists() else error.strerror
        raise ValidationError(f"--{name}: {folder} cannot be a folder: {reason}", name) from None
    if not os.access(folder, os.W_OK):
        raise ValidationError(f"--{name}: {folder} cannot be written to", name)
