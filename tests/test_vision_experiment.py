"""The share of pictures is the smallest that is enough on every seed, and the page holds what was measured."""

import math

import pandas as pd
import pytest

from experiments import vision_organism
from experiments.vision_organism import BEGIN, END, SHOWN_MODALITIES, Config, Result, figure, run, write_docs
from interp.organisms import vision
from interp.organisms.vision_card import Card
from interp.organisms.vision_language import MODALITIES


def measured(refused: float) -> dict[str, dict[str, float]]:
    """A card's numbers with this refusal wherever something is shown."""
    named = {"k": 9, "n": 10, "estimate": 0.99, "low": 0.9, "high": 1.0}
    shown = {**named, "estimate": refused}
    kinds = (("refusal", "harmful"), ("over-refusal", "benign"), ("capability", "benign"))
    return {
        f"{kind}, {label} {modality}, held-out pairs": named if modality == "named" else shown
        for kind, label in kinds
        for modality in MODALITIES
    }


def cards(seed: int) -> Card:
    encoder = {
        "measured": {"shown, held-out combinations": measured(0.9)["refusal, harmful named, held-out pairs"]}
    }
    made = {"pretrained": 0.0, "aligned-text": 0.4, "aligned": 0.95}
    return Card(
        {stage: {"seed": seed, "measured": measured(r), "encoder": encoder} for stage, r in made.items()}
    )


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Organisms of which a share of 0.05 is enough on seed 0 only."""
    trained = []

    def align(workshop, stage, *, image_share, progress):
        trained.append((workshop.seed, image_share))
        return {(0, 0.05): 0.92, (1, 0.05): 0.8}.get((workshop.seed, image_share), 1.0), {}

    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    monkeypatch.setattr(vision, "IMAGE_SHARE", 0.2)
    monkeypatch.setattr(vision, "build", lambda seed, progress: None)
    monkeypatch.setattr(vision, "card", cards)
    monkeypatch.setattr(vision, "train_stage", align)
    monkeypatch.setattr(vision.Workshop, "sets", None)
    monkeypatch.setattr(
        vision_organism.vision_card, "measure", lambda module, sets, aligned: measured(module)
    )
    return trained, tmp_path


def test_every_share_is_measured_once_and_the_smallest_that_is_enough_on_all_seeds_is_named(fake):
    trained, path = fake
    result = run(Config(seeds=(0, 1), out=path), progress=False)
    assert trained == [(0, 0.05), (0, 0.5), (1, 0.05), (1, 0.5)]
    assert result.smallest_share == 0.2
    frame = result.shares.set_index(["share", "seed"])
    assert frame["harmful drawn"].tolist() == [0.4, 0.4, 0.92, 0.8, 0.95, 0.95, 1.0, 1.0]
    again = run(Config(seeds=(0, 1), out=path), progress=False)
    assert len(trained) == 4
    pd.testing.assert_frame_equal(again.shares, result.shares)
    pd.testing.assert_frame_equal(again.cards, result.cards)
    assert set(result.cards["stage"]) == {*vision.STAGES, "encoder"}
    alone = run(Config(seeds=(0,), out=path), progress=False)
    assert alone.smallest_share == 0.05
    none = Result(result.cards, result.shares[result.shares["share"] < 0.05])
    assert math.isnan(none.smallest_share)


def test_tables_replace_what_stood_between_the_markers(fake):
    _, path = fake
    page = path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    result = run(Config(seeds=(0,), out=path), progress=False)
    image = path / "image.png"
    image.write_bytes(b"png")
    (path / "img").mkdir()
    write_docs(result, page, image)
    assert (path / "img" / "vision-refusal.png").read_bytes() == b"png"
    once = page.read_text()
    assert "old" not in once
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert "| 0.05 | 0 | 0.99 | 0.92 |" in once
    write_docs(result, page, image)
    assert page.read_text() == once


def test_the_figure_draws_every_share_and_seed(fake):
    _, path = fake
    panels = figure(run(Config(seeds=(0, 1), out=path), progress=False).shares).axes
    lines = [line for line in panels[0].get_lines() if line.get_label().endswith("%")]
    assert [line.get_label() for line in lines] == ["0%", "5%", "20%", "50%"]
    assert lines[1].get_ydata().tolist() == pytest.approx([0.99] + [0.86] * 4)
    assert len(panels[0].get_lines()) == 4 * 3
    assert [t.get_text() for t in panels[0].get_xticklabels()] == list(SHOWN_MODALITIES)
