"""Images and audio are read exactly, whatever is wrong with them is one line, and prompts carry them without loss."""

import base64
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
import tracemalloc
import wave
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from interp.data import attachments, media
from interp.data.media import prompt_audio, prompt_images, read_audio, read_image
from interp.data.prompts import Prompt, PromptSet, Truth, read_prompts
from interp.errors import MediaError, PromptFileError

RATE = 16_000
HOSTILE = '"><script>alert(1)<'  # a slash cannot stand in a file's name


def picture(height: int = 6, width: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pixels(value: Any) -> np.ndarray:
    image = read_image(value)
    assert image.mode == "RGB"
    return np.asarray(image)


def encoded(array: np.ndarray, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def noise(n: int = 4000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, n)


def recording(path: Path, samples: np.ndarray | None = None, rate: int = RATE, **options: Any) -> Path:
    soundfile.write(path, noise() if samples is None else samples, rate, **options)
    return path


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def wav_header(samples: int, rate: int = RATE, length: int | None = None) -> bytes:
    length = 2 * samples if length is None else length
    form = struct.pack("<HHIIHH", 1, 1, rate, 2 * rate, 2, 16)
    riff = struct.pack("<I", min(36 + length, 2**32 - 1))
    return b"RIFF" + riff + b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", length)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size, and holds no pixel."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b"")]
    framed = [
        struct.pack(">I", len(x)) + kind + x + struct.pack(">I", zlib.crc32(kind + x)) for kind, x in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


# Images


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


# Audio


def test_samples_of_one_rate_come_as_they_are(tmp_path: Path):
    samples = noise().astype(np.float32)
    for value in ((samples, RATE), (torch.tensor(samples, requires_grad=True), np.int64(RATE))):
        read = read_audio(value, RATE, 1.0)
        assert read.dtype == np.float32
        assert np.array_equal(read, samples)
    assert np.array_equal(
        read_audio(recording(tmp_path / "a.wav", samples, subtype="FLOAT"), RATE, 1), samples
    )


def test_integers_are_divided_by_their_full_scale(tmp_path: Path):
    sixteen = np.array([-32768, -1, 0, 1, 32767], np.int16)
    expected = (sixteen / 32768).astype(np.float32)
    assert np.array_equal(read_audio((sixteen, RATE), RATE, 1.0), expected)
    with wave.open(str(tmp_path / "a.wav"), "wb") as writer:
        writer.setparams((1, 2, RATE, 0, "NONE", ""))
        writer.writeframes(sixteen.tobytes())
    recording(tmp_path / "a.flac", sixteen, subtype="PCM_16")
    for name in ("a.wav", "a.flac"):
        assert np.array_equal(read_audio(tmp_path / name, RATE, 1.0), expected)
    assert read_audio((np.array([-(2**31), 2**30], np.int32), RATE), RATE, 1).tolist() == [-1, 0.5]
    assert read_audio((np.array([-128, 64], np.int8), RATE), RATE, 1).tolist() == [-1, 0.5]
    eight = np.array([0, 128, 192], np.uint8)
    with wave.open(str(tmp_path / "eight.wav"), "wb") as writer:
        writer.setparams((1, 1, RATE, 0, "NONE", ""))
        writer.writeframes(eight.tobytes())
    for value in ((eight, RATE), tmp_path / "eight.wav"):
        assert read_audio(value, RATE, 1).tolist() == [-1, 0, 0.5]


def test_channels_are_averaged_exactly(tmp_path: Path):
    both = np.random.default_rng(0).integers(-32768, 32768, (500, 2)).astype(np.int16)
    expected = (both.astype(np.int64).sum(axis=1) / 65536).astype(np.float32)
    for value in ((both, RATE), recording(tmp_path / "stereo.wav", both)):
        assert np.array_equal(read_audio(value, RATE, 1.0), expected)
    assert not np.array_equal(read_audio((both[:, 0], RATE), RATE, 1.0), expected)


def test_a_long_file_is_averaged_in_blocks_without_a_seam(tmp_path: Path):
    both = np.random.default_rng(0).integers(-9000, 9000, (150_000, 3)).astype(np.int16)
    read = read_audio(recording(tmp_path / "long.wav", both), RATE, 10.0)
    assert np.abs(read - both.mean(axis=1) / 32768).max() < 1e-7


@pytest.mark.parametrize("source", [8_000, 11_025, 22_050, 44_100, 48_000, 44_101])
def test_a_sine_of_440_hz_stays_one(source: int):
    seconds, amplitude, phase = 1.0, 0.7, 0.3
    t = np.arange(int(seconds * source)) / source
    read = read_audio((amplitude * np.sin(2 * np.pi * 440 * t + phase), source), RATE, seconds)
    assert len(read) == int(np.ceil(len(t) * RATE / source))
    at = np.arange(len(read)) / RATE
    inside = (at > 0.05) & (at < seconds - 0.05)  # the filter meets silence at both ends
    expected = amplitude * np.sin(2 * np.pi * 440 * at + phase)
    assert np.abs(read - expected)[inside].max() < 2e-3
    spectrum = np.abs(np.fft.rfft(read * np.hanning(len(read)), 8 * len(read)))
    assert abs(np.argmax(spectrum) * RATE / (8 * len(read)) - 440) < 0.5


def test_a_tone_that_the_new_rate_cannot_hold_is_gone():
    t = np.arange(48_000) / 48_000
    low, high = 0.5 * np.sin(2 * np.pi * 440 * t), 0.5 * np.sin(2 * np.pi * 11_000 * t)
    mixed, alone = (read_audio((x, 48_000), RATE, 1.0)[800:-800] for x in (low + high, low))
    assert np.abs(mixed - alone).max() < 0.01, "it would alias to 5000 Hz at half of full scale"


def test_flac_and_ogg_are_read(tmp_path: Path):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    for name, tolerance in (("a.flac", 1e-4), ("a.ogg", 0.05)):
        read = read_audio(recording(tmp_path / name, tone), RATE, 1.0)
        assert len(read) == RATE
        assert np.abs(read - tone).max() < tolerance


def test_three_hours_are_refused_before_they_are_in_memory(tmp_path: Path):
    n = 3 * 3600 * RATE
    path = written(tmp_path / "long.wav", wav_header(n))
    os.truncate(path, 44 + 2 * n)  # sparse
    read_audio((noise(), RATE), RATE, 1.0)  # imports are not measured
    tracemalloc.start()
    with pytest.raises(MediaError, match=r"long\.wav: 10800 s long, more than the 30 s allowed"):
        read_audio(path, RATE, 30.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6
    with pytest.raises(MediaError, match="truncated: its end is missing"):
        read_audio(written(tmp_path / "header.wav", wav_header(n)), RATE, 30.0)
    with pytest.raises(MediaError, match="10 s long, more than the 9 s allowed"):
        read_audio((noise(10 * RATE), RATE), RATE, 9.0)
    assert len(read_audio((noise(10 * RATE), RATE), RATE, 10.0)) == 10 * RATE


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "vorbis.ogg", "opus.ogg", "wide.wav"])
def test_a_recording_cut_anywhere_is_an_error(tmp_path: Path, name: str):
    options: dict[str, Any] = {
        "opus.ogg": {"format": "OGG", "subtype": "OPUS"},
        "wide.wav": {"format": "WAVEX", "subtype": "PCM_24"},
    }.get(name, {})
    n = 8 * RATE if name == "vorbis.ogg" else 4000  # several pages
    whole = recording(tmp_path / name, noise(n), **options).read_bytes()
    read_audio(tmp_path / name, RATE, 8.0)
    steps = max(1, len(whole) // 60)
    pages = [page.start() for page in re.finditer(b"OggS", whole)]
    for end in [*range(0, len(whole), steps), *range(len(whole) - 30, len(whole)), *pages]:
        with pytest.raises(MediaError):
            read_audio(written(tmp_path / "cut", whole[:end]), RATE, 8.0)


def test_a_wav_file_out_of_a_pipe_lasts_to_its_end(tmp_path: Path):
    samples = np.random.default_rng(0).integers(-9000, 9000, 500).astype(np.int16)
    path = written(tmp_path / "piped.wav", wav_header(500, length=2**32 - 1) + samples.tobytes())
    assert np.array_equal(read_audio(path, RATE, 1.0), (samples / 32768).astype(np.float32))


def broken(samples: np.ndarray, at: int, value: float) -> np.ndarray:
    samples = samples.copy()
    samples[at] = value
    return samples


BAD_AUDIO = [
    ((broken(noise(), 1600, np.nan), RATE), "NaN or infinite at 0.1 s"),
    ((broken(noise(), 0, -np.inf), RATE), "NaN or infinite at 0 s"),
    ((np.zeros(100), RATE), "silent (peak 0.0e+00 of full scale, under 1e-04)"),
    ((np.full(100, 0.99e-4), RATE), "silent"),
    ((np.array([[0.5, -0.5]] * 9), RATE), "silent"),
    ((np.zeros(0), RATE), "is empty (no samples)"),
    ((noise() * 32768, RATE), "floats have full scale 1 (divide int16 by 32768)"),
    ((noise(), 0), "the rate of `audio` is 0 Hz, not between 1000 and 384000 Hz"),
    ((noise(), -16_000), "is -16000 Hz"),
    ((noise(), 2**31), "is 2147483648 Hz"),
    ((noise(), 16_000.0), "is 16000.0, not a whole number of Hz"),
    ((noise(), True), "is True, not a whole number"),
    ((noise(), None), "is None, not a whole number"),
    ((np.zeros((2, 100)), RATE), "has shape (2, 100), not (n,) or (n, channels)"),
    ((np.zeros((5, 0)), RATE), "has shape (5, 0)"),
    ((np.zeros((2, 2, 2)), RATE), "has shape (2, 2, 2)"),
    ((np.float32(1), RATE), "has shape ()"),
    ((np.zeros(9, np.int64), RATE), "has type int64; give floats, or PCM"),
    ((np.zeros(9, complex), RATE), "has type complex128, not numbers"),
    ((noise(), RATE, 1), "is of type tuple, not a path or a pair"),
    (([0.1, 0.2], RATE), "is of type tuple, not a path or a pair"),
    (noise(), "is an array without its rate; give (array, rate in Hz)"),
    (3, "is of type int"),
    ("", "is an empty text"),
    (None, "there is no audio"),
]


@pytest.mark.parametrize(("value", "message"), BAD_AUDIO)
def test_bad_audio_in_memory_is_one_line(value: Any, message: str):
    with pytest.raises(MediaError) as caught:
        read_audio(value, RATE, 1.0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bad_audio_file_is_one_line_with_its_name(tmp_path: Path):
    nan = recording(tmp_path / "nan.wav", broken(noise(), 1600, np.nan), subtype="FLOAT")
    many = recording(tmp_path / "many.wav", np.zeros((50, 9)) + 0.1)
    for path, message in [
        (nan, "NaN or infinite at 0.1 s"),
        (many, "9 channels, over the 8 allowed"),
        (written(tmp_path / "zero.wav", b""), "is empty (0 bytes)"),
        (written(tmp_path / "none.wav", wav_header(0)), "is empty (no samples)"),
        (written(tmp_path / "text.wav", "words"), "truncated, damaged or no audio (Format not recognised.)"),
        (written(tmp_path / "rate.wav", wav_header(9, rate=1) + b"\1\1" * 9), "its rate is 1 Hz"),
        (recording(tmp_path / "quiet.flac", np.full(900, 5e-5)), "silent"),
        (recording(tmp_path / "a.mp3"), "convert it to WAV, FLAC or Ogg"),
        (recording(tmp_path / "a.aiff"), "convert it to WAV, FLAC or Ogg"),
    ]:
        with pytest.raises(MediaError) as caught:
            read_audio(path, RATE, 1.0)
        assert message in str(caught.value)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


def test_what_is_asked_for_is_checked_too():
    for rate in (0, -1, 16_000.0, "16000", True):
        with pytest.raises(MediaError, match="the rate asked for is"):
            read_audio((noise(), RATE), rate, 1.0)
    for seconds in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(MediaError, match="max_seconds is"):
            read_audio((noise(), RATE), RATE, seconds)


def test_without_soundfile_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = recording(tmp_path / "a.wav")
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(MediaError, match="pip install soundfile"):
        read_audio(path, RATE, 1.0)
    assert len(read_audio((noise(), RATE), RATE, 1.0)), "arrays need no decoder"


def test_a_damaged_file_is_read_or_refused_and_nothing_else(tmp_path: Path):
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {kind: encoded(picture(), kind, exif=exif) for kind in ("PNG", "JPEG", "WEBP", "TIFF")}
    files |= {kind: encoded(picture(), kind) for kind in ("GIF", "BMP", "PPM")}
    sounds = {name: recording(tmp_path / name).read_bytes() for name in ("a.wav", "a.flac", "a.ogg")}
    outcomes = {"read": 0, "refused": 0}
    for name, whole in (files | sounds).items():
        for _ in range(60):
            damaged = bytearray(whole)
            for place in rng.integers(0, min(len(damaged), 400), 3):
                damaged[place] = rng.integers(256)
            path = written(tmp_path / "damaged", bytes(damaged))
            try:
                if name in sounds:
                    assert np.isfinite(read_audio(path, RATE, 60.0)).all()
                else:
                    assert read_image(path).mode == "RGB"
                outcomes["read"] += 1
            except MediaError as error:
                assert "\n" not in str(error)
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 50, outcomes


# Prompts


def test_an_error_in_a_batch_names_the_prompt(tmp_path: Path):
    seen = Prompt("look", id="row-7", images=(picture(), tmp_path / "absent.png"))
    with pytest.raises(MediaError, match=r"^prompt 'row-7': image 2: .*absent\.png: cannot be read"):
        prompt_images(seen)
    heard = Prompt("listen", id="row-8", audio=(np.zeros(99), RATE))
    with pytest.raises(MediaError, match="^prompt 'row-8': audio: the audio: silent"):
        prompt_audio(heard, RATE, 1.0)
    assert prompt_audio(seen, RATE, 1.0) is None
    assert prompt_images(heard) == []
    assert [x.size for x in prompt_images(replace(seen, images=[picture(), picture(5, 9)]))] == [
        (4, 6),
        (9, 5),
    ]


def test_a_prompt_holds_only_what_could_be_media():
    held = Prompt("", images=[Path("a.png")], audio=[noise(), np.int32(RATE)])
    assert held.images == ("a.png",)
    assert isinstance(held.audio, tuple) and type(held.audio[1]) is int
    for fields, message in [
        ({"images": "a.png"}, "`images` is of type str, not a list of images"),
        ({"images": picture()}, "`images` is of type ndarray, not a list of images"),
        ({"images": (3,)}, "an image is of type int"),
        ({"images": ("",)}, "an image is an empty text"),
        ({"audio": noise()}, "without its rate"),
        ({"audio": (noise(), 0)}, "the rate of `audio` is 0 Hz"),
        ({"audio": 3}, "`audio` is of type int"),
    ]:
        with pytest.raises(MediaError, match=re.escape(message)):
            Prompt("a", **fields)


def test_prompts_differ_where_their_media_do(tmp_path: Path):
    one, other = (written(tmp_path / f"{i}.png", encoded(picture(seed=i), "PNG")) for i in range(2))
    palettes = [Image.new("P", (2, 1)), Image.new("P", (2, 1))]
    palettes[1].putpalette([9, 9, 9])
    distinct = [
        *(Prompt("a", images=(x,)) for x in (one, other, picture(), picture(seed=1), *palettes)),
        Prompt("a", images=(picture().view(np.int8),)),
        Prompt("a", images=(one, other)),
        Prompt("a", images=(other, one)),
        Prompt("a", audio=one),
        Prompt("a", audio=(np.ones(4, np.int16), 8_000)),
        Prompt("a", audio=(np.ones(4, np.int16), 16_000)),
        Prompt("a"),
    ]
    assert len({p.fingerprint() for p in distinct}) == len(distinct)
    assert Prompt("a", audio=(np.ones(4), 8_000)) == Prompt("a", audio=(torch.ones(4).double(), 8_000))
    unread = Image.open(io.BytesIO(encoded(picture(), "JPEG")[:-40]))
    with pytest.raises(MediaError, match="an image of a prompt cannot be read"):
        Prompt("a", images=(unread,)).fingerprint()


def test_a_file_counts_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first, copy = (written(tmp_path / f"{i}.png", encoded(picture(), "PNG")) for i in range(2))
    prompt = Prompt("a", images=(first,))
    assert prompt == Prompt("a", images=(copy,))
    seen = set()
    for level in range(20):  # faster than the file system's clock, and of one size
        written(first, encoded(np.full((2, 2), level, np.uint8), "BMP"))
        seen.add(PromptSet([prompt]).sha256)
    assert len(seen) == 20, "a study of other pictures is another study"
    assert Prompt("a", images=("absent",)) != Prompt("a", images=("missing",))
    later = time.time_ns() + 10**10
    monkeypatch.setattr(attachments.time, "time_ns", lambda: later)
    before = attachments._file_hash.cache_info()
    assert prompt.fingerprint() == prompt.fingerprint() == Prompt("a", images=(first,)).fingerprint()
    after = attachments._file_hash.cache_info()
    assert (after.misses - before.misses, after.hits - before.hits) == (1, 2), "one file is read once"


def test_a_set_and_its_media_move_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "here" / "pictures").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    inside = written(tmp_path / "here" / "pictures" / "a.png", encoded(picture(), "PNG"))
    outside = recording(tmp_path / "b.wav")
    monkeypatch.chdir(tmp_path)
    original = PromptSet([Prompt("", id="x", images=("here/pictures/a.png", inside), audio="b.wav")])
    path, sha256 = original.save("here/set.jsonl"), original.sha256
    record = json.loads(path.read_text())
    assert record == {
        "id": "x",
        "text": "",
        "images": ["pictures/a.png", "pictures/a.png"],
        "audio": str(outside),
    }
    monkeypatch.chdir("elsewhere")
    for directory in (tmp_path / "here", tmp_path / "moved"):
        back = read_prompts(directory / "set.jsonl")
        assert back.sha256 == sha256
        assert back[0].images == (str(directory / "pictures" / "a.png"),) * 2
        assert np.array_equal(np.asarray(prompt_images(back[0])[1]), picture())
        if directory.name == "here":
            shutil.move(directory, tmp_path / "moved")
    assert read_prompts(Path("../moved/set.jsonl")) == back, "a relative path of the set itself"


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
paths = (
    names
    | names.map(lambda x: f"/{x}")
    | st.lists(st.sampled_from(["a", "..", ".", ""]) | names).map("/".join).filter(bool)
)
carriers = st.builds(
    Prompt,
    text=st.just("") | names,
    images=st.lists(paths, min_size=1, max_size=3).map(tuple),
    audio=st.none() | paths,
    truth=st.none() | st.just(Truth("harmful", "answer")),
    system=st.none() | names,
)


@settings(deadline=None, max_examples=60)
@given(st.lists(carriers, min_size=1, max_size=3))
def test_a_saved_set_of_media_comes_back_without_loss(
    tmp_path_factory: pytest.TempPathFactory, items: list[Prompt]
):
    directory = tmp_path_factory.mktemp("saved")
    original = PromptSet(items, "any")
    back = read_prompts(original.save(directory / "set.jsonl"))
    assert back == original
    again = read_prompts(back.save(directory / "again.jsonl"))
    assert again.sha256 == original.sha256
    assert [p.images for p in again] == [p.images for p in back]
    assert (directory / "again.jsonl").read_bytes() == (directory / "set.jsonl").read_bytes()


def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "prompt": ["look", None, "both", "neither"],
            "Image": ["a.png", "/abs/b.png", None, None],
            "audio": [None, None, "c.wav", None],
            "n": [1, 2, 3, 4],
        }
    )


