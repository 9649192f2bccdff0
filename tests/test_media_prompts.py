"""Prompts carry images and audio without loss, in memory, in files and through the hub."""

import io
import json
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from media_files import RATE, encoded, noise, picture, recording, written
from PIL import Image

from interp.data import attachments
from interp.data.media import prompt_audio, prompt_images
from interp.data.prompts import Prompt, PromptSet, Truth, read_prompts
from interp.errors import MediaError, PromptFileError


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
