"""The steering comparison in its quickest form: every stage on the text organism, resumed, drawn and put into words; and the recipe."""

import re
from pathlib import Path

import pandas as pd
import pytest
import tiny
import yaml

from experiments import sarsteer
from interp import cli
from interp.data.prompts import Prompt, PromptSet
from interp.errors import PromptFileError, UserError
from interp.models.finetune import save_checkpoint
from interp.steering_study.grid import Grid
from interp.steering_study.recipe import load_recipe, plan_recipe, run_recipe
from interp.steering_study.report import figures, save_comparison
from interp.steering_study.study import run_comparison

TINY = Grid(
    kind="text", seeds=((0, 0),), arms=("plain", "sarsteer", "conditional", "random"), strengths=(0.1, 0.8), ablation_strengths=(0.8,),
    removals=(0.0, 1.0), ranks=(), sizes=(30,), layers=(6,), variants=("centred",), n_test=20,
)  # fmt: skip
RECIPE = Path(__file__).parents[1] / "experiments" / "recipes" / "sarsteer.yaml"


@pytest.fixture(scope="module")
def found(text_organism, tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    return run_comparison(TINY, out=out, workers=1, progress=False), out


def test_every_arm_is_measured_and_no_steering_gains_nothing(found):
    comparison, _ = found
    points = comparison.points.set_index(["arm", "strength"])
    assert len(points) == 2 + 4 * 2 and (points[["n_harmful", "n_benign"]] == 20).all(axis=None)
    assert (points.loc[("none", 0.0), ["gained", "cost", "lost"]] == 0).all()
    assert set(comparison.base["modality"]) == {"text", "fiction"}
    none = comparison.base[comparison.base["arm"] == "none"].set_index("modality")
    assert none.loc["text", "refused"] > 0.8 and none.loc["text", "over_refusal"] < 0.2
    assert set(comparison.ablations) == {"λ", "layer", "variant"}
    assert set(comparison.geometry["cosines"]["layer"]) == set(range(12))
    assert comparison.geometry["safe"]["inside"].between(0, 1).all()


def test_a_second_run_reads_everything_back(found, monkeypatch):
    comparison, out = found

    def never(*_, **__):
        raise AssertionError("a finished point was run again")

    monkeypatch.setattr("interp.steering_study.study.run_trial", never)
    monkeypatch.setattr("interp.steering_study.geometry.measure_geometry", never)
    again = run_comparison(TINY, out=out, workers=1, progress=False)
    pd.testing.assert_frame_equal(again.points, comparison.points)
    assert again.sentences == comparison.sentences


def test_figures_tables_and_words(found, tmp_path):
    comparison, _ = found
    save_comparison(comparison, tmp_path)
    names = {path.stem for path in tmp_path.glob("*.png")}
    assert names == set(figures(comparison)) == {
        "operating", "operating_lost", "attack_success", "modalities", "cosines", "safe_space", "gap", "ablations",
    }  # fmt: skip
    words = (tmp_path / "conclusion.md").read_text()
    assert "One seed: a look, no claim" in words and "not decided" in words and "nan" not in words
    assert "reproduced" not in words and "contradicted" not in words, "one seed decides nothing"
    assert {"points", "modalities", "equal_over-refusal", "ablation_lambda", "gap"} <= {
        p.stem for p in tmp_path.glob("*.csv")
    }


def test_the_command_line(found, tmp_path, capsys, monkeypatch):
    assert cli.main(["run", "sarsteer", "--dry-run"]) == 0
    assert re.search(r"organisms \[0, 1, 2\], 9 seeds", capsys.readouterr().out)
    assert cli.main(["run", "sarsteer", "--recipe", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err
    comparison, out = found
    begin, end = sarsteer.markers("text")
    (tmp_path / "img").mkdir()
    page = tmp_path / "page.md"
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    monkeypatch.setattr(sarsteer, "grid", lambda kind, stage, quick: TINY)
    command = ["run", "sarsteer", "--kind", "text", "--quick", "--workers", "1", "--out", str(out)]
    assert cli.main([*command, "--docs", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert all(sentence in text for sentence in comparison.sentences)
    assert (tmp_path / "img" / "sarsteer-text-operating.png").stat().st_size > 10_000


# --- the recipe


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A tiny Llama, its data, and sarsteer.yaml with another model, files and sizes."""
    home = tmp_path_factory.mktemp("recipe")
    save_checkpoint(tiny.model("llama"), home / "model")
    for seed, (name, label) in enumerate((("harmful", "harmful"), ("benign", "benign"))):
        rows = [Prompt(p.text, id=f"{name}-{i}", label=label) for i, p in enumerate(tiny.prompts(12, seed))]
        PromptSet(rows, name).save(home / f"{name}.jsonl")
    write(home / "recipe.yaml", settings(home))
    return home


def settings(home: Path) -> dict:
    found = yaml.safe_load(RECIPE.read_text())
    for name in ("written_harmful", "written_benign"):
        del found[name]
    sizes = {"n": 8, "n_test": 4, "rank": 3, "max_new_tokens": 3, "dtype": "float32", "refusal": "w1 w2"}
    return (
        found | {"model": str(home / "model"), "harmful": "harmful.jsonl", "benign": "benign.jsonl"} | sizes
    )


def write(path: Path, found: dict) -> Path:
    path.write_text(yaml.safe_dump(found))
    return path


def test_the_shipped_recipe_is_the_sources_setting():
    recipe = load_recipe(RECIPE)
    assert (recipe.rank, recipe.removal, recipe.n, recipe.refusal) == (
        10,
        1.0,
        100,
        "I cannot assist with that.",
    )
    assert 0.1 in recipe.strengths and {"none", "prompt", "plain", "sarsteer", "random"} <= set(recipe.arms)
    assert recipe.harmful == RECIPE.parent / "data" / "harmful_speech.jsonl"
    with pytest.raises(PromptFileError, match=r"harmful_speech\.jsonl: no such file"):
        plan_recipe(recipe)


def test_a_recipe_runs_and_is_read_back(home, tmp_path, monkeypatch, capsys):
    assert cli.main(["run", "sarsteer", "--recipe", str(home / "recipe.yaml"), "--dry-run"]) == 0
    assert "points    32" in capsys.readouterr().out
    recipe = load_recipe(
        write(
            home / "few.yaml", settings(home) | {"strengths": [0.1], "arms": ["none", "sarsteer", "random"]}
        )
    )
    table = run_recipe(recipe, out=tmp_path, progress=False)
    assert table["arm"].tolist() == ["none", "sarsteer", "random"] and (table["n_harmful"] == 4).all()

    def never(*_, **__):
        raise AssertionError("a finished point was run again")

    monkeypatch.setattr("interp.steering_study.recipe.answers", never)
    pd.testing.assert_frame_equal(run_recipe(recipe, out=tmp_path, progress=False), table)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ["sarster"]}, "arms"),
        ({"rank": 8}, "take rank < n"),
        ({"written_harmful": "harmful.jsonl"}, "or neither"),
        ({"colour": 1}, "colour"),
    ],
)
def test_bad_recipes_are_one_line(home, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        load_recipe(write(home / "bad.yaml", settings(home) | changes))
    assert "\n" not in str(caught.value)