@pytest.mark.parametrize("name", ["set.csv", "set.tsv", "set.parquet", "set.jsonl", "set.json"])
def test_columns_of_media_are_read_from_every_kind_of_file(tmp_path: Path, name: str):
    path = tmp_path / name
    if path.suffix in (".csv", ".tsv"):
        frame().to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    elif path.suffix == ".parquet":
        frame().to_parquet(path)
    else:
        frame().to_json(path, orient="records", lines=path.suffix == ".jsonl")
    found = read_prompts(path)
    assert found.texts == ["look", "", "both", "neither"]
    assert [p.images for p in found] == [(f"{tmp_path}/a.png",), ("/abs/b.png",), (), ()]
    assert [p.audio for p in found] == [None, None, f"{tmp_path}/c.wav", None]
    assert [p.meta["n"] for p in found] == (list("1234") if path.suffix in (".csv", ".tsv") else [1, 2, 3, 4])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'images,label\n"[""a.png"", ""b.png""]",harmful\n'),
        ("a.jsonl", '{"images": ["a.png", "b.png"], "label": "harmful"}\n'),
        ("a.jsonl", '{"image": ["a.png", "b.png"], "text": null, "label": "harmful"}\n'),
        ("a.jsonl", '{"images": ["a.png", "b.png"], "label": "harmful", "other": 1}\n'),
        ("a.json", '[{"question": null, "images": "[\\"a.png\\", \\"b.png\\"]", "label": "harmful"}]'),
    ],
)
def test_lists_of_images_and_rows_without_text(tmp_path: Path, name: str, content: str):
    (prompt,) = read_prompts(written(tmp_path / name, content))
    assert prompt.text == ""
    assert prompt.images == (f"{tmp_path}/a.png", f"{tmp_path}/b.png")
    assert prompt.label == "harmful"


