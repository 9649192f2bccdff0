"""The comparison of defences in its quickest form: every stage on the organism, resumed, drawn and put into words."""

import re
import time

import pandas as pd
import pytest

from experiments import spf
from interp import cli
from interp.defence.grid import Grid
from interp.defence.report import figures, save_comparison
from interp.defence.runner import in_processes, run_trials
from interp.defence.study import run_comparison
from interp.defence.trial import Trial
from interp.errors import UserError

TINY = Grid(
    seeds=(0,), tuning=(), methods=("plain", "spf", "mixing", "safelora"), fractions=(0.5,), deep=2, deep_methods=("plain",),
    ks=(5,), refreshes=(4,), monitored=2, n_ablation=1, steps=4, evaluate_at=(2, 4), n_test=20, utility=0.05,
)  # fmt: skip


@pytest.fixture(scope="module")
def found(text_organism, tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    return run_comparison(TINY, out=out, workers=1, progress=False), out


def test_every_section_is_measured_with_its_nulls(found):
    comparison, _ = found
    assert set(comparison.outcomes["section"]) == {
        "benign", "aligned", "mixture", "deep", "monitor", "monitor control", "k", "refresh",
    }  # fmt: skip
    benign = comparison.outcomes[comparison.outcomes["section"] == "benign"].set_index("method")
    assert benign.loc["plain", "removed"] == 0 < benign.loc["mixing", "removed"]
    spf = comparison.steps[comparison.steps["method"] == "spf"]
    assert ((spf["removed"] > 0) == (spf["open"] > 0)).all() and (spf["open"] > 0).any()
    assert (benign["start_refused"] > 0.8).all() and (benign["start_jsr"] < 0.2).all()
    attacks = comparison.attacks[comparison.attacks["section"] == "aligned"].set_index("attack")
    assert list(attacks.index) == ["none", "fiction", "prefill", "suffix", "random suffix"]
    assert attacks.loc["none", "refused"] > 0.8 and attacks.loc["prefill", "complied-harmful"] > 0.5
    assert (attacks["n"] == 20).all()
    ranks = comparison.geometry["ranks"]
    whole = ranks[ranks["block"] == "whole"].groupby("set")["stable_rank"].mean()
    assert whole["safety"] < whole["mixed"] and whole["safety"] < whole["utility"], (
        "the organism's first insight"
    )
    phi = comparison.geometry["overlaps"].groupby("of")[["phi", "random"]].mean()
    assert phi.loc["safety", "phi"] > phi.loc["utility", "phi"] > phi.loc["utility", "random"]


def test_plain_trains_as_k_zero_does_and_logs_every_step(found):
    comparison, _ = found
    steps = comparison.steps
    plain = steps[(steps["section"] == "benign") & (steps["method"] == "plain")]
    assert plain["step"].tolist() == [0, 1, 2, 3] and plain["drift"].notna().all()
    assert plain["held_out_loss"].notna().tolist() == [True, False, False, False]


def test_a_second_run_reads_everything_back(found, monkeypatch):
    comparison, out = found

    def never(*_, **__):
        raise AssertionError("a finished trial was run again")

    monkeypatch.setattr("interp.defence.runner.run_trial", never)
    monkeypatch.setattr("interp.defence.geometry.measure_geometry", never)
    again = run_comparison(TINY, out=out, workers=1, progress=False)
    pd.testing.assert_frame_equal(again.outcomes, comparison.outcomes)
    assert again.sentences == comparison.sentences


def test_figures_tables_and_words(found, tmp_path):
    comparison, _ = found
    save_comparison(comparison, tmp_path)
    names = {path.stem for path in tmp_path.glob("*.png")}
    assert names == set(figures(comparison)) == {
        "pareto", "spectra", "conflict", "overlap", "steps", "attacks", "drift", "mixture", "deep", "k", "refresh", "monitor",
    }  # fmt: skip
    words = (tmp_path / "conclusion.md").read_text()
    assert "One seed: a look, no claim" in words and "not decided" in words
    assert "reproduced" not in words and "contradicted" not in words, "one seed decides nothing"
    assert "nan" not in words
    assert pd.read_csv(tmp_path / "overhead.csv").set_index("method").loc["plain", "ratio"] == 1
    tables = {path.stem for path in tmp_path.glob("*.csv")}
    assert {"tuning", "outcomes", "benign", "attacks", "bounds", "overhead", "conflicts"} <= tables


def test_a_failed_trial_is_named_and_the_others_are_kept(found, tmp_path):
    good = Trial(steps=0, n_test=20)
    with pytest.raises(
        UserError, match=r"1 of 2 trials failed, the others are kept; the first: spf 1 steps seed 0"
    ):
        run_trials(
            [good, Trial(method="spf", k=96, steps=1, n_test=20)], out=tmp_path, workers=2, progress=False
        )
    assert len(list((tmp_path / "spf-trials").glob("2*"))) == 1


def test_the_command_line(found, tmp_path, capsys, monkeypatch):
    assert cli.main(["run", "spf", "--dry-run"]) == 0
    assert re.search(r"56 trials of tuning; benign 56, .*organisms \[0, 1, 2", capsys.readouterr().out)
    assert cli.main(["run", "spf", "--recipe", str(tmp_path / "none.yaml"), "--dry-run"]) == 2
    assert "none.yaml" in capsys.readouterr().err
    comparison, out = found
    (tmp_path / "img").mkdir()
    page = tmp_path / "page.md"
    page.write_text(f"before\n{spf.BEGIN}\nold\n{spf.END}\nafter\n")
    monkeypatch.setattr(spf, "QUICK", TINY)
    assert cli.main(["run", "spf", "--quick", "--workers", "1", "--out", str(out), "--docs", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert all(sentence in text for sentence in comparison.sentences)
    assert (tmp_path / "img" / "spf-pareto.png").stat().st_size > 10_000


def test_what_processes_found_comes_in_the_order_asked_for():
    """The first takes longest: tables laid below each other would else differ from run to run."""
    assert list(in_processes([1.5, 0.0], time.sleep, str, label="naps", workers=2, progress=False)) == [
        1.5,
        0.0,
    ]  # type: ignore[arg-type]
