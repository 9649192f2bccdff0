"""What does a model get to see and hear? The one reader of images and audio.

An image becomes RGB as it is meant to be looked at: (1) the file's orientation applied, (2) the first frame, (3) what
is transparent laid on white, (4) 16-bit greys and floats in [0, 1] brought to 8 bits.
Audio becomes mono at the rate asked for: (1) its length is read from the header, so that a long file is refused
before it is in memory, (2) integers divided by their full scale, (3) channels averaged, (4) resampled by a polyphase
filter (scipy.signal.resample_poly, Kaiser window).
Nothing is repaired, cut or padded: all else is a MediaError of one line, with the prompt's id where one is known.
PIL, numpy, scipy and soundfile are imported when something is read.
"""

from __future__ import annotations

import math
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

from interp.data.attachments import as_numpy, checked_audio, checked_rate, is_array, is_path, one_line
from interp.data.rows import kind_of
from interp.errors import MediaError

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float32, Float64, Shaped
    from PIL import Image

    from interp.data.prompts import Prompt

# PIL would also hand files to Ghostscript and to readers nobody needs here.
IMAGE_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
AUDIO_FORMATS = ("WAV", "WAVEX", "FLAC", "OGG")
MAX_PIXELS = 2**26  # 192 MiB as RGB
MAX_CHANNELS = 8
PEAK_FLOOR = 1e-4  # of full scale (-80 dB, three steps of 16 bits): below it nothing is to be heard
PEAK_CEILING = 4.0  # floats beyond it were never divided by the full scale of their integers


def read_image(value: Any) -> Image.Image:
    """Return an image in RGB, 8 bits a channel; the value itself is left as it is.

    value: a path, a PIL image (the frame it stands at) or an array or tensor "height width 3" or "height width",
    uint8 or floats in [0, 1]. Raises MediaError when it is missing, empty, truncated, no image, over MAX_PIXELS,
    not finite, out of range or of another shape or type.
    """
    from PIL import Image

    if is_path(value):
        path = os.fspath(value)
        name, _ = _regular_file(path)
        with _decoding(name, "image"), open(path, "rb") as file:
            with Image.open(file, formats=IMAGE_FORMATS) as image:
                _check_pixels(name, image.size)
                if image.format != "PNG":
                    return _rgb(name, image)
                image.verify()  # a PNG cut after its last pixel would load, its checksums unread
            file.seek(0)
            with Image.open(file, formats=IMAGE_FORMATS) as image:
                return _rgb(name, image)
    if isinstance(value, Image.Image):
        _check_pixels("the image", value.size)
        with _decoding("the image", "image"):
            return _rgb("the image", value)
    if not is_array(value):
        raise MediaError(f"an image is {kind_of(value)}, not a path, PIL image or array")
    return _image_of_array("the image", as_numpy("the image", value))


