"""Audio is read exactly, resampled and mono, and whatever is wrong with it is a line that names it."""

import os
import re
import sys
import tracemalloc
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from media_files import RATE, encoded, noise, picture, recording, wav_header, written
from PIL import Image

from interp.data.media import read_audio, read_image
from interp.errors import MediaError


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
