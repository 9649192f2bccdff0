"""Paper A's study on organisms of random weights: every stage runs, is kept, read back, drawn and put into words; and the other bridge."""

import dataclasses
import re

import pandas as pd
import pytest
import torch
from hearing_fixture import untrained

from experiments import audio_benign
from interp import cli
from interp.benign_audio import mechanism, study, trial
from interp.benign_audio.asking import ask, questions, turns
from interp.benign_audio.conclusion import conclude
from interp.benign_audio.grid import Grid
from interp.benign_audio.prepare import Preparation, prepared
from interp.benign_audio.report import save_study
from interp.benign_audio.trial import Trial, run_trial
from interp.benign_audio.tuning import Tuning, tune
from interp.errors import SelectionError, UserError
from interp.methods.logit_difference import LogitDifference
from interp.models.checkpoint import Checkpoint
from interp.organisms import audio_mlp, audio_model
from interp.organisms.audio_prompts import as_prompts

pytest.importorskip("espeakng_loader")
pytestmark = pytest.mark.xdist_group("benign_audio")
TINY = Grid(
    organisms=(0, 1), seeds=(0,), tuning=(), axes=("semantic", "acoustic", "mixed", "combined", "projector"), shares=(0.5,), n_null=2,
    steps=2, batch_size=4, evaluate_at=(1, 2), strengths=(0.1,), defences=("plain", "distant", "spf"), n_items=16, n_harmful=76, n_test=4,
    n_probe=40, n_fit=24, n_pairs=4, text=True, unplanted=True,
)  # fmt: skip
SIZES = {"n": 16, "n_harmful": 76, "n_test": 4, "n_probe": 40, "n_fit": 24, "tuning": Tuning(steps=2, batch_size=4, rank=4)}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    with untrained(cache, (0, 1), (0, 1)), pytest.MonkeyPatch.context() as patch:
        # random weights neither refuse nor answer: take the labels for what they did
        patch.setattr(
            mechanism,
            "outcomes",
            lambda asked, made: (
                [p.label == "harmful" for p in asked],
                [p.label == "benign" for p in asked],
            ),
        )
        patch.setattr(mechanism, "refusal_metric", lambda *_: LogitDifference((5, 6), (7, 8)))
        patch.setattr(trial, "_lost", lambda chosen, *_: list(questions(chosen.n_test)["harmful, speech"]))
        patch.setattr(study, "build", lambda grid, progress: None)
        for kept in (questions, turns, prepared, mechanism.reference):
            kept.cache_clear()
        yield tmp_path_factory.mktemp("results")
        for kept in (questions, turns, prepared, mechanism.reference):
            kept.cache_clear()


@pytest.fixture(scope="module")
def few(home):
    """A study of a few fine-tunes, for what a whole one would take minutes."""
    return TINY.model_copy(
        update={"organisms": (0,), "axes": ("semantic", "acoustic"), "shares": (), "n_null": 0, "text": False, "unplanted": False, "taught_too": False, "by_class": True, "bridged": (), "defences": ("plain",)}
    )  # fmt: skip


@pytest.fixture(scope="module")
def found(home, few):
    return study.run_study(few, out=home, workers=1, progress=False)


def test_every_stage_of_a_study_runs_and_leaves_tables_figures_and_words(found, home, tmp_path):
    assert set(found.shares["section"]) == {"aligned", "main", "defences"}
    assert found.shares[["jsr speech", "jsr text", "skill speech", "prompt jsr speech"]].notna().all(axis=None)  # fmt: skip
    tuned = found.shares[found.shares["rule"] != "aligned"]
    assert (tuned["fact items"] == 4).all() and (tuned["fact encoder_changed"].dropna() == 0).all()
    assert (tuned["fact projector_changed"].dropna() == 0).all(), "encoder and projector are frozen"
    assert set(found.projections["layer"]) == {0, 1, 2}
    assert {"component", "attn_out", "mlp_out", "weights, alone", "random component", "reverse component"} <= set(found.located["way"])  # fmt: skip
    assert set(found.defended["defence"]) == {"none", "prompt", "sarsteer"}
    assert set(found.curve["step"]) == {0, 1, 2}
    assert set(found.probes.loc[found.probes["rule"] == "aligned", "set"]) == {"all", "ambiguous", "encoder", "projector"}  # fmt: skip
    per_arm = found.classes[found.classes["class"] == "all"].groupby("arm")["n"].first()
    assert set(per_arm.index) == {"aligned", "random", "proximate semantic", "proximate semantic, classes of random", "random, classes of proximate"}  # fmt: skip
    assert (per_arm == 4).all() and found.classes["held"].between(0, 1).all()
    own = found.classes[found.classes["class"] != "all"].groupby(["arm", "unit"])["n"].sum()
    assert (own == 4).all(), "every request has a class"
    save_study(found, tmp_path)
    names = {path.stem for path in tmp_path.glob("*.png")}
    assert {"safety", "plane", "distances_planted", "projection", "recognition", "ways", "defences"} <= names
    words = (tmp_path / "conclusion.md").read_text()
    assert "One unit: a look, no claim" in words and "not decided" in words and "nan" not in words
    assert "shown in these organisms" not in words and "opposite" not in words, "one unit decides nothing"
    assert "1 random subset, too few for a band" in words


