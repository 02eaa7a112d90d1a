"""Opens the images of prompts: files and bytes of others, which are not trusted, and images in memory.

Every image becomes RGB of 8 bits per channel. Transparent images are laid onto white, as vLLM and transformers' processors do. An
animated image is its first frame. Files and bytes are turned as their EXIF orientation says; an image of Pillow is taken as it is,
because transformers takes it so.
"""

from __future__ import annotations

import dataclasses
import io
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lynx_rt.errors import ValidationError, shown
from lynx_rt.library_errors import Guard

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

FIELD: Final = "multi_modal_data"
MAX_ASPECT: Final = 200  # transformers' smart_resize() refuses more

# Decoders that are wanted. Pillow has 40 more, each of which is code that reads what strangers send.
_FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_WIDE_GREY: Final = ("I;16", "I;16L", "I;16B", "I;16N", "I")


@dataclasses.dataclass(frozen=True)
class ImageLimits:
    """What an image may be at most; it is looked at before the image is decoded.

    max_bytes: of the file.  max_pixels: width times height, the default being Pillow's and vLLM's.
    """

    max_bytes: int = 256 << 20
    max_pixels: int = 178_956_970


def image_from_bytes(data: bytes, name: str, limits: ImageLimits = ImageLimits()) -> NDArray[np.uint8]:
    """Returns the RGB pixels of an image file, uint8 [height, width, 3].

    name: of the image in error texts.  Raises ValidationError for a file that is too large, of an unknown format, damaged or cut off.
    """
    image = _opened(data, name, limits)
    with Guard(f"{name}: the {image.format} file is damaged or cut off", FIELD, ValidationError):
        image.load()
        image = _upright(image)
    return _rgb(image, name)


def image_from_object(value: Any, name: str, limits: ImageLimits = ImageLimits()) -> NDArray[np.uint8]:
    """Returns the RGB pixels of an image in memory, uint8 [height, width, 3].

    value: an image of Pillow; an array of uint8 [height, width], [height, width, 1], [height, width, 3] or [height, width, 4], the fourth
    channel being alpha; or the bytes of a file.  name, errors: as image_from_bytes().
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        return image_from_bytes(bytes(value), name, limits)
    pillow = _pillow()
    if isinstance(value, np.ndarray):
        height, width = _array_size(value, name)
        _check_size(width, height, name, limits)
        grey = value.ndim == 3 and value.shape[2] == 1
        value = pillow.fromarray(np.ascontiguousarray(value[..., 0] if grey else value))
    else:
        _check_is_image(value, name)
    _check_size(value.width, value.height, name, limits)
    with Guard(f"{name}: the image cannot be read", FIELD, ValidationError):
        value.load()
    return _rgb(value, name)


def image_size(value: Any, name: str, limits: ImageLimits = ImageLimits()) -> tuple[int, int]:
    """Returns the height and width of an image in pixels; of a file it reads the header alone, so that nothing large is decoded.

    A file's EXIF orientation may turn it, which exchanges the two.  value, name, errors: as image_from_object().
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        value = _opened(bytes(value), name, limits)
        return value.height, value.width
    if isinstance(value, np.ndarray):
        height, width = _array_size(value, name)
    else:
        _check_is_image(value, name)
        height, width = value.height, value.width
    _check_size(width, height, name, limits)
    return height, width


def _opened(data: bytes, name: str, limits: ImageLimits) -> Image.Image:
    """Returns an image of which the header is read."""
    pillow = _pillow()
    if len(data) > limits.max_bytes:
        raise ValidationError(f"{name}: {len(data)} bytes, expected at most {limits.max_bytes}", FIELD)
    with Guard(f"{name}: not an image of {', '.join(_FORMATS)} that can be read", FIELD, ValidationError):
        image: Image.Image = pillow.open(io.BytesIO(data), formats=_FORMATS)
    _check_size(image.width, image.height, name, limits)
    return image


def _array_size(value: NDArray[Any], name: str) -> tuple[int, int]:
    channels = value.shape[2] if value.ndim == 3 else 1
    if value.dtype != np.uint8 or value.ndim not in (2, 3) or channels not in (1, 3, 4):
        found = f"{value.dtype} {list(value.shape)}"
        raise ValidationError(f"{name}: expected uint8 [height, width, 3], got {found}", FIELD)
    return value.shape[0], value.shape[1]


def _check_is_image(value: Any, name: str) -> None:
    if not isinstance(value, _pillow().Image):
        raise ValidationError(
            f"{name}: expected an image of Pillow, an array of uint8 [height, width, 3] or the bytes of a file, got {shown(value)}",
            FIELD,
        )


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ValidationError(
            f'images need Pillow, which cannot be imported ({error}): pip install "lynx_rt[vision]"', FIELD
        ) from None
    return Image


def _check_size(width: int, height: int, name: str, limits: ImageLimits) -> None:
    if width < 1 or height < 1:
        raise ValidationError(f"{name}: {width} x {height} pixels, expected at least one", FIELD)
    if width * height > limits.max_pixels:
        raise ValidationError(
            f"{name}: {width} x {height} pixels, expected at most {limits.max_pixels} in all; it was not decoded", FIELD
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValidationError(
            f"{name}: {width} x {height} pixels, expected sides of a ratio of at most {MAX_ASPECT}", FIELD
        )


def _upright(image: Image.Image) -> Image.Image:
    """Turns an image as its EXIF orientation says. One whose EXIF part is damaged stays as it is stored: its pixels are whole."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _rgb(image: Image.Image, name: str) -> NDArray[np.uint8]:
    if image.mode == "F":
        raise ValidationError(f"{name}: pixels of floating point, expected 8 or 16 bits per channel", FIELD)
    with Guard(f"{name}: the image cannot be converted to RGB", FIELD, ValidationError):
        if image.mode in _WIDE_GREY:
            # The high byte, which is what Pillow keeps of 16-bit colours; its convert() would make everything above 255 white.
            wide = np.asarray(image).astype(np.int64)
            grey = np.clip(wide >> 8, 0, 255).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        if "A" in image.getbands() or "a" in image.getbands() or image.info.get("transparency") is not None:
            image = image.convert("RGBA")
            white = _pillow().new("RGBA", image.size, (255, 255, 255, 255))
            image = _pillow().alpha_composite(white, image)
        return np.array(image.convert("RGB"))  # a copy, which Pillow's image does not share
