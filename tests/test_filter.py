"""`interp filter` keeps the file that it was given, counts exactly, says what it did, and fails in one line."""

import csv
import json
import random

import numpy as np
import pandas as pd
import pytest
import soundfile

from interp import cli
from interp.data.prompts import Prompt, PromptSet, read_prompts
from interp.errors import UserError
from interp.filtering import FilterConfig, filter_file, run_filter
from interp.filtering.page import page
from interp.filtering.pipeline import length

HARM = ("pick a lock at night", "steal a car from a garage", "poison a well with bleach")
NEAR = (
    "pick a lock of your own",
    "wash a car in a garage",
    "dig a well without bleach",
    "paint a garage door",
)
FAR = (
    "bake sourdough bread",
    "prune apple trees",
    "tune an old guitar",
    "knit woollen socks",
    "train for marathons",
    "fold paper cranes",
)


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"instruction": f"Please explain how to {t}.", "output": f"First, {t}.", "n": i}
        for i, t in enumerate((*NEAR, *FAR))
    ]
    random.Random(0).shuffle(rows)
    PromptSet([Prompt(text=f"Tell me how to {t}", id=f"h{i}") for i, t in enumerate(HARM)]).save(
        "harmful.jsonl"
    )
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "  \r\n\n" for row in rows))
    (tmp_path / "train.json").write_text(json.dumps(rows))
    pd.DataFrame(rows).to_csv("train.csv", index=False)
    pd.DataFrame(rows).to_csv("train.tsv", index=False, sep="\t")
    pd.DataFrame(rows).to_parquet("train.parquet")
    return rows


def kept_rows(path):
    match path.suffix:
        case ".jsonl":
            return [json.loads(line) for line in path.read_text().splitlines()]
        case ".json":
            return json.loads(path.read_text())
        case ".parquet":
            return pd.read_parquet(path).to_dict("records")
        case _:
            rows = pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",").to_dict("records")
            return rows


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_the_far_items_are_kept_in_the_format_they_came_in(files, tmp_path, suffix, capsys):
    assert (
        cli.main(
            ["filter", f"train.{suffix}", "--harmful", "harmful.jsonl", "--fraction", "0.6", "-o", "out"]
        )
        == 0
    )
    expected = [row for row in files if any(far in row["instruction"] for far in FAR)]
    assert kept_rows(tmp_path / "out" / f"kept.{suffix}") == expected  # every column, the file's own order
    said = capsys.readouterr().out
    assert (
        "Kept 6 of 10 items (60.0%): those farthest from 3 harmful items, by lexical:tfidf (raw min)." in said
    )
    table = pd.read_csv(tmp_path / "out" / "distances.csv")
    assert len(table) == 10 and table["kept"].sum() == 6 and table["score"].is_monotonic_increasing
    first = table.iloc[0]
    assert "pick a lock" in first["text"] and first["lexical:tfidf nearest"] == "h0"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "pick a lock of your own" in page and "poison a well" in page and "<script" not in page
    assert (tmp_path / "out" / "figures" / "distances.pdf").stat().st_size > 1000


def test_lines_and_cells_are_copied_and_not_made_anew(files, tmp_path):
    odd = [
        '{"instruction":  "bake a cake", "x": 1.10, "id": "a"}',
        '{"instruction": "caf\\u00e9 lock", "x": 1e5, "id": "b"}',
    ]
    (tmp_path / "odd.jsonl").write_text("\n".join([*odd, '{"instruction": "pick a lock", "id": "c"}']))
    filter_file(FilterConfig(benign="odd.jsonl", harmful="harmful.jsonl", fraction=0.67), tmp_path / "o")
    assert (tmp_path / "o" / "kept.jsonl").read_text().splitlines() == odd
    (tmp_path / "odd.csv").write_text(
        'instruction,,note\n"bake, now",NaN,"a\nb"\n"pick a lock",,\nknit socks,7,""\n'
    )
    filter_file(FilterConfig(benign="odd.csv", harmful="harmful.jsonl", fraction=0.67), tmp_path / "table")
    with (tmp_path / "table" / "kept.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["instruction", "", "note"],
            ["bake, now", "NaN", "a\nb"],
            ["knit socks", "7", ""],
        ]