def test_a_second_run_reads_everything_back(found, few, home, monkeypatch):
    def never(*_, **__):
        raise AssertionError("a finished fine-tune was run again")

    monkeypatch.setattr(study, "run_trial", never)
    monkeypatch.setattr("interp.benign_audio.nearness.measure", never)
    again = study.run_study(few, out=home, workers=1, progress=False)
    for table in dataclasses.fields(found):
        before = getattr(found, table.name)
        if isinstance(before, pd.DataFrame):
            pd.testing.assert_frame_equal(getattr(again, table.name), before)
    assert conclude(again) == conclude(found)


@pytest.mark.parametrize(
    "settings",
    [
        {"rule": "proximate", "axis": "mixed", "mixed": 1},
        {"rule": "distant", "axis": "combined", "method": "spf", "k": 2},
        {"rule": "random", "modality": "text", "method": "mixing"},
        {"rule": "matched", "axis": "projector", "bridge": "mlp", "pool": "unplanted"},
    ],
    ids=["mixed encoder", "spf", "text", "other bridge"],
)
def test_every_kind_of_fine_tune_is_asked_everything(home, settings):
    result = run_trial(Trial(organism=0, seed=0, **SIZES, **settings), home)
    facts = result.facts.set_index("name")["value"]
    assert facts["items"] == 4 and facts["loss"] > 0
    assert result.answers.groupby(["arm", "set"]).size().eq(4).all()
    assert set(result.answers["arm"]) == {"none", "prompt"}


def test_tuning_changes_the_decoder_alone_and_is_a_function_of_the_seed(home):
    chosen = Preparation(organism=0, seed=0, n=16, n_harmful=76)
    made = prepared(chosen, home)
    losses, weights = [], []
    for seed in (0, 0, 1):
        model = Checkpoint.parse(chosen.checkpoint).load(device_map="cpu")
        before = {name: p.clone() for name, p in model.module.named_parameters()}
        losses.append(tune(model, made.pool.turns, made.heard, Tuning(steps=3, batch_size=4, rank=4), seed=seed))  # fmt: skip
        own = dict(model.module.named_parameters())
        trained = {name for name in own if "lora_" in name}
        assert trained and all("language_model.layers" in name for name in trained)
        plain = {name.replace(".base_layer", ""): p for name, p in own.items() if name not in trained}
        assert plain.keys() == before.keys() and all(torch.equal(plain[n], p) for n, p in before.items())
        weights.append({name: own[name] for name in trained})
    assert losses[0] == losses[1] != losses[2]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    with pytest.raises(UserError, match="no turns"):
        tune(model, [], made.heard, Tuning(), seed=0)


def test_what_was_heard_once_is_what_the_whole_model_hears(home):
    """The loss on cached encoder outputs is the loss of the whole model on the clips."""
    from interp.models.finetune import collate, encode_example

    chosen = Preparation(organism=0, seed=0, n=16, n_harmful=76)
    made = prepared(chosen, home)
    for bridge in ("linear", "mlp"):
        model = Checkpoint.parse(chosen.model_copy(update={"bridge": bridge}).checkpoint).load(device_map="cpu")  # fmt: skip
        some = made.pool.turns[:4]
        rows = audio_model.rows(model.tokenizer, some, made.heard)
        cached = audio_model.loss(model.module, rows, made.heard)
        whole = collate([encode_example(model, p) for p in as_prompts(some, "some")], model.pad_id)
        torch.testing.assert_close(cached, model.module(**whole, use_cache=False).loss, atol=1e-4, rtol=1e-4)


