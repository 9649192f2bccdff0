"""Images are read exactly, and whatever is wrong with one is a line that names it."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from media_files import RATE, encoded, picture, pixels, png_header, written
from PIL import Image

from interp.data.media import read_audio, read_image
from interp.errors import MediaError


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_an_image_of_a_lossless_file_is_its_pixels(tmp_path: Path, kind: str):
    path = written(tmp_path / "file", encoded(picture(), kind))
    assert np.array_equal(pixels(path), picture())
    assert np.array_equal(pixels(str(path)), picture())


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "WEBP"])
def test_an_image_of_another_file_is_near_its_pixels(tmp_path: Path, kind: str):
    smooth = np.broadcast_to(np.linspace(40, 200, 32).astype(np.uint8)[:, None, None], (32, 24, 3))
    path = written(tmp_path / "file", encoded(np.ascontiguousarray(smooth), kind))
    assert np.abs(pixels(path).astype(int) - smooth).max() <= 8


def test_arrays_and_tensors_are_their_pixels():
    array = picture()
    grey = array[:, :, 0]
    for value in (array, torch.tensor(array), array[::-1][::-1], Image.fromarray(array)):
        assert np.array_equal(pixels(value), array)
    assert np.array_equal(pixels(grey), np.stack([grey] * 3, axis=2))
    levels = np.arange(256).reshape(16, 16)
    for kind in (np.float64, np.float32):
        assert np.array_equal(pixels((levels / 255).astype(kind))[:, :, 0], levels)
    assert np.array_equal(pixels(torch.tensor(levels / 255, requires_grad=True))[:, :, 0], levels)


# what EXIF 2.32, section 4.6.4, says must be done to the stored rows to show them upright
UPRIGHT = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_images_stand_upright(tmp_path: Path, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = written(tmp_path / "turned.png", encoded(picture(), "PNG", exif=exif))
    assert np.array_equal(pixels(path), UPRIGHT[orientation](picture()))
    with Image.open(path) as image:
        assert np.array_equal(pixels(image), UPRIGHT[orientation](picture()))
        assert image.getexif()[0x0112] == orientation, "the caller's image is left as it is"


def test_what_is_transparent_lies_on_white(tmp_path: Path):
    colour, white = np.array([200, 10, 60]), 255
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[..., :3], rgba[..., 3] = colour, [0, 128, 255]
    seen = pixels(written(tmp_path / "alpha.png", encoded(rgba, "PNG")))[0]
    assert seen[0].tolist() == [white] * 3
    assert np.abs(seen[1] - (white * 127 + colour * 128) / 255).max() <= 1
    assert seen[2].tolist() == colour.tolist()
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 200, 10, 60])
    palette.putdata([0, 1])
    palette.save(tmp_path / "palette.png", transparency=0)
    assert pixels(tmp_path / "palette.png")[0].tolist() == [[white] * 3, colour.tolist()]
    assert pixels(Image.fromarray(np.array([[[0, 0], [7, 255]]], np.uint8)))[0].tolist() == [
        [white] * 3,
        [7] * 3,
    ]


def test_of_an_animation_the_first_frame_is_seen(tmp_path: Path):
    red, blue = (Image.new("RGB", (5, 5), colour) for colour in ("red", "blue"))
    for kind in ("gif", "png", "webp"):
        red.save(tmp_path / f"a.{kind}", save_all=True, append_images=[blue], lossless=True)
        assert pixels(tmp_path / f"a.{kind}")[0, 0].tolist() == [255, 0, 0], kind


def test_deep_pixels_keep_their_range(tmp_path: Path):
    levels = np.arange(256).reshape(16, 16)
    deep = written(tmp_path / "deep.png", encoded((levels * 257).astype(np.uint16), "PNG"))
    assert np.array_equal(pixels(deep)[:, :, 1], levels)
    floats = written(tmp_path / "float.tiff", encoded((levels / 255).astype(np.float32), "TIFF"))
    assert np.array_equal(pixels(floats)[:, :, 2], levels)
    with pytest.raises(MediaError, match=r"beyond\.tiff: floats from 0 to 255; give them in \[0, 1\]"):
        read_image(written(tmp_path / "beyond.tiff", encoded(levels.astype(np.float32), "TIFF")))
    with pytest.raises(MediaError, match="32-bit integers, whose range nothing says"):
        read_image(written(tmp_path / "int.tiff", encoded(levels.astype(np.int32), "TIFF")))


BAD_IMAGES = [
    (b"", "is empty (0 bytes)"),
    (b"not an image", "no image (not recognised); give PNG"),
    (encoded(picture(), "JPEG")[:-40], "truncated, damaged or no image"),
    (encoded(picture(), "PNG").replace(b"IDAT", b"IDAT\0", 1), "truncated, damaged or no image"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "(not recognised)"),
    (png_header(8200, 8200), "8200 × 8200 pixels, over the 67,108,864 allowed"),
    (png_header(100_000, 100_000), "exceeds limit"),  # PIL's own guard
]


@pytest.mark.parametrize(("content", "message"), BAD_IMAGES)
def test_a_bad_image_file_is_one_line_with_its_name(tmp_path: Path, content: bytes, message: str):
    path = written(tmp_path / "bad", content)
    with pytest.raises(MediaError) as caught:
        read_image(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_an_image_cut_anywhere_is_an_error(tmp_path: Path):
    for kind, needless in {"PNG": 4, "GIF": 2, "JPEG": 0, "WEBP": 0, "BMP": 0, "TIFF": 0, "PPM": 0}.items():
        whole = encoded(picture(), kind)
        read_image(written(tmp_path / "whole", whole))
        for end in range(len(whole) - needless):  # end marks of PNG and GIF hold nothing
            with pytest.raises(MediaError):
                read_image(written(tmp_path / "cut", whole[:end]))


BAD_ARRAYS = [
    (np.full((2, 2), np.nan), "holds NaN or infinite"),
    (np.full((2, 2, 3), np.inf), "holds NaN or infinite"),
    (np.array([[0, 1.5]]), "floats from 0 to 1.5; give them in [0, 1]"),
    (np.array([[-0.25, 1]]), "floats from -0.25 to 1"),
    (np.zeros((2, 2), int), "has type int64; give uint8"),
    (np.zeros((2, 2), bool), "has type bool"),
    (np.array([[None]]), "has type object, not numbers"),
    (np.zeros((3, 5, 5), np.uint8), "has shape (3, 5, 5), not (height, width, 3)"),
    (np.zeros((5, 5, 4), np.uint8), "has shape (5, 5, 4)"),
    (np.zeros(5, np.uint8), "has shape (5,)"),
    (np.zeros((0, 5, 3), np.uint8), "is empty (5 × 0 pixels)"),
    (np.broadcast_to(np.uint8(0), (10_000, 10_000)), "10000 × 10000 pixels, over"),
    (torch.zeros(2, 2, dtype=torch.bfloat16), "cannot be made a numpy array"),
    (Image.new("L", (0, 3)), "is empty (0 × 3 pixels)"),
    (b"bytes", "is of type bytes, not a path"),
    (None, "is missing"),
    ("", "is an empty text, not a path"),
]


@pytest.mark.parametrize(("value", "message"), BAD_ARRAYS)
def test_a_bad_image_in_memory_is_one_line(value: Any, message: str):
    with pytest.raises(MediaError) as caught:
        read_image(value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [read_image, lambda value: read_audio(value, RATE, 1.0)])
def test_what_is_no_file_is_said_to_be_none(tmp_path: Path, read: Any):
    os.mkfifo(tmp_path / "pipe")
    for value, message in [
        (tmp_path / "absent\n", r"absent\\n': cannot be read \(No such file"),
        ("a\0b", "cannot be read .*null"),
        ("https://host/a", "No such file.*; only local files are read: download it first"),
        (tmp_path, "is a directory or device, not a file"),
        (tmp_path / "pipe", "is a directory or device, not a file"),
        ("/dev/zero", "is a directory or device, not a file"),
    ]:
        with pytest.raises(MediaError, match=message):
            read(value)
