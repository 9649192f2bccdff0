"""Does the encoder learn what scenes show, from scenes alone, and is it what the organism's decoder reads?"""

import random

import numpy as np
import pytest
import torch
from transformers import Gemma3Processor

from interp.errors import NonFiniteError
from interp.files import load_json
from interp.organisms import vision_encoder
from interp.organisms.fitting import FitConfig, fit, rate
from interp.organisms.scenes import Scene, draw, scene_pool
from interp.organisms.vision_encoder import HEADS, NONE, labels, pixels
from interp.organisms.vision_model import processor

FEW = frozenset(("nurse", "bomb", "pear"))
TRAINING = FitConfig(steps=60, batch_size=32, learning_rate=3e-3, warmup=10)


def few_scenes(*a, **k):
    return tuple(s for s in scene_pool(*a, **k, objects=FEW) if s.kind == "drawn")


@pytest.fixture
def small(monkeypatch):
    """Two layers, and only scenes of a few objects: seconds, with the real code."""
    monkeypatch.setattr(
        vision_encoder, "ARCHITECTURE", {**vision_encoder.ARCHITECTURE, "num_hidden_layers": 2}
    )


def test_labels_say_what_is_shown_and_nothing_where_nothing_is_asked():
    nurse = Scene("drawn", "nurse", "blue", "bottom", glasses=True, mouth="frown")
    word = Scene("word", "nurse", "red", "top", glasses=True)
    found = labels([nurse, word])
    assert found["shown"][0] != found["shown"][1]
    told = {head: classes[found[head][0]] for head, (classes, _) in HEADS.items()}
    assert told == {
        "shown": ("drawn", "nurse"), "colour": "blue", "place": "bottom", "look": "frown", "glasses": True,
    }  # fmt: skip
    assert found["look"][1] == found["glasses"][1] == NONE


def test_pixels_are_those_of_the_checkpoints_processor(tmp_path):
    processor().save_pretrained(tmp_path)
    scenes = scene_pool(0, 1)[::300]
    loaded = Gemma3Processor.from_pretrained(tmp_path).image_processor
    assert torch.equal(loaded([draw(s) for s in scenes], return_tensors="pt")["pixel_values"], pixels(scenes))


def test_it_learns_from_scenes_and_an_untrained_one_does_not_know(small):
    held = few_scenes(5, 4, held_out=True)
    recogniser = vision_encoder.new_recogniser(0)
    before = vision_encoder.accuracy(recogniser, held)
    curve = vision_encoder.train(
        recogniser, few_scenes(0, vision_encoder.DRAWS), TRAINING, seed=0, progress=False
    )
    after = vision_encoder.accuracy(recogniser, held)
    assert curve[-1]["loss"] < curve[0]["loss"] / 2
    assert before["shown"]["estimate"] < 0.3
    assert after["shown"]["estimate"] > 0.6
    assert after["colour"]["estimate"] > 0.6
    assert after["look"]["n"] == 24  # nurses only
    for share in after.values():
        assert share["low"] <= share["estimate"] <= share["high"] + 1e-9


def test_build_is_a_function_of_the_seed_and_leaves_random_states_alone(small, tmp_path, monkeypatch):
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        few_steps = TRAINING.model_copy(update={"steps": 3})
        vision_encoder.build(tmp_path / name, seed, few_steps, objects=FEW, progress=False)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "abc"]
    assert weights[0] == weights[1] != weights[2]
    assert vision_encoder.is_built(tmp_path / "a", 0)
    assert not vision_encoder.is_built(tmp_path / "a", 1)
    assert not vision_encoder.is_built(tmp_path / "none", 0)
    card = load_json(tmp_path / "a" / "card.json")
    assert set(card["measured"]) >= {f"{head}, held-out combinations" for head in HEADS}
    tower = vision_encoder.load(tmp_path / "a")
    assert not any(p.requires_grad for p in tower.parameters())
    scenes = scene_pool(0, 1)[:5]
    features = vision_encoder.encode(tower, scenes, batch_size=2)
    assert features.shape == (5, 16, vision_encoder.ARCHITECTURE["hidden_size"])
    assert torch.allclose(features, vision_encoder.encode(tower, scenes), atol=1e-5)


def test_the_rate_warms_up_and_falls_to_nothing():
    config = FitConfig(steps=100, batch_size=1, learning_rate=1.0, warmup=10)
    rates = [rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.001


def test_fitting_finds_a_planted_minimum_and_names_a_loss_that_is_no_number():
    config = FitConfig(steps=200, batch_size=1, learning_rate=0.1, weight_decay=0)
    weight = torch.nn.Parameter(torch.zeros(3))
    target = torch.tensor([1.0, -2.0, 0.5])
    curve = fit([weight], lambda step: ((weight - target) ** 2).sum(), config, label="x", progress=False)
    assert torch.allclose(weight, target, atol=0.01)
    assert len(curve) == 20
    with pytest.raises(NonFiniteError, match="x: the loss is nan at step 3"):
        fit(
            [weight],
            lambda step: (weight * (float("nan") if step == 3 else 1.0)).sum(),
            config,
            label="x",
            progress=False,
        )
