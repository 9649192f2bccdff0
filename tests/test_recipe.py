"""The recipe of SPF: read with clear errors, planned without weights, run on a tiny clone, resumed and read back."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import tiny
import torch
import yaml

from interp.data.prompts import Prompt, PromptSet
from interp.defence import recipe as recipe_module
from interp.defence.recipe import Recipe, load_recipe, plan_recipe, read_data, run_recipe
from interp.errors import CheckpointError, PromptFileError, SelectionError, UserError
from interp.methods.safety_monitor import SafetyMonitor
from interp.methods.surgery_trainer import SurgeryTrainer
from interp.models.checkpoint import Checkpoint
from interp.models.finetune import save_checkpoint
from interp.models.generation import Completion
from interp.store import verify

SPF = Path(__file__).parents[1] / "experiments" / "recipes" / "spf.yaml"
ARMS = ["plain", "spf", "pcgrad", "mixing", "spf-update"]


def prompt_file(path: Path, seed: int, n: int, label: str, response: str | None) -> None:
    """Rows of the schema that spf.yaml documents."""
    rows = [
        Prompt(prompt.text, id=f"{path.stem}-{i}", response=response, label=label, category="made up")
        for i, prompt in enumerate(tiny.prompts(n, seed))
    ]
    PromptSet(rows, path.stem).save(path)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama and its data, and spf.yaml with another model, files and sizes."""
    home = tmp_path_factory.mktemp("recipe")
    save_checkpoint(tiny.model("llama"), home / "model")
    prompt_file(home / "data" / "task.jsonl", 1, 12, "benign", "w3 w4 w5")
    prompt_file(home / "data" / "safety.jsonl", 2, 4, "harmful", "I'm sorry, but I can't help with that.")
    prompt_file(home / "data" / "harmful.jsonl", 3, 5, "harmful", None)
    prompt_file(home / "data" / "harmless.jsonl", 4, 5, "benign", None)
    write(home / "recipe.yaml", settings(home))
    return home


def settings(home: Path) -> dict:
    found = yaml.safe_load(SPF.read_text())
    found |= {"model": str(home / "model"), "dtype": "float32", "n_test": 4, "max_new_tokens": 4}
    # a random model refuses nothing: all words together stand for what a refusal opens with
    found["refusal_tokens"] = tiny.WORDS
    found["task"]["n"] = 8
    found["finetune"] |= {"lora_rank": 8, "batch_size": 2, "accumulation": 2, "warmup": 0, "epochs": 1}
    for arm in found["arms"]:
        if "k" in arm:
            arm["k"] = 4
    return found


def write(path: Path, found: dict) -> Path:
    path.write_text(yaml.safe_dump(found))
    return path


def changed(home: Path, name: str, **settings_: object) -> Recipe:
    return load_recipe(write(home / f"{name}.yaml", settings(home) | settings_))


def forbid(*args: object, **kwargs: object) -> None:
    raise AssertionError("was called")


def test_the_shipped_recipe_is_the_sources_setting():
    recipe = load_recipe(SPF)
    assert [arm.name for arm in recipe.arms] == ARMS
    spf = recipe.arms[1]
    assert (spf.k, spf.gate, spf.refresh, spf.refusals) == (20, "global", 1, 1)
    assert recipe.finetune.lora_rank > 20
    assert recipe.safety == SPF.parent / "data" / "safety.jsonl"
    with pytest.raises(
        PromptFileError, match=r"data/task\.jsonl: no such file; .* id, text .* response .* label"
    ):
        plan_recipe(recipe)


def test_a_recipe_moves_with_its_data(directory: Path, tmp_path: Path):
    shutil.copytree(directory / "data", tmp_path / "data")
    shutil.copy(directory / "recipe.yaml", tmp_path)
    recipe = load_recipe(tmp_path / "recipe.yaml")
    assert recipe.task.file == tmp_path / "data" / "task.jsonl"
    assert len(read_data(recipe)["task"]) == 8


