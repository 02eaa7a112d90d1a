"""Reads the files of images that are named by a URL or a path: data: URLs, and files of one folder that may be read.

A URL is text of strangers. file: is refused outside of a folder that was allowed, and http: is refused here: the server fetches images
by itself (`lynx_rt.server.fetch`).
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
import urllib.parse
from pathlib import Path
from typing import Any, Final

from lynx_rt.errors import ValidationError, shown
from lynx_rt.vision.image import FIELD, ImageLimits

_LIMITS: Final = ImageLimits()
_BASE64_LINE_BREAKS: Final = str.maketrans("", "", " \t\r\n")


def read_source(
    value: Any, name: str, limits: ImageLimits = _LIMITS, allowed_folder: str | os.PathLike[str] | None = None
) -> Any:
    """Returns the bytes of the file that a URL or a path names; any other value as it is.

    value: text is a URL (data:, file:), a path object is a file that the program itself has chosen.  name: of the image in error texts.
    allowed_folder: whose files file: may name, those of its folders included; None = no file.
    Raises ValidationError.
    """
    if isinstance(value, os.PathLike):
        return read_image_file(Path(value), name, limits)
    if not isinstance(value, str):
        return value
    scheme = value.partition(":")[0].strip().lower() if ":" in value[:16] else ""
    if scheme == "data":
        return _decoded(value.strip(), name, limits)
    if scheme == "file":
        return read_image_file(_allowed_path(value, name, allowed_folder), name, limits)
    if scheme in ("http", "https"):
        raise ValidationError(
            f"{name}: images are not fetched from the network here; send a data: URL (a server fetches from the hosts of "
            "--allowed-media-domains)",
            FIELD,
        )
    raise ValidationError(f"{name}: expected a URL with data: or file:, got {shown(value[:80])}", FIELD)


def _decoded(url: str, name: str, limits: ImageLimits) -> bytes:
    """Returns the bytes of data:image/png;base64,..."""
    head, comma, text = url.partition(",")
    kind, *options = head.partition(":")[2].split(";")
    if not comma or "base64" not in (option.strip().lower() for option in options):
        raise ValidationError(f"{name}: expected data:image/TYPE;base64,..., got {shown(url[:40])}", FIELD)
    if not kind.strip().lower().startswith("image/"):
        raise ValidationError(f"{name}: expected a data: URL of an image, got the type {shown(kind[:40])}", FIELD)
    if len(text) // 4 * 3 > limits.max_bytes + 2:
        raise ValidationError(f"{name}: about {len(text) // 4 * 3} bytes, expected at most {limits.max_bytes}", FIELD)
    text = urllib.parse.unquote(text) if "%" in text else text
    try:
        return base64.b64decode(text.translate(_BASE64_LINE_BREAKS), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValidationError(f"{name}: the base64 of the data: URL is not valid: {error}", FIELD) from None


def _allowed_path(url: str, name: str, allowed_folder: str | os.PathLike[str] | None) -> Path:
    if allowed_folder is None:
        raise ValidationError(f"{name}: file: URLs are refused without allowed_local_media_path", FIELD)
    parts = urllib.parse.urlsplit(url.strip())
    text = urllib.parse.unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not text.startswith("/") or "\0" in text:
        raise ValidationError(f"{name}: expected file:///PATH, got {shown(url[:80])}", FIELD)
    # Links are followed before the comparison, so that none leads out of the folder. What is outside is refused alike, there or not.
    path = Path(os.path.realpath(text))
    if not path.is_relative_to(os.path.realpath(allowed_folder)):
        raise ValidationError(f"{name}: the file is not in allowed_local_media_path", FIELD)
    return path


def read_image_file(path: Path, name: str, limits: ImageLimits = _LIMITS) -> bytes:
    """Returns a file's bytes. Raises ValidationError for one that is no regular file, is too large or cannot be read."""
    try:
        with open(path, "rb", opener=_open) as file:
            found = os.fstat(file.fileno())
            if stat.S_ISREG(found.st_mode) and found.st_size <= limits.max_bytes:
                return file.read(limits.max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ValidationError(f"{name}: {path.name} cannot be read: {reason}", FIELD) from None
    fault = f"{found.st_size} bytes, expected at most {limits.max_bytes}"
    raise ValidationError(f"{name}: {fault if stat.S_ISREG(found.st_mode) else f'{path.name} is no file'}", FIELD)


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe that nobody writes to would be waited for
