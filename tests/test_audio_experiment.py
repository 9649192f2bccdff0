"""The share of speech is the smallest that is enough on every seed, and the page holds what was measured."""

import math

import pandas as pd
import pytest

from experiments import audio_organism
from experiments.audio_organism import BEGIN, END, SHOWN_MODALITIES, Config, Result, figure, run, write_docs
from interp.organisms import audio


def measured(refused: float) -> dict[str, dict[str, float]]:
    """A card's numbers with this refusal wherever something is heard."""
    written = {"k": 9, "n": 10, "estimate": 0.99, "low": 0.9, "high": 1.0}
    kinds = (("refusal", "harmful"), ("over-refusal", "benign"), ("capability", "benign"))
    return {
        f"{kind}, {label}, {modality}": {**written, "estimate": 0.99 if modality == "text" else refused}
        for kind, label in kinds
        for modality in SHOWN_MODALITIES.values()
    }


def cards(seed: int):
    made = {"encoder": 0.98, "pretrained": 0.0, "aligned-text": 0.4, "aligned": 0.95}
    return {stage: {"measured": measured(refused)} for stage, refused in made.items()}


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Organisms of which a share of 0.05 is enough on seed 0 only."""
    trained = []

    def align(recipe, turns, model, seed, *, label, progress):
        trained.append((seed, label))
        model["refused"] = {(0, "5% speech"): 0.92, (1, "5% speech"): 0.8}.get((seed, label), 1.0)

    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    monkeypatch.setattr(audio, "SPEECH_SHARE", 0.2)
    monkeypatch.setattr(audio, "build", lambda seed, progress: None)
    monkeypatch.setattr(audio, "cards", cards)
    monkeypatch.setattr(audio, "load", lambda directory: {})
    stages = audio_organism.audio_stages
    monkeypatch.setattr(stages, "train_stage", align)
    monkeypatch.setattr(stages, "measure", lambda model, sets: measured(model["refused"]))
    for seed in (0, 1):
        card = tmp_path / "organisms" / "audio" / f"seed-{seed}" / "pretrained" / "card.json"
        card.parent.mkdir(parents=True)
        card.write_text('{"source": {}}')
    return trained, tmp_path


def test_every_share_is_measured_once_and_the_smallest_that_is_enough_on_all_seeds_is_named(fake):
    trained, path = fake
    result = run(Config(seeds=(0, 1), out=path), progress=False)
    assert trained == [(0, "5% speech"), (0, "50% speech"), (1, "5% speech"), (1, "50% speech")]
    assert result.smallest_share == 0.2
    frame = result.shares.set_index(["share", "seed"])
    assert frame["harmful speech"].tolist() == [0.4, 0.4, 0.92, 0.8, 0.95, 0.95, 1.0, 1.0]
    again = run(Config(seeds=(0, 1), out=path), progress=False)
    assert len(trained) == 4
    pd.testing.assert_frame_equal(again.shares, result.shares)
    assert set(result.cards["stage"]) == {"encoder", *audio.STAGES}
    assert run(Config(seeds=(0,), out=path), progress=False).smallest_share == 0.05
    none = Result(result.cards, result.shares[result.shares["share"] < 0.05])
    assert math.isnan(none.smallest_share)


def test_a_share_trained_by_another_recipe_is_trained_anew(fake, monkeypatch):
    trained, path = fake
    run(Config(seeds=(0,), out=path), progress=False)
    longer = audio.ALIGNMENT.model_copy(update={"steps": audio.ALIGNMENT.steps + 1})
    monkeypatch.setattr(audio, "ALIGNMENT", longer)
    run(Config(seeds=(0,), out=path), progress=False)
    assert len(trained) == 4


def test_tables_and_figure_go_between_the_markers(fake):
    _, path = fake
    page, image = path / "page.md", path / "image.png"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    image.write_bytes(b"png")
    (path / "img").mkdir()
    result = run(Config(seeds=(0, 1), out=path), progress=False)
    write_docs(result, page, image)
    once = page.read_text()
    assert (path / "img" / "audio-refusal.png").read_bytes() == b"png"
    assert "old" not in once
    assert "| 0.05 | 0 | 0.99 | 0.92 |" in once
    write_docs(result, page, image)
    assert page.read_text() == once
    panels = figure(result.shares).axes
    lines = [line for line in panels[0].get_lines() if line.get_label().endswith("%")]
    assert [line.get_label() for line in lines] == ["0%", "5%", "20%", "50%"]
    assert lines[1].get_ydata().tolist() == pytest.approx([0.99] + [0.86] * 4)