@pytest.fixture(scope="module")
def finished(directory: Path) -> tuple[Path, pd.DataFrame]:
    out = directory / "results"
    return out, run_recipe(load_recipe(directory / "recipe.yaml"), out=out, max_steps=2, progress=False)


def test_two_steps_of_every_arm_leave_whole_results_that_load(finished, directory: Path):
    table = finished[1]
    assert table["arm"].tolist() == ARMS
    assert (
        (table["steps"] == 2).all() and (table["n_harmful"] == 4).all() and (table["n_harmless"] == 4).all()
    )
    for name in ("jsr", "refused", "over_refusal"):
        for when in ("before", "after"):
            assert (
                table[f"{name}_{when}"]
                .between(table[f"{name}_{when}_low"], table[f"{name}_{when}_high"])
                .all()
            )
    assert table["jsr_before"].nunique() == 1
    assert table["mean_cosine"].between(-1, 1).all() and (table["seconds"] > 0).all()
    assert table.set_index("arm")["gate_rate"]["mixing"] == 1
    inputs = [torch.tensor([[4, 8, 9, 10]])]
    logits = {}
    for row in table.itertuples():
        place = Path(row.directory)
        verify(place)
        assert sorted(p.name for p in place.iterdir()) == [
            "evaluation.json", "manifest.json", "model", "monitor.parquet", "surgery.parquet", "training.json",
        ]  # fmt: skip
        surgery, monitor = (pd.read_parquet(place / f"{name}.parquet") for name in ("surgery", "monitor"))
        assert surgery["step"].tolist() == [0, 1] and surgery["drift"].notna().all()
        assert monitor["step"].tolist() == [0, 2]
        model = Checkpoint.parse(place / "model").load()
        assert model.peft is not None and model.checkpoint.base == str(directory / "model")
        logits[row.arm] = model.module(*inputs).logits
        answers = json.loads((place / "evaluation.json").read_text())["answers"]
        assert len(answers["harmful"]) == len(answers["harmless"]) == 4
    assert not torch.equal(logits["plain"], logits["mixing"])


def test_a_second_call_reads_back_without_a_model(finished, directory: Path, monkeypatch: pytest.MonkeyPatch):
    out, table = finished
    monkeypatch.setattr(Checkpoint, "load", forbid)
    recipe = load_recipe(directory / "recipe.yaml")
    again = run_recipe(recipe, out=out, max_steps=2, progress=False)
    pd.testing.assert_frame_equal(again, table)
    only = run_recipe(recipe, out=out, arms=["spf"], max_steps=2, progress=False)
    assert only["directory"].tolist() == table["directory"][table["arm"] == "spf"].tolist()
    with pytest.raises(UserError, match=r"no arm 'sfp' in the recipe; there are: plain, spf"):
        run_recipe(recipe, out=out, arms=["sfp"])