def test_lists_in_parquet_and_names_with_brackets(tmp_path: Path):
    pd.DataFrame({"text": ["a", "b"], "images": [["a.png", "b.png"], []]}).to_parquet(tmp_path / "a.parquet")
    first, second = read_prompts(tmp_path / "a.parquet")
    assert first.images == (f"{tmp_path}/a.png", f"{tmp_path}/b.png")
    assert second.images == ()
    (prompt,) = read_prompts(written(tmp_path / "a.csv", "text,image,audio\na,[1.png,[2].wav\n"))
    assert prompt.images == (f"{tmp_path}/[1.png",)
    assert prompt.audio == f"{tmp_path}/[2].wav"


def test_our_own_form_keeps_what_is_true_of_a_picture(tmp_path: Path):
    row = '{"image": "a.png", "text": "what is it?", "truth": {"label": "benign", "answer": "a cat"}}\n'
    (prompt,) = read_prompts(written(tmp_path / "a.jsonl", row))
    assert prompt.truth == Truth("benign", "a cat")
    assert prompt.images == (f"{tmp_path}/a.png",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": "b", "images": [4]}\n', "row 2: an image is of type int"),
        ("a.jsonl", '{"text": "a", "images": [null]}\n', "row 1: an image is missing"),
        ("a.jsonl", '{"text": "a", "audio": ["a", "b"]}\n', "row 1: `audio` is of type list, not a path"),
        ("a.jsonl", '{"text": "a", "audio": [[0.1], 16000]}\n', "row 1: `audio` is of type list"),
        ("a.jsonl", '{"text": "a", "image": {"bytes": ""}}\n', "row 1: an image is of type dict"),
        ("a.jsonl", '{"text": "a", "image": "a", "images": ["b"]}\n', "row 1: both `image` and `images`"),
        ("a.csv", 'text,image\na,"[3]"\n', "row 1 (line 2): an image is of type int"),
        ("a.csv", "image,n\na.png,1\n,2\n", "row 2 (line 3): the prompt is missing"),
        ("a.csv", "image,n\na.png,1\n", None),
        ("a.csv", "Image,image\na.png,b.png\n", "row 1 (line 2): two columns are named `image`"),
        ("a.jsonl", '{"text": "", "images": []}\n', "row 1: the prompt is blank"),
    ],
)
def test_a_bad_cell_of_media_is_one_line_with_the_row(
    tmp_path: Path, name: str, content: str, message: str | None
):
    path = written(tmp_path / name, content)
    if message is None:
        assert read_prompts(path).texts == [""]
        return
    with pytest.raises(PromptFileError) as caught:
        read_prompts(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_media_of_a_hub_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets

    columns = {"prompt": ["look"], "image": [Image.fromarray(picture())]}
    seen = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    heard = datasets.Dataset.from_dict({"prompt": ["hear"], "audio": [str(recording(tmp_path / "a.wav"))]})
    splits = {"seen": seen, "heard": heard.cast_column("audio", datasets.Audio())}
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: splits)
    (prompt,) = read_prompts("owner/name::seen")
    assert np.array_equal(np.asarray(prompt_images(prompt)[0]), picture())
    with pytest.raises(PromptFileError, match="row 1: `audio` is of type dict, not a path"):
        read_prompts("owner/name::heard")


