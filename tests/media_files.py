"""Images and recordings for tests of media: made in memory, written, and headers that lie."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from interp.data.media import read_image

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
