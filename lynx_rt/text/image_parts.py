"""The images of a prompt, as callers give them: beside a text (vLLM's multi_modal_data), or among the parts of a chat's messages.

They are found and named here, and opened by `lynx_rt.engine.images`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lynx_rt.errors import ValidationError, shown

DATA = "multi_modal_data"
KWARGS = "mm_processor_kwargs"
UUIDS = "multi_modal_uuids"
# Type of a content part -> the keys of its image, of which the first that is there counts.
_SOURCES = {
    "image": ("image", "url", "image_url"),  # transformers
    "image_url": ("image_url",),  # OpenAI's chats
    "input_image": ("image_url",),  # OpenAI's responses
    "image_pil": ("image_pil",),  # vLLM
}
PLACEHOLDER = {"type": "image"}  # what a chat template sees of an image


@dataclass(slots=True)
class ImageSource:
    """One image of a prompt.

    value: an image of Pillow, an array, bytes or path of a file, or a URL as text.  name: of the image in error texts.  field: of the
    caller's argument that it came in.  position, num_tokens: of its tokens in the prompt, once that is known.
    """

    value: Any
    name: str
    field: str
    position: int = -1
    num_tokens: int = 0


def image_kind(part: Any) -> str | None:
    """Returns the type of a content part that is an image ("image_url", ...), None for any other part."""
    kind = part.get("type") if isinstance(part, Mapping) else getattr(part, "type", None)
    if kind is None and isinstance(part, Mapping) and "text" not in part:
        kind = next((name for name in _SOURCES if name in part), None)
    return kind if isinstance(kind, str) and kind in _SOURCES else None


def image_url(part: Any) -> tuple[dict[str, Any], str] | None:
    """Returns the dict that holds an image part's URL, and its key there; None where the part has no URL as text."""
    kind = image_kind(part)
    for key in _SOURCES[kind] if kind is not None and isinstance(part, dict) else ():
        holder, name = (part[key], "url") if isinstance(part.get(key), dict) else (part, key)
        if isinstance(holder.get(name), str):
            return holder, name
    return None


def take_images(content: Any, name: str, images: list[ImageSource], plain: Callable[[Any, str], Any]) -> Any:
    """Returns a message's content with a placeholder for each image, and adds the images to `images`.

    name: of the content, for errors.  plain: brings a part that is an object (of pydantic, a dataclass) to plain types.
    """
    if not isinstance(content, (list, tuple)):
        return content
    parts = []
    for place, part in enumerate(content):
        kind = image_kind(part)
        if kind is None:
            parts.append(part)
            continue
        here = f"{name}[{place}]"
        fields = part if isinstance(part, Mapping) else plain(part, here)
        images.append(_source(fields, kind, here))
        parts.append(dict(PLACEHOLDER))
    return parts


def _source(part: Mapping[str, Any], kind: str, name: str) -> ImageSource:
    key = next((key for key in _SOURCES[kind] if part.get(key) is not None), None)
    if key is None:
        more = "; files are not kept here: send the image" if part.get("file_id") is not None else ""
        raise ValidationError(f"{name} is of type {kind!r} and must have {_SOURCES[kind][0]!r}{more}", "messages")
    value = part[key]
    if key == "image_url" and isinstance(value, Mapping):
        if not isinstance(value.get("url"), (str, bytes)):
            raise ValidationError(f"{name}.image_url.url must be a text, got {shown(value.get('url'))}", "messages")
        value = value["url"]
    return ImageSource(value, name, "messages")


def images_beside(given: Mapping[str, Any], label: str) -> list[ImageSource]:
    """Returns the images of a dict prompt's multi_modal_data: {"image": one image or a list of them}.

    Raises ValidationError for other media, and for multi_modal_uuids that do not fit.
    """
    data = given.get(DATA, {})
    if not isinstance(data, Mapping):
        raise ValidationError(f"{label}: {DATA!r} must be a dict such as {{'image': image}}, got {shown(data)}", DATA)
    for medium, value in data.items():
        if medium != "image" and value is not None:
            raise ValidationError(f"{label}: {DATA!r} has {shown(medium)}, and this engine reads images only", DATA)
    value = data.get("image")
    if isinstance(value, Mapping):
        raise ValidationError(f"{label}: {DATA}['image'] must be an image or a list of them, got {shown(value)}", DATA)
    each = list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]
    images = [ImageSource(item, f"{label}: {DATA}['image'][{place}]", DATA) for place, item in enumerate(each)]
    _check_uuids(given.get(UUIDS, {}), len(images), label)
    return images


def _check_uuids(uuids: Any, count: int, label: str) -> None:
    """Checks names of images, which change nothing: images are known by their content."""
    names = uuids.get("image") or () if isinstance(uuids, Mapping) else None
    each = [names] if isinstance(names, str) else names
    fits = isinstance(each, (list, tuple)) and all(name is None or isinstance(name, str) for name in each)
    if not fits or (each and len(each) != count):
        raise ValidationError(
            f"{label}: {UUIDS!r} must be {{'image': a name or None for each of the {count} images}}, got {shown(uuids)}",
            UUIDS,
        )


def max_pixels_of(kwargs: Any, label: str = "") -> int | None:
    """Returns the max_pixels of mm_processor_kwargs, None where it says nothing. label: of the prompt, for errors."""
    start = f"{label}: " if label else ""
    if kwargs is None:
        return None
    if not isinstance(kwargs, Mapping):
        raise ValidationError(
            f"{start}{KWARGS} must be a dict such as {{'max_pixels': 262144}}, got {shown(kwargs)}", KWARGS
        )
    if unknown := [key for key in kwargs if key != "max_pixels"]:
        raise ValidationError(f"{start}{KWARGS} may have 'max_pixels', got {shown(unknown[0])}", KWARGS)
    value = kwargs.get("max_pixels")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValidationError(f"{start}{KWARGS}['max_pixels'] must be a positive integer, got {shown(value)}", KWARGS)
    return value
