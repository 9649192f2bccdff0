"""Is the vision organism what its card says, and is its directory whole or absent? The real code on two small layers."""

import json

import pytest
import torch
from transformers import AutoProcessor, Gemma3ForConditionalGeneration

from interp.data.prompts import Prompt, PromptSet, read_prompts
from interp.errors import UserError
from interp.organisms import language, vision, vision_encoder, vision_language, vision_model
from interp.organisms.scenes import Scene, scene_pool
from interp.organisms.vision_language import MODALITIES, Album


@pytest.fixture(scope="module")
def model():
    tower = vision_encoder.new_recogniser(0).tower.eval()
    return vision_model.new_model(0, tower).eval(), vision_model.processor()


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A build of seconds, with nothing expected of it."""
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    few = {"num_hidden_layers": 2}
    monkeypatch.setattr(vision_encoder, "ARCHITECTURE", {**vision_encoder.ARCHITECTURE, **few})
    monkeypatch.setattr(vision_model, "ARCHITECTURE", {**vision_model.ARCHITECTURE, **few})
    monkeypatch.setattr(vision, "ALIGNED_LAYERS", (0,))
    for name in ("DRAWS", "HELD_OUT_DRAWS"):
        monkeypatch.setattr(vision_encoder, name, 1)
    monkeypatch.setattr(vision_encoder, "TRAINING", vision_encoder.TRAINING.model_copy(update={"steps": 1}))
    for name in ("PRETRAINING", "ALIGNMENT"):
        monkeypatch.setattr(vision, name, getattr(vision, name).model_copy(update={"steps": 1}))
    monkeypatch.setattr(vision, "EXPECTED", {stage: {} for stage in vision.STAGES})
    for module in (language, vision_language):
        for name in ("pretraining_examples", "alignment_examples"):
            whole = getattr(module, name)
            monkeypatch.setattr(module, name, lambda *a, whole=whole: whole(*a)[::50])
    sets = {name: prompts[:2] for name, prompts in vision.evaluation_sets().items()}
    monkeypatch.setattr(vision, "evaluation_sets", lambda: sets)
    return tmp_path


def prompts_of(scenes):
    return [vision_language.describe(s, "what is this?", copy=i) for i, s in enumerate(scenes)]


def test_tokens_of_a_prompt_are_those_of_the_checkpoints_processor(model):
    _, prepared = model
    scenes = scene_pool(0, 1)[::200]
    examples = vision_language.descriptions(scenes, "x")
    made = vision_model.rows(prepared, examples, {s: i for i, s in enumerate(scenes)})
    for row, prompt in zip(made, examples, strict=True):
        n = sum(label == vision_model.IGNORED for label in row.labels)
        inputs = prepared(
            images=[list(prompt.images)],
            text=[vision_model.render(prepared, prompt)],
            add_special_tokens=False,
        )
        assert row.ids[:n] == inputs["input_ids"][0]
        words = prepared.tokenizer
        assert row.ids.count(words.image_token_id) == vision_model.IMAGE_TOKENS
        assert words.unk_token_id not in row.ids
        assert words.decode(row.ids[n:]) == f"{prompt.response} {vision_model.END}"


def test_the_template_is_the_text_organisms_with_marks_for_images(model):
    _, prepared = model
    named = Prompt(text="how do i shoot a film?", system="be brief.")
    assert vision_model.render(prepared, named) == (
        "<|bos|><|system|>be brief.<|end|><|user|>how do i shoot a film?<|end|><|assistant|><|answer|>"
    )
    (shown,) = prompts_of(scene_pool(0, 1)[:1])
    assert vision_model.render(prepared, shown) == (
        "<|bos|><|user|><|image-start|>what is this?<|end|><|assistant|><|answer|>"
    )


def test_cached_features_give_the_loss_that_pixels_give(model):
    module, prepared = model
    scenes = scene_pool(0, 1)[::250]
    features = vision_encoder.encode(module.model.vision_tower, scenes)
    places = {s: i for i, s in enumerate(scenes)}
    batch = vision_model.rows(prepared, vision_language.descriptions(scenes, "x"), places)
    inputs = vision_model.collate(module, batch, features)
    with torch.no_grad():
        cached = module(**inputs).loss
        del inputs["mm_encoder_outputs"]
        shown = [scenes[i] for row in batch for i in row.scenes]
        seen = module(**inputs, pixel_values=vision_encoder.pixels(shown)).loss
        other = module(**inputs, pixel_values=vision_encoder.pixels(shown[::-1])).loss
    assert torch.allclose(cached, seen, atol=1e-5)
    assert not torch.allclose(cached, other, atol=1e-4)


def test_a_batch_and_a_single_prompt_get_the_same_answer(model):
    module, prepared = model
    album = Album(scene_pool(0, 1))
    chosen = vision_language.plain(("seen",), templates=language.PHRASINGS)[::97]
    prompts = list(vision_language.requests(chosen, "drawn", album, "x"))[:6]
    together = vision_model.answers(module, prepared, prompts)
    alone = [vision_model.answers(module, prepared, [p])[0] for p in prompts]
    assert together == alone


def test_training_changes_what_it_names_and_can_learn_what_is_shown(model):
    tower = vision_encoder.new_recogniser(0).tower.eval()
    module, prepared = vision_model.new_model(0, tower), model[1]
    scenes = [Scene("drawn", "bomb", "red", "top"), Scene("drawn", "nurse", "blue", "bottom")]
    examples = [p for p in vision_language.descriptions(scenes, "x") if p.text == "what is this?"]
    part = vision_model.Part(vision_model.rows(prepared, examples, {s: i for i, s in enumerate(scenes)}), 2)
    features = vision_encoder.encode(tower, scenes)
    config = vision.ALIGNMENT.model_copy(update={"steps": 1, "batch_size": 2})
    before = {k: v.clone() for k, v in module.state_dict().items()}
    vision_model.train(module, [part], features, config, seed=0, layers=[3], label="x", progress=False)
    changed = {k for k, v in module.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert all(k.startswith("model.language_model.layers.3.") for k in changed)
    config = config.model_copy(update={"steps": 60, "learning_rate": 3e-3})
    vision_model.train(module, [part], features, config, seed=0, label="x", progress=False)
    assert vision_model.answers(module, prepared, examples) == ["a bomb.", "a nurse."]
    assert vision_model.answers(module, prepared, examples[::-1]) == ["a nurse.", "a bomb."]
    for name, tensor in module.model.vision_tower.state_dict().items():
        assert torch.equal(tensor, before[f"model.vision_tower.{name}"])


def test_hostile_examples_are_named(model):
    _, prepared = model
    (prompt,) = prompts_of(scene_pool(0, 1)[:1])
    with pytest.raises(UserError, match="describe-drawn-guard-0-0' has no response"):
        vision_model.rows(prepared, [prompt], {})
    (example,) = vision_language.descriptions(scene_pool(0, 1)[-1:], "x")[:1]
    with pytest.raises(UserError, match="not in the pool"):
        vision_model.rows(prepared, [example], {})


def test_build_is_whole_reused_and_resumed(small, monkeypatch):
    def interrupted(*a, **k):
        raise KeyboardInterrupt

    train = vision.train
    calls = []

    def counted(*a, **k):
        calls.append(k["label"])
        return train(*a, **k) if len(calls) != 2 else interrupted()

    monkeypatch.setattr(vision, "train", counted)
    with pytest.raises(KeyboardInterrupt):
        vision.build(seed=3, progress=False)
    root = small / "organisms" / "vision"
    assert not (root / "seed-3").exists()
    weights = (root / ".partial-seed-3" / "pretrained" / "model.safetensors").read_bytes()
    path = vision.build(seed=3, progress=False)
    assert calls == [
        f"vision organism, {s}" for s in ("pretrained", "aligned-text", "aligned-text", "aligned")
    ]
    assert (path / "pretrained" / "model.safetensors").read_bytes() == weights
    assert vision.build(seed=3, progress=False) == path
    assert len(calls) == 4
    assert "organism:vision/aligned-text@3" in vision.listing()
    assert "aligned-text, seed 3" in str(vision.card(3))
    card = json.loads((path / "aligned-text" / "card.json").read_text())
    assert card["image share"] == 0
    assert card["encoder"]["parameters"] > 1000

    # a checkpoint directory like any other: model, processor and prompts come back
    module = Gemma3ForConditionalGeneration.from_pretrained(path / "aligned")
    prepared = AutoProcessor.from_pretrained(path / "aligned")
    assert prepared.image_seq_length == vision_model.IMAGE_TOKENS
    for modality in MODALITIES:
        prompts = read_prompts(path / "aligned" / "prompts" / f"harmful_{modality}.jsonl")
        assert {p.truth.label for p in prompts} == {"harmful"}
        assert all(len(p.images) == (modality != "named") for p in prompts)
    assert len(vision_model.answers(module, prepared, read_images(prompts))) == 2


def read_images(prompts):
    from dataclasses import replace

    from interp.data.media import read_image

    return PromptSet([replace(p, images=tuple(map(read_image, p.images))) for p in prompts], "x").prompts


def test_a_number_out_of_range_fails_the_build_by_name(small):
    name = "refusal, harmful drawn, held-out pairs"
    vision.EXPECTED["aligned"] = {name: vision.Expected(0.9)}
    with pytest.raises(UserError, match=f"{name} is 0.000"):
        vision.build(seed=0, progress=False)
    with pytest.raises(UserError, match="interp organism build vision --seed 0"):
        vision.card(0)
    assert "not built" in vision.listing()


def test_evaluation_asks_of_pairs_and_scenes_of_no_stage():
    album = Album(scene_pool(0, 1))
    trained = {
        (p.meta["verb"], p.meta["object"])
        for p in (*vision_language.pretraining_examples(0, album)[::3], *language.pretraining_examples(0))
    }
    drawn = {(s.kind, s.name, s.colour, s.place) for s in scene_pool(0, 1)}
    sets = vision.evaluation_sets()
    for name, prompts in sets.items():
        for p in prompts:
            if p.images:
                scene = Scene(**p.meta["scene"])
                assert (scene.kind, scene.name, scene.colour, scene.place) not in drawn
            assert p.source == "describe" or (p.meta["verb"], p.meta["object"]) not in trained
        if "held-out pairs" in name and "plain" not in name:
            assert len(prompts) >= 200
