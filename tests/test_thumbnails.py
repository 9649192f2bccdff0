"""Small pictures and players are bounded, escaped, and lead nowhere."""

import base64
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from media_files import HOSTILE, RATE, encoded, noise, picture, recording, written
from PIL import Image

from interp.data import media
from interp.data.media import read_audio
from interp.data.prompts import Prompt, PromptSet
from interp.data.thumbnails import Gallery, Preview, previews
from interp.errors import MediaError


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


def test_a_page_of_many_is_bounded(tmp_path: Path):
    gallery = Gallery(most=3 * 2**20)
    rows = [Prompt("", images=[picture(200, 200, i)], audio=(noise(15 * RATE), RATE)) for i in range(12)]
    shown = [gallery.of(prompt) for prompt in rows]
    assert sum(len(preview.source) for found in shown for preview in found) <= 3 * 2**20
    assert [preview.kind for preview in shown[0]] == ["image", "audio"]
    (note,) = shown[-1]
    assert note.kind == "note" and "reached their bound" in note.name


def test_what_a_file_says_beside_its_pixels_is_left_out(tmp_path: Path):
    path = tmp_path / "big.png"
    profile = os.urandom(2**20)
    Image.fromarray(picture()).save(path, icc_profile=profile)
    (shown,) = previews(Prompt("", images=(path,)))
    assert path.stat().st_size > 2**20 and len(shown.source) < 1000


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("image", "https://example.org/x.png"),
        ("image", 'data:image/png;base64,AA"><script>'),
        ("image", "data:image/svg+xml;base64,AAAA"),
        ("audio", "data:image/png;base64,AAAA"),
        ("note", "data:image/png;base64,AAAA"),
        ("image", ""),
    ],
)
def test_a_preview_leads_nowhere_else(kind: str, source: str):
    with pytest.raises(MediaError, match="the preview of 'x' holds something else"):
        Preview(kind, "x", source)
