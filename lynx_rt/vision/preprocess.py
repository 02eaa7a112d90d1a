"""Images as the rows of patches that a vision tower reads, to the bit those of transformers' Qwen2VLImageProcessorPil.

The processor of Qwen3-VL, Qwen3.5 and Qwen3.6. An image is resized (bicubic) so that both sides are multiples of patch_size * merge_size
and its area lies between min_pixels and max_pixels; scaled to [-1, 1]; and cut into patches. Rows of patches are in the order of merge
blocks: block row, block column, row in the block, column in the block. An image is its own second frame.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lynx_rt.errors import CheckpointError, UnsupportedModelError, ValidationError, shown
from lynx_rt.vision.image import FIELD, MAX_ASPECT

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FILES: Final = ("preprocessor_config.json", "processor_config.json")
_PROCESSORS: Final = ("Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen2VLImageProcessorPil")


@dataclasses.dataclass(frozen=True)
class ImageProcessorConfig:
    """What preprocessor_config.json says.

    min_pixels, max_pixels: the area of an image after resizing ("shortest_edge" and "longest_edge" of size, which are no edges).
    merge_size: merge_size^2 patches become one token.  mean, std: by channel, of values in [0, 1].
    """

    patch_size: int = 16
    temporal_patch_size: int = 2
    merge_size: int = 2
    min_pixels: int = 65536
    max_pixels: int = 16777216
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @property
    def factor(self) -> int:
        """Both sides of a resized image are multiples of this, in pixels."""
        return self.patch_size * self.merge_size

    def limited(self, max_pixels: int | None) -> ImageProcessorConfig:
        """Returns the config with a smaller max_pixels. Raises ValidationError for less than one merge block."""
        if max_pixels is None:
            return self
        least = self.factor * self.factor
        if isinstance(max_pixels, bool) or not isinstance(max_pixels, int) or max_pixels < least:
            raise ValidationError(
                f"max_pixels must be an integer of at least {least}, got {shown(max_pixels)}", "max_pixels"
            )
        area = min(self.max_pixels, max_pixels)
        return dataclasses.replace(self, max_pixels=area, min_pixels=min(self.min_pixels, area))


@dataclasses.dataclass(frozen=True)
class Patches:
    """An image as the tower reads it.

    rows: float32 [grid_height * grid_width, 3 * temporal_patch_size * patch_size^2].  grid_height, grid_width: in patches.
    digest: SHA-256 of the pixels and of every parameter that the rows depend on; equal digests have equal rows.
    """

    rows: NDArray[np.float32]
    grid_height: int
    grid_width: int
    digest: bytes


def read_image_processor(folder: Path, defaults: ImageProcessorConfig | None = None) -> ImageProcessorConfig:
    """Reads a model folder's preprocessor_config.json, or image_processor in processor_config.json.

    defaults: what counts where neither file says anything; None = the values of ImageProcessorConfig.

    Raises CheckpointError for values that cannot be, UnsupportedModelError for another processor.
    """
    for name in _FILES:
        file = folder / name
        if not file.is_file():
            continue
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{file}: not a JSON file that can be read: {error}", name) from None
        if name == _FILES[1]:
            values = values.get("image_processor") if isinstance(values, dict) else None
            if values is None:
                continue
        if not isinstance(values, dict):
            raise CheckpointError(f"{file}: expected an object, got {shown(values)}", name)
        return _config(values, file, defaults or ImageProcessorConfig())
    return defaults or ImageProcessorConfig()


def _config(values: Mapping[str, Any], file: Path, defaults: ImageProcessorConfig) -> ImageProcessorConfig:
    kind = values.get("image_processor_type", _PROCESSORS[0])
    if kind not in _PROCESSORS:
        raise UnsupportedModelError(
            f"{file}: image_processor_type {shown(kind)} is not supported, expected {_PROCESSORS[0]}",
            "image_processor_type",
        )

    def integer(key: str, default: int, source: Mapping[str, Any] = values) -> int:
        value = source.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise CheckpointError(f"{file}: {key} must be an integer of at least 1, got {shown(value)}", key)
        return value

    def channels(key: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
        value = values.get(key)
        if value is None:
            return default
        good = (
            isinstance(value, list)
            and len(value) == 3
            and all(type(v) in (int, float) and math.isfinite(v) for v in value)
        )
        if not good or (key == "image_std" and 0 in value):
            raise CheckpointError(f"{file}: {key} must be three numbers, got {shown(value)}", key)
        return (float(value[0]), float(value[1]), float(value[2]))

    size = values.get("size")
    if size is not None and not isinstance(size, dict):
        raise CheckpointError(f"{file}: size must be an object, got {shown(size)}", "size")
    size = size or {}
    config = ImageProcessorConfig(
        integer("patch_size", defaults.patch_size),
        integer("temporal_patch_size", defaults.temporal_patch_size),
        integer("merge_size", defaults.merge_size),
        integer("min_pixels", integer("shortest_edge", defaults.min_pixels, size)),
        integer("max_pixels", integer("longest_edge", defaults.max_pixels, size)),
        channels("image_mean", defaults.mean),
        channels("image_std", defaults.std),
    )
    if config.min_pixels > config.max_pixels:
        found = f"{config.min_pixels} and {config.max_pixels}"
        raise CheckpointError(
            f"{file}: size must have a shortest_edge of at most its longest_edge, got {found}", "size"
        )
    for key in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        if values.get(key, True) is not True:
            raise UnsupportedModelError(f"{file}: {key} {shown(values[key])} is not supported, expected true", key)
    if values.get("resample", 3) != 3:
        raise UnsupportedModelError(
            f"{file}: resample {shown(values['resample'])} is not supported, expected 3 (bicubic)", "resample"
        )
    return config


def resized_size(height: int, width: int, config: ImageProcessorConfig) -> tuple[int, int]:
    """Returns height and width after resizing: transformers' smart_resize().

    Raises ValidationError for sides of a ratio above 200.
    """
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ValidationError(f"{width} x {height} pixels, expected sides of a ratio of at most {MAX_ASPECT}", FIELD)
    factor = config.factor
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    if new_height * new_width > config.max_pixels:
        shrink = math.sqrt(height * width / config.max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < config.min_pixels:
        grow = math.sqrt(config.min_pixels / (height * width))
        new_height, new_width = math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
    return new_height, new_width


def num_image_tokens(height: int, width: int, config: ImageProcessorConfig) -> int:
    """Returns how many tokens of the prompt an image of this many pixels takes."""
    new_height, new_width = resized_size(height, width, config)
    return new_height * new_width // config.factor**2


def patches_of(pixels: NDArray[np.uint8], config: ImageProcessorConfig) -> Patches:
    """Returns the patches of an image. pixels: RGB, uint8 [height, width, 3]."""
    from PIL import Image

    height, width = resized_size(pixels.shape[0], pixels.shape[1], config)
    digest = hashlib.sha256(f"{pixels.shape} {config}".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    # The order of roundings is the processor's: the product in float64, rounded to float32, then differences and quotients of float32.
    mean, std = (np.array(values).astype(np.float32) for values in (config.mean, config.std))
    x = ((np.asarray(image).astype(np.float64) * (1 / 255)).astype(np.float32) - mean) / std
    size, merge = config.patch_size, config.merge_size
    rows, columns = height // size, width // size
    cut = x.transpose(2, 0, 1).reshape(3, rows // merge, merge, size, columns // merge, merge, size)
    cut = cut.transpose(1, 4, 2, 5, 0, 3, 6)[:, :, :, :, :, None]
    cut = np.broadcast_to(cut, (*cut.shape[:5], config.temporal_patch_size, size, size))
    return Patches(cut.reshape(rows * columns, -1), rows, columns, digest.digest())