def test_the_other_bridge_has_the_same_ear_and_decoder(home):
    linear, other = (
        Checkpoint.parse(f"organism:{kind}/aligned@0").load(device_map="cpu") for kind in ("audio", "audio-mlp")
    )  # fmt: skip
    own, given = (dict(model.module.named_parameters()) for model in (linear, other))
    shared = [name for name in own if "multi_modal_projector" not in name]
    assert all(torch.equal(own[name], given[name]) for name in shared)
    odd = {name for name in given if name not in own}
    assert odd == {f"model.multi_modal_projector.linear_{i}.{what}" for i in (1, 2) for what in ("weight", "bias")}  # fmt: skip
    asked = as_prompts(turns(4)["harmful"], "harmful")
    assert list(linear.token_ids(asked[0]).ids) == list(other.token_ids(asked[0]).ids)


def test_a_fitted_bridge_brings_each_vector_near_its_word(home):
    """Planted: vectors of which it is known what is read there; after the fit they enter as those words' embeddings."""
    from interp.organisms.recogniser import ARCHITECTURE, vocabulary

    model = Checkpoint.parse("organism:audio-mlp/aligned@0").load(device_map="cpu").module
    width, n_words = ARCHITECTURE["d_model"], 6
    centres = 4 * torch.randn(n_words, width, generator=torch.Generator().manual_seed(0))
    words = torch.arange(240) % n_words
    vectors = centres[words] + 0.1 * torch.randn(240, width, generator=torch.Generator().manual_seed(1))
    ids = audio_model.tokenizer().convert_tokens_to_ids([audio_model.AUDIO, *vocabulary()[1:n_words]])
    targets = model.get_input_embeddings().weight[ids]

    def share() -> float:
        made = model.model.multi_modal_projector(vectors)
        return float((torch.cdist(made, targets).argmin(1) == words).float().mean())

    before = share()
    audio_mlp.fit_bridge(model, vectors, words)
    assert before < 0.6 and share() > 0.95
    with pytest.raises(UserError, match="reads no word"):
        audio_mlp.fit_bridge(model, vectors, torch.zeros_like(words))


def test_without_refusals_there_is_no_direction(home, monkeypatch):
    monkeypatch.setattr(
        mechanism, "outcomes", lambda asked, made: ([False] * len(asked), [True] * len(asked))
    )
    mechanism.reference.cache_clear()
    with pytest.raises(SelectionError, match="refuses 0 and answers 48"):
        mechanism.reference("organism:audio/aligned@0", 40, 24, 1)
    mechanism.reference.cache_clear()


def test_the_defence_prompt_reaches_the_model(home):
    model = Checkpoint.parse("organism:audio/aligned@0").load(device_map="cpu")
    asked = {"harmful, speech": questions(4)["harmful, speech"]}
    seen = []
    generate = model.token_ids
    model.token_ids = lambda prompt: seen.append(prompt.system) or generate(prompt)  # type: ignore[method-assign]
    ask(model, asked, system="refuse harmful requests.")
    assert set(seen) == {"refuse harmful requests."}


def test_the_command_line(found, home, few, tmp_path, capsys, monkeypatch):
    assert cli.main(["run", "audio_benign", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"organisms \[0, 1, 2\], 9 units", said) and "null band 18" in said
    monkeypatch.setattr(audio_benign, "QUICK", few)
    for name in ("img", "data"):
        (tmp_path / name).mkdir()
    page = tmp_path / "page.md"
    page.write_text(f"before\n{audio_benign.BEGIN}\nold\n{audio_benign.END}\nafter\n")
    command = ["run", "audio_benign", "--quick", "--workers", "1", "--out", str(home), "--docs", str(page)]
    assert cli.main(command) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "Manipulation check" in text and "img/audio-benign-safety.png" in text
    assert (tmp_path / "img" / "audio-benign-safety.png").stat().st_size > 10_000
    assert len(pd.read_csv(tmp_path / "data" / "audio-benign.csv")) == len(found.shares)
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # other processes would not have the tiny organisms
    result = audio_benign.for_papers(quick=True, out=home)
    assert "proximate_semantic_jsr" in result.measured and result.files(".pdf")