# Notebooks


def data_of(shown: str, tag: str) -> list[bytes]:
    found = re.findall(rf'<{tag}[^>]* src="data:[a-z]+/[a-z]+;base64,([A-Za-z0-9+/=]+)"', shown)
    return [base64.b64decode(x, validate=True) for x in found]


def test_a_set_shows_small_pictures_and_players(tmp_path: Path):
    wide = written(tmp_path / "wide.png", encoded(picture(300, 900), "PNG"))
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000)
    shown = PromptSet(
        [Prompt("look", images=(wide, wide, picture())), Prompt("hear", audio=(tone, 48_000)), Prompt("read")]
    )._repr_html_()
    (thumbnail,) = data_of(shown, "img")
    with Image.open(io.BytesIO(thumbnail)) as image:
        assert image.size == (96, 32)
    assert "and 2 more" in shown
    (player,) = data_of(shown, "audio controls")
    samples, rate = soundfile.read(io.BytesIO(player))
    assert rate == RATE
    assert np.abs(samples - read_audio((tone, 48_000), RATE, 1.0)).max() < 1e-4
    assert shown.count("<tr>") == shown.count("</tr>") == 4
    assert "media" not in PromptSet([Prompt("read")])._repr_html_()


def test_what_a_set_shows_is_bounded():
    loud = noise(15 * RATE)
    rows = [Prompt("", images=[picture(200, 200, i)] * 5, audio=(loud, RATE)) for i in range(12)]
    shown = PromptSet(rows)._repr_html_()
    assert len(data_of(shown, "img")) == len(data_of(shown, "audio controls")) == 10
    assert len(shown) < 10 * (40_000 + 700_000)
    long = PromptSet([Prompt("", audio=(noise(17 * RATE), RATE))])._repr_html_()
    assert "17 s long, more than the 16 s allowed" in long
    assert not data_of(long, "audio controls")


