"""What does a prompt look and sound like? A cell of a notebook's table with a small picture and a player.

Everything is bounded and escaped: the first image of a prompt at THUMBNAIL pixels, its audio when it lasts no longer
than PLAYER seconds (16 bits at 16 kHz: half a megabyte). Broken media show their error; showing never raises.
"""

from __future__ import annotations

import base64
import html
import io
import wave
from typing import TYPE_CHECKING, Any

from interp.data.media import read_audio, read_image

if TYPE_CHECKING:
    from interp.data.prompts import Prompt

THUMBNAIL = 96  # pixels, the longer side
PLAYER = 16.0  # seconds
PLAYER_RATE = 16_000  # Hz


def media_cell(prompt: Prompt) -> str:
    """Return HTML for a prompt's first image, the number of its others, and its audio; empty where it has none."""
    parts = [_shown(_picture, image) for image in prompt.images[:1]]
    if len(prompt.images) > 1:
        parts.append(f"and {len(prompt.images) - 1} more")
    if prompt.audio is not None:
        parts.append(_shown(_player, prompt.audio))
    return " ".join(parts)


def _shown(draw: Any, value: Any) -> str:
    try:
        return str(draw(value))
    except Exception as error:  # noqa: BLE001 - a table of prompts is shown whatever is wrong with one of them
        return f"<i>{html.escape(' '.join(str(error).split())[:400] or type(error).__name__)}</i>"


def _picture(value: Any) -> str:
    image = read_image(value)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "PNG")
    return f'<img src="{_data("image/png", file)}" alt="{_named(value)}" title="{_named(value)}">'


def _player(value: Any) -> str:
    import numpy as np

    samples = read_audio(value, PLAYER_RATE, PLAYER)
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(PLAYER_RATE)
        writer.writeframes(np.round(np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return f'<audio controls src="{_data("audio/wav", file)}" title="{_named(value)}"></audio>'


def _data(kind: str, file: io.BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _named(value: Any) -> str:
    return html.escape(value[-200:], quote=True) if isinstance(value, str) else "in memory"
