"""The audio organism with an MLP for a bridge is built from the linear one's parts, stage by stage, and a whole stage is kept."""

from dataclasses import replace

import pytest
from test_audio_organism import shrink

from interp import cli
from interp.errors import CheckpointError, UserError
from interp.files import load_json
from interp.models.checkpoint import Checkpoint
from interp.organisms import audio, audio_mlp, audio_model, staged
from interp.organisms.text import Expected

pytest.importorskip("espeakng_loader")


def test_one_that_is_not_built_says_how(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    assert cli.main(["organism", "card", "audio-mlp", "--seed", "1"]) == 2
    assert "run: interp organism build audio-mlp --seed 1" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="run: interp organism build audio-mlp --seed 1"):
        Checkpoint.parse("organism:audio-mlp/aligned@1")
    assert "organism:audio-mlp/{pretrained,aligned}: not built" in audio_mlp.listing()


def test_stages_are_built_kept_and_made_anew_when_cut_off(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    shrink(monkeypatch)
    monkeypatch.setattr(audio_mlp, "EXPECTED", {})
    # clips of an untrained encoder hold no pieces to put together
    recipe = audio.RECIPES["pretrained"]
    parts = {kind: each for kind, each in recipe.parts.items() if kind != "spliced"}
    config = recipe.config.model_copy(update={"batch_size": sum(parts.values())})
    monkeypatch.setitem(audio.RECIPES, "pretrained", replace(recipe, parts=parts, config=config))
    # an encoder of one step reads no word, which the bridge could be fitted to
    monkeypatch.setattr(audio_mlp, "fit_bridge", lambda *_: None)
    target = audio_mlp.build(0, progress=False)
    for stage in audio_mlp.STAGES:
        card = load_json(target / stage / staged.CARD)
        assert card["stage"] == stage and "refusal, harmful, speech" in card["measured"]
    shown = str(audio_mlp.card(0))
    assert "organism:audio-mlp/pretrained, seed 0, built in" in shown
    assert "refusal, harmful, speech" in shown
    assert str(target / "aligned") in audio_mlp.listing()
    model = Checkpoint.parse("organism:audio-mlp/aligned@0").load(device_map="cpu")
    assert model.module.config.model_type == "audioflamingo3" and set(model.tower.encoders) == {"audio"}
    before = dict(
        audio_model.load(tmp_path / "organisms" / "audio" / "seed-0" / "pretrained").named_parameters()
    )
    ear = {name: p for name, p in model.module.named_parameters() if "audio_tower" in name}
    assert ear and all((before[name] == p).all() for name, p in ear.items()), "the encoder stays frozen"

    trained = []
    train = audio_model.train
    monkeypatch.setattr(audio_model, "train", lambda *a, **k: trained.append(k["label"]) or train(*a, **k))
    audio_mlp.build(0, progress=False)
    assert trained == []
    (target / "aligned" / staged.CARD).unlink()
    bound = {"aligned": {"refusal, harmful, speech": Expected(1.1)}}
    with monkeypatch.context() as missed:
        missed.setattr(audio_mlp, "EXPECTED", bound)
        with pytest.raises(
            UserError,
            match="audio-mlp organism, seed 0, aligned: refusal, harmful, speech is 0.* at least 1.1",
        ):
            audio_mlp.build(0, progress=False)
    assert not (target / "aligned").exists(), "one that misses its bound is not kept"
    trained.clear()
    audio_mlp.build(0, progress=False)
    assert trained == ["audio organism with an MLP, aligned"]
