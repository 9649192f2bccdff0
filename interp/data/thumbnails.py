"""What does a prompt look and sound like? Small pictures and players for a notebook's table and for a report.

Everything is bounded and escaped: the first image of a prompt at THUMBNAIL pixels, without what its file says beside the pixels;
its audio when it lasts no longer than PLAYER seconds (16 bits at 16 kHz: half a megabyte); a `Gallery` bounds a whole page. Broken
media show their error; showing never raises.
"""

from __future__ import annotations

import base64
import html
import io
import re
import wave
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from interp.data.media import read_audio, read_image
from interp.errors import MediaError

if TYPE_CHECKING:
    from interp.data.prompts import Prompt

THUMBNAIL = 96  # pixels, the longer side
PLAYER = 16.0  # seconds
PLAYER_RATE = 16_000  # Hz
GALLERY = 8 * 2**20  # bytes of all previews of a page
KINDS = {"image": "data:image/png;base64,", "audio": "data:audio/wav;base64,"}
BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")


@dataclass(frozen=True)
class Preview:
    """A small picture or a sound as a data URI, or a note in place of one.

    source: the URI; empty for a note. name: of the file, or the note itself, unescaped.
    Raises MediaError for any other source: what a page holds must not lead elsewhere.
    """

    kind: Literal["image", "audio", "note"]
    name: str
    source: str = ""

    def __post_init__(self) -> None:
        start = KINDS.get(self.kind)
        if self.source if start is None else not self._holds(start):
            raise MediaError(
                f"the preview of {self.name[:80]!r} holds something else than {start or 'a note'}"
            )

    def _holds(self, start: str) -> bool:
        return self.source.startswith(start) and BASE64.fullmatch(self.source, len(start)) is not None

    def to_html(self) -> str:
        """An image, a player or a note, escaped."""
        name = html.escape(self.name, quote=True)
        if self.kind == "image":
            return f'<img src="{self.source}" alt="{name}" title="{name}">'
        if self.kind == "audio":
            return f'<audio controls src="{self.source}" title="{name}"></audio>'
        return f"<i>{name}</i>"


class Gallery:
    """Previews of many prompts that take no more bytes together than a bound; beyond it notes stand for them."""

    def __init__(self, most: int = GALLERY) -> None:
        self.left = most

    def of(self, prompt: Prompt) -> tuple[Preview, ...]:
        """The prompt's previews, counted against the bound each time that they are asked for."""
        found = previews(prompt)
        size = sum(len(preview.source) for preview in found)
        if size > self.left:
            return (
                Preview("note", "not shown: the pictures and sounds of this page have reached their bound"),
            )
        self.left -= size
        return found


def previews(prompt: Prompt) -> tuple[Preview, ...]:
    """A prompt's first image, the number of its others, and its audio; empty where it has none."""
    found = [_shown(_picture, image) for image in prompt.images[:1]]
    if len(prompt.images) > 1:
        found.append(Preview("note", f"and {len(prompt.images) - 1} more"))
    if prompt.audio is not None:
        found.append(_shown(_player, prompt.audio))
    return tuple(found)


def media_cell(prompt: Prompt) -> str:
    """The previews of a prompt as HTML."""
    return " ".join(preview.to_html() for preview in previews(prompt))


def _shown(draw: Any, value: Any) -> Preview:
    try:
        return draw(value)
    except Exception as error:  # noqa: BLE001 - a table of prompts is shown whatever is wrong with one of them
        return Preview("note", " ".join(str(error).split())[:400] or type(error).__name__)


def _picture(value: Any) -> Preview:
    image = read_image(value)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    image.info.clear()  # a colour profile would be written with it, of whatever size
    file = io.BytesIO()
    image.save(file, "PNG")
    return Preview("image", _named(value), KINDS["image"] + _text(file))


def _player(value: Any) -> Preview:
    import numpy as np

    samples = read_audio(value, PLAYER_RATE, PLAYER)
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(PLAYER_RATE)
        writer.writeframes(np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return Preview("audio", _named(value), KINDS["audio"] + _text(file))


def _text(file: io.BytesIO) -> str:
    return base64.b64encode(file.getvalue()).decode()


def _named(value: Any) -> str:
    return value[-200:] if isinstance(value, str) else "in memory"
