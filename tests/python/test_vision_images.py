"""Images of prompts: opened safely, and patches to the bit those of transformers' Qwen2VLImageProcessorPil."""

from __future__ import annotations

import io
import json
import random
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lynx_rt.errors import CheckpointError, UnsupportedModelError, ValidationError
from lynx_rt.vision.image import ImageLimits, image_from_bytes, image_from_object
from lynx_rt.vision.preprocess import (
    ImageProcessorConfig,
    num_image_tokens,
    patches_of,
    read_image_processor,
    resized_size,
)

RANDOM = np.random.default_rng(5)
SMALL = ImageProcessorConfig(min_pixels=32 * 32, max_pixels=256 * 256)


def noise(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# --- patches


@pytest.fixture(scope="module")
def processor() -> Any:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil


@pytest.mark.parametrize(
    ("width", "height"),
    [(640, 480), (37, 211), (1000, 31), (256, 256), (1337, 907), (50, 50), (1, 1), (1, 200), (33, 32)],
)
@pytest.mark.parametrize(("patch", "merge", "temporal"), [(16, 2, 2), (14, 2, 2), (8, 3, 1)])
def test_patches_are_those_of_transformers(
    processor: Any, width: int, height: int, patch: int, merge: int, temporal: int
) -> None:
    config = ImageProcessorConfig(patch, temporal, merge, 5000, 400_000, (0.5, 0.4, 0.3), (0.5, 0.25, 0.3))
    theirs = processor(
        patch_size=patch,
        temporal_patch_size=temporal,
        merge_size=merge,
        image_mean=list(config.mean),
        image_std=list(config.std),
        size={"shortest_edge": config.min_pixels, "longest_edge": config.max_pixels},
    )
    smooth = np.asarray(Image.fromarray(noise(max(height // 8, 1), max(width // 8, 1), 3)).resize((width, height)))
    for pixels in (smooth, noise(height, width, 3)):
        expected = theirs(Image.fromarray(pixels), return_tensors="np")
        patches = patches_of(pixels, config)
        assert (1, patches.grid_height, patches.grid_width) == tuple(expected["image_grid_thw"][0])
        assert np.array_equal(patches.rows, expected["pixel_values"])
        assert patches.rows.dtype == np.float32 and patches.rows.flags.c_contiguous
        assert num_image_tokens(height, width, config) * merge**2 == len(patches.rows)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1"])
def test_modes_are_those_of_transformers(processor: Any, mode: str) -> None:
    image = Image.fromarray(noise(40, 52, 4), "RGBA").convert(mode)
    if mode == "P":
        image.info["transparency"] = 3
    ours = patches_of(image_from_object(image, "image"), SMALL)
    theirs = processor(size={"shortest_edge": SMALL.min_pixels, "longest_edge": SMALL.max_pixels}, patch_size=16,
                       image_mean=[0.5] * 3, image_std=[0.5] * 3)  # fmt: skip
    assert np.array_equal(ours.rows, theirs(image, return_tensors="np")["pixel_values"])


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 3), st.integers(10, 22))
def test_resized_sizes(height: int, width: int, merge: int, log_area: int) -> None:
    config = ImageProcessorConfig(patch_size=14, merge_size=merge, min_pixels=2**log_area // 4, max_pixels=2**log_area)
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(ValidationError, match="ratio of at most 200"):
            resized_size(height, width, config)
        return
    found = resized_size(height, width, config)
    assert all(side >= config.factor and side % config.factor == 0 for side in found)
    # One side may be a single merge block already, and the other is then not cut any further.
    if min(found) > config.factor:
        assert found[0] * found[1] <= config.max_pixels


def test_digest() -> None:
    """Equal digests mean equal rows: it depends on the pixels, their shape and every parameter."""
    pixels = noise(40, 60, 3)
    digests = {
        patches_of(pixels, SMALL).digest,
        patches_of(pixels.reshape(60, 40, 3), SMALL).digest,
        patches_of(pixels ^ 1, SMALL).digest,
        patches_of(pixels, SMALL.limited(1024)).digest,
        patches_of(pixels, ImageProcessorConfig(min_pixels=32 * 32, max_pixels=256 * 256, mean=(0.5, 0.5, 0.4))).digest,
    }
    assert len(digests) == 5 and patches_of(pixels.copy(), SMALL).digest in digests


def test_max_pixels() -> None:
    assert SMALL.limited(None) is SMALL and SMALL.limited(1 << 40) == SMALL
    assert num_image_tokens(256, 256, SMALL.limited(128 * 128)) == 16
    assert num_image_tokens(8, 8, ImageProcessorConfig().limited(32 * 32)) == 1  # below min_pixels as well
    for wrong in (0, 1023, True, 2000.0, "many"):
        with pytest.raises(ValidationError, match="max_pixels must be an integer of at least 1024"):
            SMALL.limited(wrong)  # type: ignore[arg-type]


# --- files


def test_orientation() -> None:
    pixels = noise(10, 14, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    data = file_of(Image.fromarray(pixels), exif=exif)
    assert np.array_equal(image_from_bytes(data, "image"), np.rot90(pixels, -1))
    assert np.array_equal(image_from_object(Image.open(io.BytesIO(data)), "image"), pixels)  # as transformers
    # A damaged EXIF part does not hide the pixels.
    damaged = file_of(Image.fromarray(pixels), exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    assert np.array_equal(image_from_bytes(damaged, "image"), pixels)


def test_transparency_is_laid_onto_white() -> None:
    pixels = np.zeros((9, 9, 4), np.uint8)
    pixels[:3] = (10, 20, 30, 255)
    pixels[3:6] = (10, 20, 30, 0)
    pixels[6:] = (0, 0, 0, 127)
    for image in (image_from_bytes(file_of(Image.fromarray(pixels)), "image"), image_from_object(pixels, "image")):
        assert image.shape == (9, 9, 3) and image.dtype == np.uint8
        assert (image[0, 0].tolist(), image[4, 0].tolist(), image[8, 0].tolist()) == (
            [10, 20, 30],
            [255] * 3,
            [128] * 3,
        )
    palette = Image.fromarray(np.array([[0, 1]], np.uint8))
    palette.putpalette([9, 8, 7, 1, 2, 3])
    found = image_from_bytes(file_of(palette, transparency=1), "image")
    assert found.tolist() == [[[9, 8, 7], [255, 255, 255]]]


def test_sixteen_bits_keep_the_high_byte() -> None:
    wide = Image.fromarray(np.array([[0, 255, 256, 0x7FFF, 0xFFFF]], np.uint16))
    expected = [0, 0, 1, 0x7F, 0xFF]
    for kind in ("PNG", "TIFF"):
        found = image_from_bytes(file_of(wide, kind), "image")
        assert found[0].tolist() == [[value] * 3 for value in expected]


def test_other_files() -> None:
    pixels = np.asarray(Image.fromarray(noise(4, 6, 3)).resize((48, 32)))
    cmyk = Image.fromarray(pixels).convert("CMYK")
    assert np.array_equal(image_from_bytes(file_of(cmyk, "TIFF"), "image"), np.asarray(cmyk.convert("RGB")))
    assert image_from_bytes(file_of(cmyk, "JPEG"), "image").shape == (32, 48, 3)
    frames = [Image.fromarray(np.full((8, 8, 3), shade, np.uint8)) for shade in (0, 255)]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        moving = file_of(frames[0], kind, save_all=True, append_images=frames[1:])
        assert image_from_bytes(moving, "image").max() < 3, kind  # the first frame is black
    for kind in ("BMP", "PPM", "PNG"):
        assert np.array_equal(image_from_bytes(file_of(Image.fromarray(pixels), kind), "image"), pixels)
    with pytest.raises(ValidationError, match="floating point"):
        image_from_bytes(file_of(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "image")


def bomb(width: int, height: int) -> bytes:
    """A PNG file whose head names a size that its data does not have."""
    data = bytearray(file_of(Image.new("1", (1, 1))))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def test_limits_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    for data, limits, text in (
        (
            bomb(13_000, 13_000),
            ImageLimits(max_pixels=10**8),
            "13000 x 13000 pixels, expected at most 100000000 in all; it was not decoded",
        ),
        (
            bomb(60_000, 60_000),
            ImageLimits(),
            "not an image of .* decompression bomb",
        ),  # Pillow's own limit comes first
        (bomb(201, 1), ImageLimits(), "201 x 1 pixels, expected sides of a ratio of at most 200"),
        (bomb(8, 8), ImageLimits(max_bytes=50), "bytes, expected at most 50"),
        (b"", ImageLimits(), "not an image of PNG, JPEG"),
        (b"%PDF-1.7", ImageLimits(), "not an image of PNG, JPEG"),
    ):
        with pytest.raises(ValidationError, match=r"^image 3: .*" + text) as caught:
            image_from_bytes(data, "image 3", limits)
        assert caught.value.field == "multi_modal_data"


def test_objects() -> None:
    grey = noise(6, 7)
    expected = np.repeat(grey[..., None], 3, axis=2)
    for value in (
        grey,
        grey[..., None],
        expected,
        np.asfortranarray(expected),
        Image.fromarray(grey),
        file_of(Image.fromarray(grey)),
    ):
        assert np.array_equal(image_from_object(value, "image"), expected)
    for wrong in (
        noise(6, 7, 2),
        noise(2, 6, 7, 3),
        expected.astype(np.float32),
        "image.png",
        None,
        3,
        noise(0, 7, 3),
        noise(1, 201),
    ):
        with pytest.raises(ValidationError, match=r"^images\[0\]: "):
            image_from_object(wrong, "images[0]")


@pytest.mark.filterwarnings("ignore")  # Pillow warns of what it skips
def test_mutated_files() -> None:
    """2,000 damaged files: pixels or a ValidationError, nothing else."""
    draw = random.Random(11)
    smooth = Image.fromarray(noise(5, 7, 3)).resize((42, 30))
    seeds = [file_of(smooth, kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")]
    seeds += [
        file_of(smooth.convert("CMYK"), "JPEG"),
        file_of(smooth.convert("LA")),
        file_of(smooth.convert("I;16"), "TIFF"),
    ]
    seeds.append(file_of(smooth, "TIFF", compression="tiff_lzw"))
    opened = refused = 0
    limits = ImageLimits(max_pixels=1 << 20)
    for _ in range(2000):
        data = bytearray(draw.choice(seeds))
        for _ in range(draw.randint(1, 6)):
            place = draw.randrange(len(data)) if draw.random() < 0.5 else draw.randrange(min(64, len(data)))
            match draw.randrange(4):
                case 0:
                    data[place] = draw.randrange(256)
                case 1:
                    data[place] ^= 1 << draw.randrange(8)
                case 2:
                    del data[place : place + draw.randint(1, 40)]
                case 3:
                    data[place:place] = bytes(draw.randrange(256) for _ in range(draw.randint(1, 8)))
            if not data:
                break
        if draw.random() < 0.2:
            del data[draw.randrange(len(data) + 1) :]
        try:
            image = image_from_bytes(bytes(data), "image", limits)
        except ValidationError as error:
            refused += 1
            assert str(error).startswith("image: ")
        else:
            opened += 1
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    assert opened > 300 and refused > 300


# --- the config


def test_config_files(tmp_path: Path) -> None:
    assert read_image_processor(tmp_path) == ImageProcessorConfig()
    values = {
        "size": {"shortest_edge": 1024, "longest_edge": 4096},
        "patch_size": 14,
        "temporal_patch_size": 1,
        "merge_size": 3,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [1, 0.5, 0.25],
        "image_processor_type": "Qwen2VLImageProcessorFast",
    }
    expected = ImageProcessorConfig(14, 1, 3, 1024, 4096, (0.1, 0.2, 0.3), (1.0, 0.5, 0.25))
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": values}))
    assert read_image_processor(tmp_path) == expected
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values | {"min_pixels": 2048}))
    assert read_image_processor(tmp_path).min_pixels == 2048


def test_absent_keys_of_a_file_are_those_of_transformers(tmp_path: Path) -> None:
    """Without any file the values are those that the checkpoints of Qwen3-VL come with."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    theirs = Qwen2VLImageProcessorPil()
    (tmp_path / "preprocessor_config.json").write_text("{}")
    ours = read_image_processor(tmp_path)
    assert [ours.mean, ours.std] == [tuple(theirs.image_mean), tuple(theirs.image_std)]
    assert [ours.min_pixels, ours.max_pixels] == [theirs.size["shortest_edge"], theirs.size["longest_edge"]]


@pytest.mark.parametrize(
    ("change", "error", "field"),
    [
        ({"patch_size": 0}, CheckpointError, "patch_size"),
        ({"merge_size": True}, CheckpointError, "merge_size"),
        ({"size": [1, 2]}, CheckpointError, "size"),
        ({"size": {"shortest_edge": 5000, "longest_edge": 4096}}, CheckpointError, "size"),
        ({"image_mean": [0.5, 0.5]}, CheckpointError, "image_mean"),
        ({"image_std": [0.5, 0.5, 0]}, CheckpointError, "image_std"),
        ({"image_std": [0.5, 0.5, "a"]}, CheckpointError, "image_std"),
        ({"image_processor_type": "LlavaImageProcessor"}, UnsupportedModelError, "image_processor_type"),
        ({"do_normalize": False}, UnsupportedModelError, "do_normalize"),
        ({"resample": 2}, UnsupportedModelError, "resample"),
    ],
)
def test_config_faults(tmp_path: Path, change: dict[str, Any], error: type[Exception], field: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(change))
    with pytest.raises(error, match=field) as caught:
        read_image_processor(tmp_path)
    assert caught.value.field == field


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "\ufeff{}"])
def test_config_that_is_no_object(tmp_path: Path, text: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        read_image_processor(tmp_path)
