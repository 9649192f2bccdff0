"""How does a request sound? Real synthesised speech by espeak-ng, in many voices, some of them kept for testing.

1. A voice is an accent and a variant (a speaker) of espeak-ng, `en-us+m3`, at a speed and a pitch. Held-out voices are speakers never
   heard in accents that were; those of held-out accents share neither speaker nor accent with the seen ones.
2. The library keeps state between utterances (where the noise and the tremor of a voice were left) and seeds its noise by the
   clock, so the same words would sound different each time. Each utterance therefore gets a freshly loaded library with a
   fixed seed: text and voice decide every sample, for 1.5 ms more.
3. Sets of clips are synthesised once and kept on disk under the hash of what they say, the voices and the library's version.
"""

from __future__ import annotations

import _ctypes
import ctypes
import hashlib
import importlib.metadata
import importlib.util
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, overload

import filelock
import numpy as np
from jaxtyping import Float32, Int16, Int64
from scipy.signal import firwin, resample_poly

from interp.errors import ResultError, UserError
from interp.files import (
    atomic_write,
    canonical,
    content_hash,
    load_arrays,
    load_json,
    remove,
    save_arrays,
    save_json,
    writing,
)
from interp.models.checkpoint import cache_dir
from interp.progress import progress as progress_bar

RATE = 16_000  # Hz, of every clip
Group = Literal["seen", "held-out", "held-out accent"]
# American, Received Pronunciation, Scottish; and New York, West Midlands
SEEN_ACCENTS = ("en-us", "en-gb-x-rp", "en-gb-scotland")
HELD_OUT_ACCENTS = ("en-us-nyc", "en-gb-x-gbcwmd")
# Left out beside the stranger ones: m8, belinda, linda and aunty, whose formants are nearly those of m7 and f4.
SEEN_VARIANTS = (
    "m1", "m2", "m3", "m5", "m6", "f1", "f2", "f3", "Annie", "Gene", "Mario", "michel", "quincy", "shelby",
)  # fmt: skip
HELD_OUT_VARIANTS = ("m4", "m7", "f4", "f5")
_GROUPS: dict[Group, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "seen": (SEEN_ACCENTS, SEEN_VARIANTS),
    "held-out": (SEEN_ACCENTS, HELD_OUT_VARIANTS),
    "held-out accent": (HELD_OUT_ACCENTS, HELD_OUT_VARIANTS),
}
SPEEDS = (250, 270, 290)  # words a minute; the longest requests then last less than 2 s
PITCHES = (35, 50, 65)

_SPEED_LIMITS, _PITCH_LIMITS = (80, 450), (0, 99)
_SYNCHRONOUS, _NO_EXIT, _UTF8 = 2, 0x8000, 1
_SPEED, _PITCH = 1, 3
_ESPEAK_RATE = 22_050
_SEED = 1
_UNLOAD = "dlclose" if hasattr(_ctypes, "dlclose") else "FreeLibrary"  # the latter on Windows
_SAMPLES, _INDEX = "samples.safetensors", "index.json"
_lock = threading.Lock()  # one library with global state, one utterance at a time


@dataclass(frozen=True, order=True)
class Voice:
    """A speaker: accent and variant as espeak-ng names them (`en-us`, `en-us+m3`), words a minute, pitch 0 to 99."""

    name: str
    speed: int = SPEEDS[1]
    pitch: int = PITCHES[1]

    def __post_init__(self) -> None:
        for what, value, (low, high) in (
            ("speed", self.speed, _SPEED_LIMITS),
            ("pitch", self.pitch, _PITCH_LIMITS),
        ):
            if not isinstance(value, int) or not low <= value <= high:
                raise UserError(
                    f"{what} of voice {self.name!r} must be a whole number from {low} to {high}, got {value}"
                )


