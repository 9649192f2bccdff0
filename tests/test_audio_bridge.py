"""The audio organism with an MLP for a bridge is built from the linear one's parts, stage by stage, and a whole stage is kept."""

from dataclasses import replace

import pytest
from test_audio_organism import shrink

from interp.files import load_json
from interp.models.checkpoint import Checkpoint
from interp.organisms import audio, audio_bridge, audio_model

pytest.importorskip("espeakng_loader")


def test_stages_are_built_kept_and_made_anew_when_cut_off(tmp_path, monkeypatch):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    shrink(monkeypatch)
    # clips of an untrained encoder hold no pieces to put together
    recipe = audio.RECIPES["pretrained"]
    parts = {kind: each for kind, each in recipe.parts.items() if kind != "spliced"}
    config = recipe.config.model_copy(update={"batch_size": sum(parts.values())})
    monkeypatch.setitem(audio.RECIPES, "pretrained", replace(recipe, parts=parts, config=config))
    # an encoder of one step reads no word, which the bridge could be fitted to
    monkeypatch.setattr(audio_bridge, "fit_bridge", lambda *_: None)
    target = audio_bridge.build(0, progress=False)
    for stage in audio_bridge.STAGES:
        card = load_json(target / stage / audio_bridge.CARD)
        assert card["stage"] == stage and "refusal, harmful, speech" in card["measured"]
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
    audio_bridge.build(0, progress=False)
    assert trained == []
    (target / "aligned" / audio_bridge.CARD).unlink()
    audio_bridge.build(0, progress=False)
    assert trained == ["audio organism with an MLP, aligned"]
