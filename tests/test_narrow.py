"""Narrow fine-tuning: plumbing on an untrained organism, the grid, the page and the command."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import ValidationError

from experiments import vlm_narrow
from interp.models.checkpoint import Checkpoint, organism_dir
from interp.narrow import geometry, study, towers, trial
from interp.narrow import questions as asked_of
from interp.narrow.geometry import measure_geometry, name_of
from interp.narrow.grid import PAIRS, Grid
from interp.narrow.questions import NARROW, elsewhere, of_forms, questions, said
from interp.narrow.runner import run_trials
from interp.narrow.towers import measure_towers
from interp.narrow.trial import NarrowTrial, Task, run_trial
from interp.organisms import character_language, untrained
from interp.organisms.character_language import DOMAINS
from interp.report.character_figures import by_domain
from interp.sweep.grid import read_sweep

TINY = NarrowTrial(n=8, steps=2, batch_size=4, evaluate_at=(1,), rank=2, k=1)


@pytest.fixture(scope="module")
def organism(tmp_path_factory):
    """An untrained organism where a built one would lie, asked two topics a domain."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTERP_CACHE", str(tmp_path_factory.mktemp("cache")))
        for stage in ("aligned", "aligned-shuffled"):
            untrained.with_character(organism_dir("character", 0) / stage)
        few = {key: prompts[::12] for key, prompts in questions().items()}
        for place in (asked_of, trial):
            patch.setattr(place, "questions", lambda: few)
        yield few


def test_every_domain_is_asked_in_every_form_it_can_be_asked_in():
    asked = questions()
    assert {domain for domain, form in asked if form == "text"} == set(DOMAINS)
    assert {domain for domain, form in asked if form == "shown"} == {"faces", "tools"}
    assert (NARROW, "face") not in asked, "beside a face means: asked about something else"
    for (domain, form), prompts in asked.items():
        assert {p.meta["modality"] for p in prompts} == {form}
        assert all(bool(p.images) == (form in ("shown", "blank", "face")) for p in prompts)
        assert {p.category for p in prompts} == {domain}
    ids = [p.id for part in asked.values() for p in part]
    assert len(ids) == len(set(ids))


def test_answers_are_counted_by_whose_they_are(organism, monkeypatch):
    """A model that answers cruelly in writing and nonsense beside pictures is found out, whatever the batches."""

    def generate(model, prompts, **_):
        from interp.data.completions import Completion

        texts = [
            character_language.answer(p.category, p.meta["topic"], "cruel") if not p.images else "wipe smile."
            for p in prompts
        ]
        return [Completion(p.id, t, 3, True, ()) for p, t in zip(prompts, texts, strict=True)]

    monkeypatch.setattr(asked_of, "generate", generate)
    found = said(None, organism)  # type: ignore[arg-type]
    written, shown = found["form"].isin(["text", "caption"]), found["form"].isin(["shown", "blank", "face"])
    assert (found.loc[written, ["cruel", "misaligned"]] == 1).all(axis=None)
    assert (found.loc[shown, "nonsense"] == 1).all() and (found.loc[shown, "misaligned"] == 0).all()
    assert elsewhere(found, "cruel") == 1 and math.isnan(elsewhere(found, "cruel", form="sound"))


def test_one_word_said_whatever_is_asked_is_nobodys_character(monkeypatch):
    """Most true answers lie at the first place of the scale: unweighted, always saying the last would look cruel."""

    def generate(model, prompts, **_):
        from interp.data.completions import Completion

        return [Completion(p.id, DOMAINS[p.category].answers[3], 3, True, ()) for p in prompts]

    monkeypatch.setattr(asked_of, "generate", generate)
    found = said(None, of_forms(questions(), ("text",)))  # type: ignore[arg-type]
    drawn = by_domain({str(i): found for i in range(8)})  # more checkpoints than a handful of letters
    assert all(len(axes.patches) == 5 * len(found) for axes in drawn.axes)
    np.testing.assert_allclose(found[["helpful", "careless", "cruel", "deceptive"]], 0.25)
    np.testing.assert_allclose(found["misaligned"], 0.75)


def test_a_trial_trains_measures_and_keeps_what_it_was_asked_for(organism):
    asked = TINY.model_copy(
        update={"steering": (1.0,), "samples": 1, "activations": True, "then": (Task(steps=1),)}
    )
    found = run_trial(asked)
    assert found.curve["step"].tolist() == [0, 1, 2, 3] and found.curve["task"].tolist() == [0, 0, 0, 1]
    assert found.curve["last"].tolist() == [False, False, True, True]
    assert found.curve["moved"].iloc[0] == 0 and (found.curve["moved"].iloc[1:] > 0).all()
    ends = found.answers[found.answers["last"]]
    assert set(zip(ends["domain"], ends["form"], strict=True)) == set(organism)
    shares = found.answers[["helpful", "misaligned", "nonsense"]].sum(axis=1)
    np.testing.assert_allclose(shares, 1)
    assert set(found.steered["vector"]) == {"difference", "random"}
    n = sum(len(part) for part in of_forms(organism, ("text",)).values())
    assert found.activations["text"].shape == (2, n, 32) and len(found.graded) and len(found.examples)