def voices(group: Group) -> tuple[Voice, ...]:
    """Every voice of a group: accents × variants × speeds × pitches, in a fixed order."""
    accents, variants = _GROUPS[group]
    return tuple(
        Voice(f"{accent}+{variant}", speed, pitch)
        for accent in accents
        for variant in variants
        for speed in SPEEDS
        for pitch in PITCHES
    )


def synthesise(text: str, voice: Voice) -> Float32[np.ndarray, " sample"]:
    """The text as spoken by the voice: mono, 16 kHz, within [-1, 1), a whole number of 1/32768 each.

    Raises UserError for a text with nothing to say, a voice espeak-ng does not have, and where espeakng-loader is missing.
    """
    return _floats(_synthesise(text, voice))


def version() -> str:
    """The versions that decide how a text sounds: of espeak-ng and of the package that carries it and its dictionaries."""
    package = _package()
    with _lock, _library(package) as library:
        library.espeak_Info.restype = ctypes.c_char_p
        return (
            f"espeak-ng {library.espeak_Info(None).decode()}, "
            f"espeakng-loader {importlib.metadata.version('espeakng-loader')}"
        )


@dataclass(frozen=True, eq=False)
class Clips(Sequence[np.ndarray]):
    """Many clips in one array.

    samples: all of them, one after the other. offsets: clip i is `samples[offsets[i]:offsets[i + 1]]`.
    """

    samples: Int16[np.ndarray, " total"]
    offsets: Int64[np.ndarray, " clips_and_one"]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        return _floats(self.samples[self.offsets[i] : self.offsets[i + 1]])

    @property
    def seconds(self) -> np.ndarray:
        """The length of each clip."""
        return np.diff(self.offsets) / RATE