@pytest.mark.parametrize("keep", ["distant", "proximate", "random", "matched:distant", "matched:proximate"])
def test_sizes_are_exact_and_follow_ids(files, tmp_path, keep):
    rows = [
        {"id": f"x{i}", "prompt": f"{HARM[i % 3]} {FAR[i % 6]}" if i % 4 else FAR[i % 6]} for i in range(47)
    ]
    for name, order in (("one", rows), ("two", random.Random(1).sample(rows, 47))):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, order)))
    for fraction, size in ((0.25, 11), (0.5, 23), (0.75, 35)):
        config = FilterConfig(benign="one.jsonl", harmful="harmful.jsonl", keep=keep, fraction=fraction)
        one, two = (
            run_filter(config),
            run_filter(config.model_copy(update={"benign": tmp_path / "two.jsonl"})),
        )
        assert len(one.kept) == size
        assert set(one.kept) == set(two.kept)
        assert list(two.kept) == [
            row["id"] for row in random.Random(1).sample(rows, 47) if row["id"] in set(one.kept)
        ]
        if keep == "distant" and fraction == 0.25:
            assert (
                "12 items are equally far at the cut; a hash of the seed and their ids (their contents"
                in " ".join(one.notes)
            )
            assert "items repeat another" in " ".join(one.notes)


def test_axes_are_combined_by_rank_and_the_page_says_how_they_agree(files, tmp_path):
    wave = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    (tmp_path / "clips").mkdir()
    for name, prompts in (("benign", (*NEAR, *FAR)), ("bad", HARM)):
        lines = []
        for i, text in enumerate(prompts):
            tone = np.sin(2 * np.pi * (200 + 150 * i) * np.arange(16_000) / 16_000).astype(np.float32)
            soundfile.write(tmp_path / "clips" / f"{name}{i}.wav", 0.3 * tone + 0.2 * wave, 16_000)
            lines.append(json.dumps({"text": text, "id": f"{name}{i}", "audio": f"clips/{name}{i}.wav"}))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    axes = ["--axis", "lexical", "--axis", "audio:mfcc", "--axis", "audio:mfcc"]
    assert (
        cli.main(
            ["filter", "benign.jsonl", "--harmful", "bad.jsonl", *axes[:4], "--centred", "-o", "deep/out"]
        )
        == 0
    )
    found = read_prompts(tmp_path / "deep" / "out" / "kept.jsonl")
    # the clips are where the new file says they are
    assert len(found) == 5 and all(soundfile.info(prompt.audio).frames == 16_000 for prompt in found)
    page = (tmp_path / "deep" / "out" / "report.html").read_text()
    assert "combined rank" in page and "Rank correlation of lexical:tfidf and audio:mfcc: " in page
    assert cli.main(["filter", "benign.jsonl", "--harmful", "bad.jsonl", *axes]) == 2
    # beside its source a path stays as it was
    assert cli.main(["filter", "benign.jsonl", "--harmful", "bad.jsonl", "-o", "."]) == 0
    assert '"audio": "clips/' in (tmp_path / "kept.jsonl").read_text()