def read_audio(value: Any, rate: int, max_seconds: float) -> Float32[np.ndarray, " n"]:
    """Return mono samples at `rate` Hz, full scale 1.

    value: a path (WAV, FLAC, Ogg) or a pair of an array or tensor, "n" or "n channels", and its rate in Hz; integers
    are PCM (uint8 around 128), floats have full scale 1. max_seconds: the longest that is accepted.
    Raises MediaError when it is missing, empty, truncated, no audio, longer than max_seconds, not finite, silent
    (peak under PEAK_FLOOR), over PEAK_CEILING, or of an absurd rate or another shape or type.
    """
    import numpy as np
    from scipy.signal import resample_poly

    rate = checked_rate("the rate asked for", rate)
    if not 0 < max_seconds < math.inf:
        raise MediaError(f"max_seconds is {max_seconds}; it must be a positive number of seconds")
    value = checked_audio(value)
    if value is None:
        raise MediaError("there is no audio")
    if isinstance(value, str):
        name, mono, source = _audio_of_file(value, max_seconds)
    else:
        name, (array, source) = "the audio", value
        mono = _audio_of_array(name, as_numpy(name, array), source, max_seconds)
    if not np.isfinite(mono).all():
        raise MediaError(
            f"{name}: NaN or infinite at {int(np.argmin(np.isfinite(mono))) / source:.4g} s; clean the recording"
        )
    peak = float(np.abs(mono).max())
    if peak < PEAK_FLOOR:
        raise MediaError(f"{name}: silent (peak {peak:.1e} of full scale, under {PEAK_FLOOR:.0e})")
    if peak > PEAK_CEILING:
        raise MediaError(
            f"{name}: samples reach {peak:.4g}; floats have full scale 1 (divide int16 by 32768)"
        )
    if source != rate:
        common = math.gcd(source, rate)
        mono = resample_poly(mono, rate // common, source // common)
    return np.asarray(mono, dtype=np.float32)


def prompt_images(prompt: Prompt) -> list[Image.Image]:
    """Return a prompt's images in RGB, in order; MediaError names the prompt and the image."""
    images = []
    for number, value in enumerate(prompt.images, start=1):
        with _naming(prompt, f"image {number}"):
            images.append(read_image(value))
    return images


def prompt_audio(prompt: Prompt, rate: int, max_seconds: float) -> Float32[np.ndarray, " n"] | None:
    """Return a prompt's audio as `read_audio` does, None where it has none; MediaError names the prompt."""
    if prompt.audio is None:
        return None
    with _naming(prompt, "audio"):
        return read_audio(prompt.audio, rate, max_seconds)


def _rgb(name: str, image: Image.Image) -> Image.Image:
    import numpy as np
    from PIL import Image, ImageOps

    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        return _image_of_array(name, np.asarray(image))
    if image.mode == "I":
        raise MediaError(
            f"{name}: holds 32-bit integers, whose range nothing says; save it with 8 or 16 bits"
        )
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _image_of_array(name: str, array: Shaped[np.ndarray, "..."]) -> Image.Image:
    import numpy as np
    from PIL import Image

    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise MediaError(f"{name}: has shape {array.shape}, not (height, width, 3) or (height, width)")
    _check_pixels(name, array.shape[1::-1])
    if array.dtype != np.uint8:
        if array.dtype.kind != "f":
            raise MediaError(f"{name}: has type {array.dtype}; give uint8, or floats in [0, 1]")
        if not np.isfinite(array).all():
            raise MediaError(f"{name}: holds NaN or infinite values")
        if array.min() < 0 or array.max() > 1:
            raise MediaError(
                f"{name}: floats from {array.min():.4g} to {array.max():.4g}; give them in [0, 1], or uint8"
            )
        array = np.round(array.astype(np.float32) * 255).astype(np.uint8)
    return Image.fromarray(array).convert("RGB")


def _check_pixels(name: str, size: tuple[int, ...]) -> None:
    width, height = size
    if not width or not height:
        raise MediaError(f"{name}: is empty ({width} × {height} pixels)")
    if width * height > MAX_PIXELS:
        raise MediaError(f"{name}: {width} × {height} pixels, over the {MAX_PIXELS:,} allowed; scale it down")


def _audio_of_file(path: str, max_seconds: float) -> tuple[str, Float64[np.ndarray, " n"], int]:
    import numpy as np

    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: no libsndfile, on a platform without a wheel
        raise MediaError(
            f"audio files are read by soundfile, which fails here ({error}); pip install soundfile, "
            "and where that brings no libsndfile install it from the system's packages"
        ) from error
    name, size = _regular_file(path)
    with _decoding(name, "audio"), open(path, "rb") as head:
        if _cut_short(head, size):
            raise MediaError(f"{name}: truncated: its end is missing; copy it again")
        # the absolute path: libsndfile takes "-" for standard input
        with soundfile.SoundFile(os.path.abspath(path)) as file:
            if file.format not in AUDIO_FORMATS:
                raise MediaError(f"{name}: is {file.format_info}; convert it to WAV, FLAC or Ogg")
            rate, frames = checked_rate(f"{name}: its rate", file.samplerate), file.frames
            if frames > 2**62:
                raise MediaError(f"{name}: its header does not say how long it is; encode it again")
            _check_length(name, frames, rate, max_seconds)
            if file.channels > MAX_CHANNELS:
                raise MediaError(f"{name}: {file.channels} channels, over the {MAX_CHANNELS} allowed")
            blocks = [block.mean(axis=1) for block in file.blocks(2**16, dtype="float64", always_2d=True)]
    mono = np.concatenate(blocks)
    if len(mono) != frames:
        raise MediaError(f"{name}: truncated: {len(mono)} of {frames} samples are there; copy it again")
    return name, mono, rate


def _cut_short(file: BinaryIO, size: int) -> bool:
    """Say whether a WAV or Ogg file ends before it should; libsndfile would read it as a shorter recording."""
    magic = file.read(12)
    if magic[:4] in (b"RIFF", b"RIFX"):
        while len(chunk := file.read(8)) == 8:
            length = int.from_bytes(chunk[4:], "little" if magic[:4] == b"RIFF" else "big")
            if chunk[:4] == b"data":
                # all ones is what a program writes into a pipe: until the end
                return length != 2**32 - 1 and file.tell() + length > size
            file.seek(length + length % 2, os.SEEK_CUR)
    elif magic[:4] == b"OggS":
        # the last page (RFC 3533, section 6) must carry the end-of-stream flag and all its segments
        file.seek(max(0, size - 2**16))
        tail = file.read()
        page = tail[max(0, tail.rfind(b"OggS")) :]
        segments = page[27 : 27 + page[26]] if len(page) > 26 else b""
        return len(page) < 27 or not page[5] & 4 or len(page) < 27 + page[26] + sum(segments)
    return False


def _audio_of_array(
    name: str, array: Shaped[np.ndarray, "..."], rate: int, max_seconds: float
) -> Float64[np.ndarray, " n"]:
    import numpy as np

    if array.ndim not in (1, 2) or (array.ndim == 2 and not 1 <= array.shape[1] <= MAX_CHANNELS):
        raise MediaError(
            f"{name}: has shape {array.shape}, not (n,) or (n, channels) with 1 to {MAX_CHANNELS} channels"
        )
    _check_length(name, len(array), rate, max_seconds)
    if array.dtype == np.uint8:
        full = (array.astype(np.float64) - 128) / 128
    elif array.dtype in (np.int8, np.int16, np.int32):
        full = array / 2.0 ** (8 * array.dtype.itemsize - 1)
    elif array.dtype.kind == "f":
        full = array.astype(np.float64)
    else:
        raise MediaError(
            f"{name}: has type {array.dtype}; give floats, or PCM as uint8, int8, int16 or int32"
        )
    return full if full.ndim == 1 else full.mean(axis=1)


def _check_length(name: str, frames: int, rate: int, max_seconds: float) -> None:
    if not frames:
        raise MediaError(f"{name}: is empty (no samples)")
    if frames / rate > max_seconds:
        raise MediaError(
            f"{name}: {frames / rate:.6g} s long, more than the {max_seconds:g} s allowed; cut it"
        )


def _regular_file(path: str) -> tuple[str, int]:
    """Return how to name a file in a message, and its size in bytes."""
    name = path if path.isprintable() else repr(path)
    name = name if len(name) <= 300 else f"{name[:150]}…{name[-150:]}"
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        hint = "; only local files are read: download it first" if "://" in path else ""
        raise MediaError(f"{name}: cannot be read ({reason}){hint}") from error
    if not stat.S_ISREG(found.st_mode):
        raise MediaError(f"{name}: is a directory or device, not a file")
    if not found.st_size:
        raise MediaError(f"{name}: is empty (0 bytes)")
    return name, found.st_size


@contextmanager
def _decoding(name: str, kind: str) -> Iterator[None]:
    """Turn whatever a decoder raises into a MediaError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PIL, about pixels (bounded here) and metadata (not used)
            yield
    except MediaError:
        raise
    except PermissionError as error:
        raise MediaError(f"{name}: cannot be read ({error.strerror})") from error
    except Exception as error:  # a hostile file makes decoders stumble in every way there is
        formats = "PNG, JPEG, GIF, WebP, BMP, TIFF, PPM" if kind == "image" else "WAV, FLAC, Ogg"
        reason = one_line(error)
        if type(error).__name__ == "UnidentifiedImageError":  # its message holds only an address in memory
            reason = "not recognised"
        raise MediaError(f"{name}: truncated, damaged or no {kind} ({reason}); give {formats}") from error


@contextmanager
def _naming(prompt: Prompt, part: str) -> Iterator[None]:
    try:
        yield
    except MediaError as error:
        raise MediaError(f"prompt {prompt.id!r}: {part}: {error}") from error