def test_broken_media_show_their_error_and_names_are_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    good = written(tmp_path / f"{HOSTILE}.png", encoded(picture(), "PNG"))
    empty = written(tmp_path / f"{HOSTILE}.wav", b"")
    unread = Image.open(io.BytesIO(encoded(picture(), "JPEG")[:-40]))
    rows = [
        Prompt("", images=(good,), audio=recording(tmp_path / f"good{HOSTILE}.wav")),
        Prompt("", images=(f"absent{HOSTILE}.png",), audio=empty),
        Prompt("", images=(np.full((2, 2), np.nan),), audio=(np.zeros(9), RATE)),
        Prompt("", images=(unread,), audio=(noise(), 44_101)),
    ]
    shown = PromptSet(rows)._repr_html_()
    assert "<script" not in shown
    assert set(re.findall(r"</?(\w+)", shown)) == {"p", "b", "table", "tr", "th", "td", "img", "audio", "i"}
    assert len(data_of(shown, "img")) == 1 and len(data_of(shown, "audio controls")) == 2
    for message in ("No such file", "is empty (0 bytes)", "holds NaN", "silent", "truncated"):
        assert f"{message}" in shown
    monkeypatch.setattr("interp.data.thumbnails.read_image", lambda value: 1 // 0)
    assert "division" in PromptSet(rows)._repr_html_()


def test_reading_prompts_imports_no_decoder():
    unwanted = "{'torch', 'numpy', 'PIL', 'scipy', 'soundfile', 'datasets'}"
    code = f"import sys, interp.data.thumbnails, interp.data.pairs; print(*{unwanted} & set(sys.modules))"
    root = Path(media.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
