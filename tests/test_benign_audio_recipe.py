"""Paper A's recipe on an untrained audio checkpoint: arms are selected, trained, asked and read back; bad files are one line."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml

from interp import cli
from interp.benign_audio.recipe import distances, load_recipe, plan_recipe, read_data, run_recipe
from interp.data.prompts import PromptSet, read_prompts
from interp.errors import PromptFileError, UserError
from interp.organisms.untrained import checkpoint

RECIPE = Path(__file__).parents[1] / "experiments" / "recipes" / "audio_benign.yaml"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """An untrained checkpoint that hears tones, its data, and audio_benign.yaml with other files and sizes."""
    home = tmp_path_factory.mktemp("recipe")
    model = checkpoint("audio", home / "model")
    spoken = {name: read_prompts(model / "prompts" / f"{name}_audio.jsonl") for name in ("harmful", "harmless")}  # fmt: skip
    said = {name: read_prompts(model / "prompts" / f"{name}_text.jsonl").texts for name in spoken}
    told = {
        name: [
            replace(p, response="the clip plays a note", meta={**p.meta, "said": s})
            for p, s in zip(spoken[name], said[name], strict=True)
        ]
        for name in spoken
    }
    for name, rows in (("benign", told["harmless"][:16]), ("reference", told["harmful"][:8]), ("harmful", told["harmful"][8:12])):  # fmt: skip
        PromptSet(rows, name).save(home / f"{name}.jsonl")
    PromptSet(told["harmless"][16:20], "benign_test").save(home / "benign_test.jsonl")
    write(home / "recipe.yaml", settings(home))
    return home


def settings(home: Path) -> dict:
    found = yaml.safe_load(RECIPE.read_text())
    del found["harmful_text"]
    files = {name: f"{name}.jsonl" for name in ("benign", "reference", "harmful", "benign_test")}
    axes = {"semantic": "lexical:tfidf", "acoustic": "audio:mfcc", "internal": "self:encoder"}
    arms = [{"rule": "aligned"}, {"rule": "proximate", "axis": "acoustic"}, {"rule": "random"}]
    finetune = {"method": "lora", "lora_rank": 2, "steps": 1, "batch_size": 2}
    return found | files | {"model": str(home / "model"), "dtype": "float32", "axes": axes, "arms": arms, "finetune": finetune, "n_test": 3, "max_new_tokens": 2}  # fmt: skip


def write(path: Path, found: dict) -> Path:
    path.write_text(yaml.safe_dump(found))
    return path


def test_the_shipped_recipe_is_the_sources_setting():
    recipe = load_recipe(RECIPE)
    assert recipe.axes["semantic"].endswith("all-MiniLM-L6-v2") and recipe.axes["acoustic"].endswith("wavlm-large")  # fmt: skip
    assert recipe.axes["mixed"].endswith("whisper-large-v3")
    assert 8 <= recipe.finetune.lora_rank <= 16 and recipe.finetune.alpha == 2 * recipe.finetune.lora_rank
    assert 8 <= recipe.finetune.batch_size * recipe.finetune.accumulation <= 16
    assert 2e-5 <= recipe.finetune.learning_rate <= 2e-4 and recipe.finetune.schedule == "cosine"
    assert {arm.share for arm in recipe.arms} == {0.25} and recipe.n_test == 520
    with pytest.raises(PromptFileError, match=r"benign_speech_answered\.jsonl: no such file"):
        plan_recipe(recipe)


def test_a_recipe_runs_and_is_read_back(home, tmp_path, monkeypatch, capsys):
    assert cli.main(["run", "audio_benign", "--recipe", str(home / "recipe.yaml"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "proximate acoustic 25% (4 items)" in said and "1 steps of 2 an arm" in said
    recipe = load_recipe(home / "recipe.yaml")
    table = run_recipe(recipe, out=tmp_path, progress=False)
    assert table["arm"].tolist() == ["aligned", "proximate acoustic 25%", "random 25%"]
    assert table[["jsr", "jsr_prompt", "over_refusal"]].notna().all(axis=None)

    def never(*_, **__):
        raise AssertionError("a finished arm was run again")

    for name in ("train", "generate", "embed"):
        monkeypatch.setattr(f"interp.benign_audio.recipe.{name}", never)
    pd.testing.assert_frame_equal(run_recipe(recipe, out=tmp_path, progress=False), table)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": [{"rule": "distant", "axis": "mixed"}]}, "the axis 'mixed', which is not under axes"),
        ({"arms": [{"rule": "random"}, {"rule": "random"}]}, "two arms are the same"),
        ({"finetune": {"epochs": 3}}, "give finetune.steps"),
        ({"colour": 1}, "colour"),
    ],
)
def test_bad_recipes_are_one_line(home, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        load_recipe(write(home / "bad.yaml", settings(home) | changes))
    assert "\n" not in str(caught.value)


def test_a_semantic_axis_needs_what_is_said(home, tmp_path):
    silent = [replace(p, meta={}) for p in read_prompts(home / "benign.jsonl")]
    PromptSet(silent, "benign").save(home / "silent.jsonl")
    recipe = load_recipe(write(home / "mute.yaml", settings(home) | {"benign": "silent.jsonl"}))
    with pytest.raises(PromptFileError, match="has no 'said', the words that a semantic axis reads"):
        run_recipe(recipe, out=tmp_path, progress=False)


def test_speech_and_writing_are_of_the_same_requests(home):
    rows = read_prompts(home / "harmful.jsonl", label="harmful")
    written = [replace(p, audio=None, text=str(p.meta["said"])) for p in rows]
    PromptSet(written[::-1], "harmful_text").save(home / "harmful_text.jsonl")
    found = settings(home) | {"harmful_text": "harmful_text.jsonl"}
    data = read_data(load_recipe(write(home / "both.yaml", found)))
    assert set(data["harmful"].ids) == set(data["harmful_text"].ids) and len(data["harmful"]) == 3
    asked = data["harmful"].ids[0]
    PromptSet([p for p in written if p.id != asked], "harmful_text").save(home / "harmful_text.jsonl")
    with pytest.raises(PromptFileError, match=f"has no row with the id '{asked}'"):
        read_data(load_recipe(home / "both.yaml"))


def test_an_axis_by_its_short_name_reads_the_words_too(home):
    short, full = (
        settings(home) | {"axes": {"semantic": name}, "arms": [{"rule": "aligned"}]}
        for name in ("lexical", "lexical:tfidf")
    )
    tables = []
    for i, found in enumerate((short, full)):
        recipe = load_recipe(write(home / f"axis{i}.yaml", found))
        tables.append(distances(recipe, read_data(recipe)))
    pd.testing.assert_frame_equal(*tables)