def test_text_on_the_page_is_shown_and_not_run(files, tmp_path):
    rows = [{"id": f"{i}", "prompt": f"<script>alert({i})</script> \u202e {NEAR[i]}"} for i in range(4)]
    (tmp_path / "bad.jsonl").write_text("\n".join(map(json.dumps, rows)))
    filter_file(FilterConfig(benign="bad.jsonl", harmful="harmful.jsonl"), tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "\u202e" not in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["train.csv", "--keep", "near"], "unknown --keep 'near'; use distant, proximate"),
        (["train.csv", "--axis", "loudness"], "unknown encoder 'loudness'"),
        (["train.csv", "--axis", "audio:mfcc"], "it has no audio"),
        (["train.csv", "--axis", "gradient"], "give it with --model"),
        (["train.csv", "--fraction", "0.05"], "5% of 10 items is less than one"),
        (["train.csv", "--fraction", "1.5"], "1.5 is not between 0 and 1"),
        (["train.csv", "--measure", "top-9"], "--measure top-9: there are only 3 harmful items"),
        (["train.csv", "--measure", "max"], "unknown measure 'max'"),
        (["train.csv", "--stop-words", "absent.txt"], "absent.txt: cannot be read"),
        (["train.csv", "--column", "nope"], "no column 'nope'"),
        (["same.csv"], "all 3 items have the same min distance"),
    ],
)
def test_failures_are_one_line_and_write_nothing(files, tmp_path, arguments, said, capsys):
    (tmp_path / "same.csv").write_text("prompt\nbake\nknit\nsew\n")
    assert cli.main(["filter", *arguments, "--harmful", "harmful.jsonl", "-o", "out"]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_length_is_what_training_reads():
    assert length(Prompt(text="two words", response="and three more", id="a")) == 5
    assert length(Prompt(text="", id="b", audio=(np.full(8000, 0.1, np.float32), 16_000))) == 0.5


def test_a_filter_does_not_write_over_what_it_was_given(files, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    before = (tmp_path / "train.jsonl").read_bytes()
    (tmp_path / "in" / "kept.jsonl").write_bytes(before)
    assert cli.main(["filter", "in/kept.jsonl", "--harmful", "harmful.jsonl", "-o", "in"]) == 2
    assert "in/kept.jsonl would be written over" in capsys.readouterr().err
    assert (tmp_path / "in" / "kept.jsonl").read_bytes() == before
    assert cli.main(["filter", "train.jsonl", "--harmful", "harmful.jsonl", "-o", "out"]) == 0
    assert cli.main(["filter", "train.csv", "--harmful", "harmful.jsonl", "-o", "out"]) == 2
    assert "kept.jsonl is of another filter" in capsys.readouterr().err
    assert cli.main(["filter", "train.jsonl", "--harmful", "harmful.jsonl", "-o", "out"]) == 0, (
        "its own is replaced"
    )


@pytest.mark.parametrize("keep", ["distant", "random", "matched:distant"])
def test_without_ids_neither_the_files_name_nor_its_order_decides(files, tmp_path, keep):
    lines = [line for line in (tmp_path / "train.jsonl").read_text().splitlines() if line.strip()]
    found = []
    for name, rows in (("train", lines), ("renamed", lines), ("turned", lines[::-1])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
        one = run_filter(
            FilterConfig(benign=f"{name}.jsonl", harmful="harmful.jsonl", keep=keep, fraction=0.3)
        )
        texts = dict(zip(one.benign.ids, one.benign.texts, strict=True))
        found.append({texts[name] for name in one.kept})
        assert len(one.kept) == 3 and len(one.to_frame()) == 10
    assert found[0] == found[1] == found[2]


def test_a_choice_by_chance_says_so(files):
    """Six items share no word with harm: all are as far, and half of them are kept."""
    found = run_filter(FilterConfig(benign="train.jsonl", harmful="harmful.jsonl", fraction=0.3))
    assert any("They are most of what is kept" in note for note in found.notes)
    near = run_filter(
        FilterConfig(benign="train.jsonl", harmful="harmful.jsonl", keep="proximate", fraction=0.3)
    )
    assert not any("most of what is kept" in note for note in near.notes)


def test_axes_that_undo_each_other_are_refused(files, monkeypatch):
    from interp.filtering import pipeline

    ranks, measure = pipeline.combined_rank, pipeline._measure
    monkeypatch.setattr(pipeline, "combined_rank", lambda axes: ranks([axes[0], -axes[0]]))
    # the second axis is the first once more: only its turned order counts
    monkeypatch.setattr(
        pipeline, "_measure", lambda config, names, *sets: (2 * measure(config, names[:1], *sets)[0], [])
    )
    with pytest.raises(UserError, match="is the same for all 10 items"):
        run_filter(FilterConfig(benign="train.jsonl", harmful="harmful.jsonl", axes=("lexical", "semantic")))


def test_half_a_character_is_named(files, tmp_path, capsys):
    rows = [{"prompt": text, "note": "\ud800"} for text in (*NEAR, *FAR)]
    (tmp_path / "half.json").write_text(json.dumps(rows))
    assert cli.main(["filter", "half.json", "--harmful", "harmful.jsonl", "-o", "half"]) == 2
    error = capsys.readouterr().err
    assert "half a character ('\\ud800')" in error and len(error.strip().splitlines()) == 1


def test_the_nearest_on_the_page_are_those_of_the_measure(files):
    found = run_filter(FilterConfig(benign="train.jsonl", harmful="harmful.jsonl", measure="top-2"))
    table = next(t for section in page(found).sections for t in section.tables if t.name == "nearest-1")
    values = [row[1] for row in table.rows]
    assert table.header[1] == "top-2 distance" and values == sorted(values) and len(set(values)) > 2
    assert values != sorted(row[2] for row in table.rows), "another order than by the nearest alone"
    plain = run_filter(FilterConfig(benign="train.jsonl", harmful="harmful.jsonl"))
    table = next(t for section in page(plain).sections for t in section.tables if t.name == "nearest-1")
    assert table.header[1] == "raw, to the nearest"