def spoken(lines: Sequence[tuple[str, Voice]], *, label: str = "speaking", progress: bool = True) -> Clips:
    """One clip a line (what is said, by whom), from the cache or synthesised and kept there.

    A set is whole or absent on disk; one that was damaged is synthesised anew. Raises what `synthesise` raises, naming the
    line counted from 1, and ResultError when the disk refuses.
    """
    if not lines:
        raise UserError("no lines to speak")
    record = {"rate": RATE, "version": version(), "lines": [[text, *_fields(voice)] for text, voice in lines]}
    key = hashlib.sha256(canonical(record).encode()).hexdigest()[:16]
    directory = cache_dir() / "speech" / key
    with writing(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(directory.with_name(f".lock-{key}"))
    with lock:
        if not _is_whole(directory):
            clips = _speak_all(lines, label, progress)
            remove(directory)
            with atomic_write(directory) as aside:
                aside.mkdir()
                save_arrays(aside / _SAMPLES, {"samples": clips.samples, "offsets": clips.offsets})
                save_json(aside / _INDEX, {**record, "sha256": content_hash(aside / _SAMPLES)})
            return clips
    arrays = load_arrays(directory / _SAMPLES)
    return Clips(arrays["samples"], arrays["offsets"])


def _speak_all(lines: Sequence[tuple[str, Voice]], label: str, progress: bool) -> Clips:
    made = []
    with progress_bar(label, total=len(lines), enabled=progress) as advance:
        for i, (text, voice) in enumerate(lines, start=1):
            try:
                made.append(_synthesise(text, voice))
            except UserError as error:
                raise UserError(f"line {i}: {error}") from error
            advance(1)
    return Clips(np.concatenate(made), np.cumsum([0, *map(len, made)], dtype=np.int64))


def _is_whole(directory: Path) -> bool:
    try:
        return load_json(directory / _INDEX)["sha256"] == content_hash(directory / _SAMPLES)
    except (ResultError, KeyError, TypeError):
        return False


def _fields(voice: Voice) -> tuple[str, int, int]:
    return voice.name, voice.speed, voice.pitch


def _floats(samples: Int16[np.ndarray, " sample"]) -> Float32[np.ndarray, " sample"]:
    return samples.astype(np.float32) / 32_768


def _synthesise(text: str, voice: Voice) -> Int16[np.ndarray, " sample"]:
    if not isinstance(text, str) or not text.strip():
        raise UserError("there is nothing to say: the text is empty")
    if "\0" in text:
        raise UserError(f"the text {text!r} holds a zero character, where espeak-ng would stop; remove it")
    package = _package()
    _check_variant(voice, Path(package.get_data_path()))
    with _lock, _library(package) as library:
        _set_voice(library, voice)
        raw = _utter(library, text)
    if not raw.any():
        raise UserError(f"there is nothing to say in {text!r}: espeak-ng gives silence")
    wave = resample_poly(raw.astype(np.float64), 320, 441, window=_low_pass())  # 22 050 Hz to 16 000
    return np.clip(np.rint(wave), -32_768, 32_767).astype(np.int16)


@cache
def _low_pass() -> np.ndarray:
    # what resample_poly designs by itself, anew for every clip
    return firwin(2 * 10 * 441 + 1, 1 / 441, window=("kaiser", 5.0))


@cache
def _package() -> Any:
    if importlib.util.find_spec("espeakng_loader") is None:
        raise UserError(
            "speech needs espeak-ng, which is not installed; run: pip install 'espeakng-loader' (or interp[speech])"
        )
    import espeakng_loader

    return espeakng_loader


@contextmanager
def _library(package: Any) -> Iterator[ctypes.CDLL]:
    """The library as new; unloading it is the only way to forget what it said before."""
    library = ctypes.CDLL(package.get_library_path())
    try:
        data = str(package.get_data_path()).encode()
        rate = library.espeak_Initialize(_SYNCHRONOUS, 0, data, _NO_EXIT)
        if rate != _ESPEAK_RATE:
            raise UserError(
                f"espeak-ng cannot start (code {rate}) with its data in {data.decode()}; reinstall espeakng-loader"
            )
        library.espeak_ng_SetRandSeed(ctypes.c_long(_SEED))
        yield library
    finally:
        library.espeak_Terminate()
        getattr(_ctypes, _UNLOAD)(library._handle)


def _check_variant(voice: Voice, data: Path) -> None:
    # espeak-ng takes an unknown variant without a word and speaks in the plain accent
    _, plus, variant = voice.name.partition("+")
    known = {path.name for path in (data / "voices" / "!v").iterdir()}
    if plus and variant not in known:
        raise UserError(
            f"espeak-ng has no variant {variant!r} (voice {voice.name!r}); try one of {', '.join(SEEN_VARIANTS + HELD_OUT_VARIANTS)}"
        )


def _set_voice(library: ctypes.CDLL, voice: Voice) -> None:
    # a voice it does not find leaves the last one in place: the code must be read
    if library.espeak_SetVoiceByName(voice.name.encode()) != 0:
        accents = ", ".join(SEEN_ACCENTS + HELD_OUT_ACCENTS)
        raise UserError(f"espeak-ng has no voice {voice.name!r}; try one of {accents}, with +m1 or the like")
    for parameter, value in ((_SPEED, voice.speed), (_PITCH, voice.pitch)):
        if library.espeak_SetParameter(parameter, value, 0) != 0:
            raise UserError(f"espeak-ng refuses speed {voice.speed} or pitch {voice.pitch} of {voice.name!r}")


def _utter(library: ctypes.CDLL, text: str) -> Int16[np.ndarray, " sample"]:
    parts: list[np.ndarray] = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def collect(wave: Any, n: int, events: Any) -> int:
        if wave and n > 0:
            parts.append(np.ctypeslib.as_array(wave, (n,)).copy())
        return 0

    library.espeak_SetSynthCallback(collect)
    raw = text.encode() + b"\0"
    code = library.espeak_Synth(raw, ctypes.c_size_t(len(raw)), 0, 1, 0, _UTF8, None, None)
    if code != 0:
        raise UserError(f"espeak-ng cannot say {text!r} (code {code})")
    library.espeak_Synchronize()
    return np.concatenate(parts) if parts else np.zeros(0, np.int16)
