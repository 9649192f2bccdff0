"""What may a prompt carry beside its text? Images and audio as values: checked, compared and moved, but not yet read.

A path stands for the file's content: two prompts are equal when their files hold the same bytes, wherever these lie,
and a result is computed anew when a picture has changed. Reading is `interp.data.media`'s.
No torch, PIL or numpy at import.
"""

from __future__ import annotations

import hashlib
import json
import numbers
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from interp.data.rows import kind_of
from interp.errors import MediaError

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Shaped

    from interp.data.prompts import Prompt

MEDIA = ("image", "images", "audio")  # columns and JSON fields
RATES = (1_000, 384_000)  # Hz, of audio that is read and of what is asked for
ORIENTATION = 0x0112  # the EXIF tag


def media_fields(record: Mapping[str, Any], encoded: bool = False) -> dict[str, Any]:
    """Return the `images` and `audio` of a prompt from the MEDIA of a row: one value or a list of them.

    encoded: read a text that is a JSON list as that list, since a cell of a CSV holds only text. MediaError when
    `image` and `images` are both given.
    """
    given = {name: _listed(record[name], encoded) for name in MEDIA if record.get(name) is not None}
    if "image" in given and "images" in given:
        raise MediaError("both `image` and `images` are given; keep one of them")
    audio = given.get("audio", [])
    return {
        "images": tuple(given.get("image", given.get("images", ()))),
        "audio": (audio[0] if audio else None) if len(audio) < 2 else audio,
    }


def _listed(value: Any, encoded: bool) -> list[Any]:
    if encoded and isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return [value]  # a file name may start with a bracket
    return value if isinstance(value, list) else [value]


def checked_images(value: Any) -> tuple[Any, ...]:
    """Return a prompt's images as a tuple of texts (paths), PIL images and arrays, unread; else MediaError."""
    if not isinstance(value, list | tuple):
        raise MediaError(f"`images` is {kind_of(value)}, not a list of images")
    for item in value:
        if not (is_path(item) or is_array(item) or _is_pil(item)):
            raise MediaError(f"an image is {_kind(item)}, not a path, PIL image or array")
    return tuple(os.fspath(item) if is_path(item) else item for item in value)


def checked_audio(value: Any) -> str | tuple[Any, int] | None:
    """Return a prompt's audio as text (a path), (array, rate) or None, unread; else MediaError."""
    if value is None:
        return None
    if is_path(value):
        return os.fspath(value)
    if is_array(value):
        raise MediaError("`audio` is an array without its rate; give (array, rate in Hz)")
    if not isinstance(value, list | tuple) or len(value) != 2 or not is_array(value[0]):
        raise MediaError(f"`audio` is {_kind(value)}, not a path or a pair (array, rate in Hz)")
    return value[0], checked_rate("the rate of `audio`", value[1])


def _kind(value: Any) -> str:
    return "an empty text" if isinstance(value, str) else kind_of(value)


def media_hash(value: Any) -> str:
    """Return a hash of an image or of audio: a file by its bytes, wherever it lies, and by its path while missing."""
    if isinstance(value, str):
        path = os.path.join(os.getcwd(), value)
        try:
            found = os.stat(path)
            if stat.S_ISREG(found.st_mode):
                return _file_hash(path, found.st_ino, found.st_size, found.st_mtime_ns)
        except (OSError, ValueError):
            pass  # a missing file is an error where it is read, not where prompts are compared
        return f"missing {path}"
    if isinstance(value, tuple):
        array, rate = value
        return hashlib.sha256(f"{rate} Hz {media_hash(array)}".encode()).hexdigest()
    if is_array(value):
        array = as_numpy("an array of a prompt", value)
        return hashlib.sha256(repr((array.shape, array.dtype.str)).encode() + array.tobytes()).hexdigest()
    try:
        raw = value.tobytes()
        looks = (value.mode, value.size, value.getpalette(), value.info.get("transparency"))
        return hashlib.sha256(repr((*looks, value.getexif().get(ORIENTATION))).encode() + raw).hexdigest()
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
    ) as error:  # PIL reads a file when its pixels are asked for
        raise MediaError(f"an image of a prompt cannot be read ({one_line(error)})") from error


@lru_cache(maxsize=2**16)
def _file_hash(path: str, inode: int, size: int, modified: int) -> str:
    """The path, inode, size and time of change are the key under which the hash of the bytes is kept."""
    with open(path, "rb") as file:
        return f"file {hashlib.file_digest(file, 'sha256').hexdigest()}"


def absolute(path: str, directory: str) -> str:
    """Return a path that a file in `directory` holds, as one from anywhere; nothing is looked up or normalised."""
    return os.path.join(os.path.abspath(directory), path)


def portable(path: str, directory: str) -> str:
    """Return a path as a file in `directory` should hold it, so that the two can move together: `absolute`'s inverse.

    Relative to the directory where it lies under it, else absolute.
    """
    full, start = os.path.join(os.getcwd(), path), os.path.join(os.path.abspath(directory), "")
    rest = full.removeprefix(start)
    return rest if rest and not os.path.isabs(rest) else full


def moved(prompt: Prompt, place: Callable[[str, str], str], directory: str) -> Prompt:
    """Return the prompt with `place(path, directory)`, `absolute` or `portable`, for each path that it holds."""
    if not prompt.images and prompt.audio is None:
        return prompt
    images = tuple(place(x, directory) if isinstance(x, str) else x for x in prompt.images)
    audio = place(prompt.audio, directory) if isinstance(prompt.audio, str) else prompt.audio
    return replace(prompt, images=images, audio=audio)


def checked_rate(name: str, rate: Any) -> int:
    """Return a rate in Hz as int; MediaError, which calls it `name`, where it is none within RATES."""
    if not isinstance(rate, numbers.Integral) or isinstance(rate, bool):
        raise MediaError(f"{name} is {rate!r}, not a whole number of Hz")
    if not RATES[0] <= rate <= RATES[1]:
        raise MediaError(f"{name} is {rate} Hz, not between {RATES[0]} and {RATES[1]} Hz")
    return int(rate)


def is_path(value: Any) -> bool:
    """Say whether a value names a file."""
    return (isinstance(value, str) and value != "") or isinstance(value, os.PathLike)


def is_array(value: Any) -> bool:
    """Say whether a value is an array or tensor of any library."""
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _is_pil(value: Any) -> bool:
    return all(hasattr(value, name) for name in ("mode", "size", "getexif", "tobytes"))


def as_numpy(name: str, value: Any) -> Shaped[np.ndarray, "..."]:
    """Return an array or tensor of numbers as a numpy array; MediaError, which calls it `name`, where it is none."""
    import numpy as np

    try:
        value = value.detach().cpu() if hasattr(value, "detach") else value
        array = np.asarray(value.numpy() if hasattr(value, "numpy") else value)
    except (TypeError, RuntimeError, ValueError) as error:
        raise MediaError(f"{name}: cannot be made a numpy array ({one_line(error)})") from error
    if array.dtype.kind not in "biuf":
        raise MediaError(f"{name}: has type {array.dtype}, not numbers")
    return array


def one_line(error: Exception) -> str:
    """Return what another library's error says, fit for the end of a message."""
    return " ".join(str(getattr(error, "error_string", error)).split())[:200] or type(error).__name__