def test_a_killed_arm_resumes_to_the_same_weights_and_the_whole_log(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    base = settings(directory)["finetune"] | {"epochs": None, "steps": 4}
    whole = changed(directory, "whole", finetune=base | {"save_every": None})
    parts = changed(directory, "parts", finetune=base | {"save_every": 2})

    class Killed(Exception):
        pass

    class Dying(SurgeryTrainer):
        alive = False

        def training_step(self, *args, **kwargs):
            if self.state.global_step == 3 and not self.alive:
                raise Killed
            started.append(self.state.global_step)
            return super().training_step(*args, **kwargs)

    started: list[int] = []
    monkeypatch.setattr(recipe_module, "SurgeryTrainer", Dying)
    with pytest.raises(Killed):
        run_recipe(parts, out=tmp_path, arms=["spf"], progress=False)
    assert set(started) == {0, 1, 2}
    started.clear()
    Dying.alive = True
    table = run_recipe(parts, out=tmp_path, arms=["spf"], progress=False)
    assert set(started) == {2, 3}
    expected = run_recipe(whole, out=tmp_path, arms=["spf"], progress=False)
    logs = [pd.read_parquet(Path(t["directory"][0]) / "surgery.parquet") for t in (table, expected)]
    assert logs[0]["step"].tolist() == [0, 1, 2, 3]
    pd.testing.assert_frame_equal(*logs, rtol=1e-4)
    batch = tiny.model().encode(tiny.prompts(3))
    found = [
        Checkpoint.parse(f"{t['directory'][0]}/model").load().last_logits(batch) for t in (table, expected)
    ]
    assert torch.allclose(*found, atol=1e-5)


def test_full_fine_tuning_saves_the_whole_model(directory: Path, tmp_path: Path):
    full = settings(directory)["finetune"] | {"method": "full", "layers": [1, 2]}
    recipe = changed(directory, "full", finetune=full)
    assert "in 18 blocks (full)" in plan_recipe(recipe, tflops=1.0)  # 7 matrices and 2 norms a layer
    table = run_recipe(recipe, out=tmp_path, arms=["spf"], max_steps=1, progress=False)
    model = Checkpoint.parse(f"{table['directory'][0]}/model").load()
    before, after = tiny.module().state_dict(), model.module.state_dict()
    moved = {name.split(".")[2] for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved == {"1", "2"}


def test_a_model_without_refusals_says_what_to_state(directory: Path, tmp_path: Path):
    recipe = changed(directory, "silent", refusal_tokens=None)
    with pytest.raises(
        SelectionError, match=r"refused none of 8 prompts: .*state in the recipe as `refusal_tokens`"
    ):
        run_recipe(recipe, out=tmp_path, max_steps=1, progress=False)
    recipe = changed(directory, "foreign", refusal_tokens=["Sorry"])
    with pytest.raises(UserError, match=r"refusal token 'Sorry' of the recipe is unknown to the tokenizer"):
        run_recipe(recipe, out=tmp_path, max_steps=1, progress=False)


def test_refusal_tokens_are_derived_from_what_the_aligned_model_refuses(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refusing(model: object, prompts: PromptSet, **options: object) -> list[Completion]:
        harmful = prompts[0].label == "harmful"
        text, token = ("I cannot help with that.", 9) if harmful else ("w1", 10)
        return [Completion(prompt.id, text, 1, True, (token,)) for prompt in prompts]

    class Monitor(SafetyMonitor):
        def __init__(self, *args: object, refusal_ids: tuple[int, ...], **options: object) -> None:
            derived.append(refusal_ids)
            super().__init__(*args, refusal_ids=tuple(range(68)), **options)

    derived: list[tuple[int, ...]] = []
    monkeypatch.setattr(recipe_module, "generate", refusing)
    monkeypatch.setattr(recipe_module, "SafetyMonitor", Monitor)
    recipe = changed(directory, "refusing", refusal_tokens=None)
    table = run_recipe(recipe, out=tmp_path, arms=["spf"], max_steps=1, progress=False)
    assert derived == [(9,)]
    assert table["refused_before"].tolist() == [1.0] and table["over_refusal_before"].tolist() == [0.0]


# --- the plan ---


def test_the_plan_counts_parameters_memory_and_time_and_loads_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Checkpoint, "load", forbid)
    text = plan_recipe(load_recipe(directory / "recipe.yaml"))
    model = tiny.model()
    total = sum(p.numel() for p in model.module.parameters())
    assert f"{total / 1e6:,.1f} M parameters" in text
    assert "(lora, rank 8)" in text and "in 56 blocks" in text  # 4 layers × 7 matrices × (A, B)
    assert "8 task, 4 safety, 4 harmful, 4 harmless" in text
    assert "2 steps an arm of 4 examples" in text
    assert all(
        word in text for word in ("GiB  in all", "g_s", "protected bases, 4 ×", "s a step", "minutes  in all")
    )
    assert "estimates" in text
    for arm in ARMS:
        assert f"minutes  {arm}\n" in text


def test_the_plan_takes_a_speed(directory: Path):
    recipe = load_recipe(directory / "recipe.yaml")

    def a_step(text: str) -> float:
        (line,) = [line for line in text.splitlines() if line.endswith("  spf")]
        return float(line.split()[0])

    slow, fast = (a_step(plan_recipe(recipe, tflops=tflops)) for tflops in (1.0, 10.0))
    assert slow == pytest.approx(10 * fast, rel=1e-2)
    with pytest.raises(UserError, match="tflops must be above 0"):
        plan_recipe(recipe, tflops=0.0)
    layers = settings(directory)["finetune"] | {"layers": [9]}
    with pytest.raises(UserError, match=r"no layer 9 to train in .*, counted from 0"):
        plan_recipe(changed(directory, "deep", finetune=layers), tflops=1.0)
    with pytest.raises(CheckpointError, match="nowhere"):
        plan_recipe(changed(directory, "nowhere", model=str(directory / "nowhere")), tflops=1.0)


# --- errors ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modle": "x"}, r"bad\.yaml: modle: Extra inputs"),
        ({"n_test": "many"}, r"bad\.yaml: n_test: .*integer"),
        ({"judge": "coin"}, r"bad\.yaml: recipe: unknown judge 'coin'; use phrases, exact or one of "),
        ({"arms": [{"name": "a", "method": "spf", "kk": 3}]}, r"bad\.yaml: arms\.0\.kk: Extra inputs"),
        ({"arms": [{"name": "a", "method": "magic"}]}, r"bad\.yaml: arms\.0\.method: .*'plain'"),
        ({"arms": [{"name": "a", "method": "spf", "k": 8}]}, r"arm 'a': k = 8 would leave nothing of LoRA's A"),
        ({"arms": [{"name": "a", "method": "plain"}] * 2}, "two arms have the same name"),
        ({"finetune": {"steps": 2, "epochs": 3}}, r"bad\.yaml: finetune: give exactly one of steps and epochs"),
        ({"finetune": {"steps": 2, "seed": 3}}, "give the seed once"),
        ({"task": {"n": 3}}, r"bad\.yaml: task\.file: Field required"),
    ],
)  # fmt: skip
def test_a_malformed_recipe_is_one_line_with_file_and_field(directory: Path, change: dict, message: str):
    with pytest.raises(UserError, match=message) as caught:
        changed(directory, "bad", **change)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_recipe(tmp_path: Path):
    for text, message in (("a: [1", "not YAML"), ("- 1", "valid dictionary"), ("", "valid dictionary")):
        (tmp_path / "r.yaml").write_text(text)
        with pytest.raises(UserError, match=message) as caught:
            load_recipe(tmp_path / "r.yaml")
        assert "r.yaml" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"none\.yaml: cannot be read"):
        load_recipe(tmp_path / "none.yaml")


def test_bad_data_is_one_line(directory: Path, tmp_path: Path):
    data = directory / "data"
    for change, message in (
        ({"safety": "data/none.csv"}, r"none\.csv: no such file; it is a JSONL, CSV or JSON file"),
        ({"safety": "data/harmful.jsonl"}, r"harmful\.jsonl: 'harmful-0' has no response"),
        ({"harmless": "data/harmful.jsonl"}, r"is labelled harmful, the file is for benign ones"),
        (
            {"harmful": "data/safety.jsonl"},
            r"safety\.jsonl: 4 requests such as 'safety-0' are in the task or safety file",
        ),
        ({"task": {"file": str(data / "task.jsonl"), "n": 99}}, "cannot draw 99 prompts from the 12"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            run_recipe(changed(directory, "bad", **change), out=tmp_path)
        assert "\n" not in str(caught.value)
    adapted = changed(directory, "bad", model=f"{directory / 'model'}+some/adapter")
    with pytest.raises(UserError, match="carries an adapter; merge it first"):
        run_recipe(adapted, out=tmp_path)