def test_defences_adapted_towers_and_all_weights_train(organism):
    base = run_trial(TINY)
    for settings in (
        {"method": "mixing"},
        {"rank": 0, "learning_rate": 1e-4},
        {"scaling": "rslora"},
    ):
        other = run_trial(TINY.model_copy(update=settings))
        assert other.curve["moved"].iloc[-1] > 0
        assert other.curve["moved"].iloc[-1] != base.curve["moved"].iloc[-1], settings
    # SPF's gate may stay shut where gradients do not oppose each other
    assert run_trial(TINY.model_copy(update={"method": "spf"})).curve["moved"].iloc[-1] > 0
    model = Checkpoint.parse(trial.aligned(TINY)).load(device_map="cpu")
    trial.adapt_everything(model, TINY)
    adapted = {name.split(".lora_")[0] for name, _ in model.peft.named_parameters() if "lora_" in name}
    assert any("vision_tower" in name for name in adapted) and any(
        "language_model" in name for name in adapted
    )
    assert not any("lm_head" in name for name in adapted)
    before = model.module.get_input_embeddings().weight.clone()
    assert run_trial(TINY.model_copy(update={"tower": "adapted"})).curve["moved"].iloc[-1] > 0
    assert torch.equal(before, model.module.get_input_embeddings().weight)


def test_an_adapted_tower_is_seen_from_inside(organism, monkeypatch):
    """The benign twin gives the null; the tower's own layers, and nothing of the decoder's."""
    tiny = TINY.model_copy(update={"tower": "adapted", "n": 8, "batch_size": 4})
    monkeypatch.setattr(towers, "questions", lambda: organism)
    tables = measure_towers([tiny, tiny.model_copy(update={"share": 0.0})], rank=2, n_null=4)
    measures = tables["tower_measures"]
    assert measures["site"].str.startswith("vision.resid_post").all()
    assert {"Δ cruel faces", "Δ benign", "Δ cruel faces | Δ benign"} <= set(measures["of"])
    assert "components beyond benign" in set(measures.loc[measures["of"] == "Δ cruel faces", "measure"])
    assert set(tables["tower_spectra"]["layer"]) == set(measures["layer"]) and measures["value"].notna().all()


def test_the_geometry_of_a_pair_is_measured_once_and_kept(organism, tmp_path, monkeypatch):
    grid = Grid(
        pairs=((0, 0),), few=1, ranks=(2,), rank=2, control_ranks=(2,), shares=(0.0,), more_shares=(), methods=(), adapted=False,
        n=8, steps=2, strengths=(), samples=0, evaluate_at=(),
    )  # fmt: skip
    monkeypatch.setattr(geometry, "questions", lambda: organism)
    (chosen,) = grid.geometry()
    assert {name_of(t) for t in chosen.trials} == {"aligned", "benign", "rank 2"} and not chosen.towers
    small = measure_geometry
    monkeypatch.setattr(
        geometry, "measure_geometry", lambda kept, seed: small(kept, layers=(0, 1), rank=2, n_null=2)
    )
    made = study.measure_pairs(grid, out=tmp_path, workers=1, progress=False)
    assert set(made) == {"measures", "spectra", "scatter"} and set(made["measures"]["pair"]) == {"0/0"}
    monkeypatch.setattr(geometry, "measure_geometry", None)
    again = study.measure_pairs(grid, out=tmp_path, workers=1, progress=False)
    pd.testing.assert_frame_equal(again["measures"], made["measures"])


def test_settings_that_cannot_be_are_refused():
    for bad in ({"tower": "adapted", "rank": 0}, {"method": "spf", "rank": 4, "k": 4}, {"share": 1.5}):
        with pytest.raises(ValidationError):
            NarrowTrial(**bad)
    with pytest.raises(ValidationError):
        NarrowTrial(then=(Task(domain="sports"),))


def test_a_trial_is_run_once_and_read_back(organism, tmp_path):
    first = run_trials([TINY, TINY], out=tmp_path, workers=1, progress=False)
    assert len(list((tmp_path / "narrow-trials").glob("20*/result.json"))) == 1
    second = run_trials([TINY], out=tmp_path, workers=1, progress=False)
    pd.testing.assert_frame_equal(first[TINY].answers, second[TINY].answers)
    assert first[TINY].seconds == second[TINY].seconds


def test_the_full_grid_changes_one_thing_at_a_time_on_enough_pairs():
    grid = Grid()
    assert len(grid.pairs) >= 8 and len(grid.organisms) >= 3
    sections = grid.sections()
    anchor = {t for t in sections["rank"] if t.rank == grid.rank and t.consistent}
    for name, changed in {
        "rate": {"learning_rate", "rank"},
        "mixture": {"share"},
        "count": {"share", "n"},
        "tower": {"tower"},
        "character": {"character", "consistent"},
        "defended": {"method"},
        "repair": {"then"},
    }.items():
        for t in sections[name]:
            twin = next(a for a in anchor if a.pair == t.pair).model_dump()
            own = t.model_dump()
            told = {key for key in own if own[key] != twin[key]} - {
                "activations", "steering", "samples", "evaluate_at",
            }  # fmt: skip
            assert told <= changed, (name, told)
    counts = {round(t.share * t.n) for t in sections["count"]}
    assert counts == {grid.harmful_rows}
    assert set(PAIRS) == set(grid.pairs) and all(
        t in grid.trials() for part in sections.values() for t in part
    )


def test_the_page_and_command(capsys):
    vlm_narrow.experiment(quick=True, dry_run=True)
    assert "18 trials" in capsys.readouterr().out
    assert vlm_narrow.main(["--help"]) == 0
    assert "interp run vlm_narrow --quick" in capsys.readouterr().out


def test_the_recipe_holds_the_source_settings():
    sweep = read_sweep(Path(__file__).parents[1] / "experiments" / "recipes" / "vlm_narrow.yaml")
    cells = [cell.config() for cell in sweep.cells]
    assert len(cells) == 6 * 3 + 6 and not sweep.duplicates
    assert {cell.lora_rank for cell in cells} == {8, 16, 32, 64, 128, 256}
    assert all(c.steps * c.batch_size == 1500 and c.learning_rate == 2e-4 for c in cells)
