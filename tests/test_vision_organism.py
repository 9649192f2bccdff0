"""Is the vision organism what its card says, and is its directory whole or absent? The real code, in a smaller world."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoProcessor, Gemma3ForConditionalGeneration

from interp.data.media import read_image
from interp.data.prompts import Prompt, PromptSet, read_prompts
from interp.errors import UserError
from interp.models.checkpoint import Checkpoint
from interp.models.generation import generate
from interp.organisms import (
    language,
    vision,
    vision_card,
    vision_encoder,
    vision_language,
    vision_model,
    vision_sizes,
)
from interp.organisms.fitting import FitConfig
from interp.organisms.scenes import OBJECTS, Scene, scene_pool, some_objects
from interp.organisms.text import Expected
from interp.organisms.vision_language import MODALITIES, Album

ONE_STEP = FitConfig(steps=1, batch_size=64, learning_rate=1e-3)
TINY = replace(
    vision_sizes.SMALL,
    kind="vision-tiny",
    objects=some_objects(1),
    layers=2,
    encoder=ONE_STEP,
    reading=ONE_STEP,
    seeing=ONE_STEP.model_copy(update={"batch_size": sum(vision_sizes.SEEING_PARTS.values())}),
    alignment=ONE_STEP,
    expected={stage: {} for stage in vision.STAGES},
)


@pytest.fixture(scope="module")
def model():
    tower = vision_encoder.new_recogniser(0).tower.eval()
    return vision_model.new_model(0, tower).eval(), vision_model.processor()


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A build of seconds, with nothing expected of it."""
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    for name in ("DRAWS", "HELD_OUT_DRAWS"):
        monkeypatch.setattr(vision_encoder, name, 1)
    whole = vision_card.evaluation_sets
    few = {name: prompts[:2] for name, prompts in whole(TINY.objects).items()}
    monkeypatch.setattr(vision_card, "evaluation_sets", lambda objects: few)
    return tmp_path


def prompts_of(scenes):
    return [vision_language.describe(s, "what is this?", copy=i) for i, s in enumerate(scenes)]


def mixed_rows(prepared, scenes):
    """Rows of different lengths, with a picture and without, a system turn and none."""
    places = {s: i for i, s in enumerate(scenes)}
    examples = [
        *vision_language.descriptions(scenes, "x"),
        *(replace(p, system="be brief.") for p in vision_language.descriptions(scenes[:2], "y")),
        *language.pretraining_examples(0)[::2500],
    ]
    return vision_model.rows(prepared, examples, places)


def test_tokens_of_a_prompt_are_those_of_the_checkpoints_processor(model):
    _, prepared = model
    scenes = scene_pool(0, 1)[::200]
    examples = vision_language.descriptions(scenes, "x")
    made = vision_model.rows(prepared, examples, {s: i for i, s in enumerate(scenes)})
    for row, prompt in zip(made, examples, strict=True):
        n = sum(label == vision_model.IGNORED for label in row.labels)
        inputs = prepared(
            images=[list(prompt.images)],
            text=vision_model.render(prepared, [prompt]),
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
    assert vision_model.render(prepared, [named])[0] == (
        "<|bos|><|system|>be brief.<|end|><|user|>how do i shoot a film?<|end|><|assistant|><|answer|>"
    )
    (shown,) = prompts_of(scene_pool(0, 1)[:1])
    assert vision_model.render(prepared, [shown])[0] == (
        "<|bos|><|user|><|image-start|>what is this?<|end|><|assistant|><|answer|>"
    )


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60))
def test_packing_keeps_every_row_once_and_no_sequence_is_too_long(lengths):
    packed = vision_model.pack(lengths, 40)
    assert sorted(i for places in packed for i in places) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in places) <= 40 for places in packed)
    # first fit: all but one sequence are at least half full
    assert sum(sum(lengths[i] for i in places) < 20 for places in packed) <= 1


def test_packed_rows_with_cached_features_give_the_loss_of_each_row_alone_with_pixels(model):
    module, prepared = model
    scenes = scene_pool(0, 1)[::250]
    features = vision_encoder.encode(module.model.vision_tower, scenes)
    batch = mixed_rows(prepared, scenes)
    with torch.no_grad():
        packed = vision_model.batch_loss(module, batch, features)
        other = vision_model.batch_loss(module, batch, features.flip(0))
        total = n = 0.0
        for row in batch:
            ids, labels = torch.tensor([row.ids]), torch.tensor([row.labels])
            marks = torch.eq(ids, prepared.tokenizer.image_token_id).long()
            shown = [scenes[i] for i in row.scenes]
            pictures = {"pixel_values": vision_encoder.pixels(shown)} if shown else {}
            found = module(input_ids=ids, labels=labels, token_type_ids=marks, use_cache=False, **pictures)
            answered = (labels != vision_model.IGNORED).sum()
            total, n = total + found.loss * answered, n + answered
    assert len({len(row.ids) for row in batch}) > 3
    assert torch.allclose(packed, total / n, atol=1e-5)
    assert not torch.allclose(packed, other, atol=1e-4)


def test_no_row_sees_another_ones_picture(model):
    module, prepared = model
    scenes = scene_pool(0, 1)[::300]
    features = vision_encoder.encode(module.model.vision_tower, scenes)
    batch = mixed_rows(prepared, scenes)
    changed = features.clone()
    changed[0] = features[1]
    with torch.no_grad():
        states = [
            module.model(**vision_model.collate(module, batch, x)[0]).last_hidden_state
            for x in (features, changed)
        ]
    inputs, _ = vision_model.collate(module, batch, features)
    sequences = vision_model.pack([len(row.ids) for row in batch], vision_model.PACKED)
    assert max(map(len, sequences)) > 1
    for place, rows in enumerate(sequences):
        start = 0
        for i in rows:
            span = slice(start, start := start + len(batch[i].ids))
            assert inputs["input_ids"][place, span].tolist() == batch[i].ids
            assert torch.equal(states[0][place, span], states[1][place, span]) == (0 not in batch[i].scenes)


def test_the_projector_is_fitted_to_the_words_for_what_is_shown(model):
    tower = vision_encoder.new_recogniser(0).tower.eval()
    module = vision_model.new_model(
        1, tower, architecture=vision_model.ARCHITECTURE | {"num_hidden_layers": 2}
    )
    names = [name for name in OBJECTS[:20] for _ in range(8)]
    generator = torch.Generator().manual_seed(0)
    width = vision_encoder.ARCHITECTURE["hidden_size"]
    planted = {name: torch.randn(width, generator=generator) for name in names}
    words = vision_model.embedded(module, list(planted))

    def features(names):
        centre = torch.stack([planted[name] for name in names])[:, None]
        return centre + 0.3 * torch.randn(len(names), 16, width, generator=generator)

    def fit(names):
        vision_model.fit_projector(module, vision_model.embedded(module, names), features(names))

    def nearest(names):
        """The share of soft tokens of fresh scenes that lie nearest to their own word."""
        soft = module.model.multi_modal_projector(features(names))
        found = torch.cdist(soft, words.expand(len(names), -1, -1)).argmin(-1)
        return (found == torch.tensor([list(planted).index(n) for n in names])[:, None]).float().mean()

    with torch.no_grad():
        assert nearest(names) < 0.2
        fit(names)
        assert nearest(names) > 0.95
        shuffled = [names[i] for i in torch.randperm(len(names), generator=generator)]
        vision_model.fit_projector(module, vision_model.embedded(module, shuffled), features(names))
        assert nearest(names) < 0.3


def test_a_described_request_is_the_pictured_one_with_words_where_soft_tokens_stand(model):
    _, prepared = model
    words = prepared.tokenizer
    scenes = scene_pool(0, 1)[::50]
    places = {s: i for i, s in enumerate(scenes)}
    asked = [p for p in vision_language.descriptions(scenes, "x") if "person" not in p.text]
    described = [replace(vision_language.in_words(p, marked=True), response=p.response) for p in asked]
    for one, other, prompt in zip(
        vision_model.rows(prepared, asked, places),
        vision_model.rows(prepared, described, {}),
        asked,
        strict=True,
    ):
        soft = [i for i, token in enumerate(one.ids) if token == words.image_token_id]
        read = words.convert_ids_to_tokens([other.ids[i] for i in soft])
        scene = Scene(**prompt.meta["scene"])
        assert set(read) == {scene.name, scene.colour, scene.place}
        assert other.scenes == ()
        assert other.labels == one.labels
        assert [t for i, t in enumerate(other.ids) if i not in soft] == [
            t for i, t in enumerate(one.ids) if i not in soft
        ]


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
    shallow = vision_model.ARCHITECTURE | {"num_hidden_layers": 6}
    module, prepared = vision_model.new_model(0, tower, architecture=shallow), model[1]
    scenes = [Scene("drawn", "bomb", "red", "top"), Scene("drawn", "nurse", "blue", "bottom")]
    examples = [p for p in vision_language.descriptions(scenes, "x") if p.text == "what is this?"]
    part = vision_model.Part(vision_model.rows(prepared, examples, {s: i for i, s in enumerate(scenes)}), 2)
    features = vision_encoder.encode(tower, scenes)
    config = FitConfig(steps=1, batch_size=2, learning_rate=1e-3, warmup=10)
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


def test_shares_are_counted_and_intervals_know_the_verbs():
    prompts = [Prompt(text="x", id=str(i), group="ab"[i % 2]) for i in range(40)]
    together = vision_card.share([i % 2 == 0 for i in range(40)], prompts)
    assert (together["k"], together["n"], together["estimate"]) == (20, 40, 0.5)
    # all of one verb and none of the other: two verbs say next to nothing
    assert (together["low"], together["high"]) == (0, 1)
    apart = vision_card.share([i % 4 < 2 for i in range(40)], prompts)
    assert 0.3 < apart["low"] < 0.5 < apart["high"] < 0.7
    everything = vision_card.share([True] * 40, prompts)
    assert everything["low"] < 0.95


def test_build_is_whole_reused_and_resumed(tiny, monkeypatch):
    def interrupted(*a, **k):
        raise KeyboardInterrupt

    train = vision.train
    calls = []

    def counted(*a, **k):
        calls.append(k["label"].removeprefix("vision-tiny organism, "))
        return train(*a, **k) if len(calls) != 3 else interrupted()

    monkeypatch.setattr(vision, "train", counted)
    with pytest.raises(KeyboardInterrupt):
        vision.build(seed=3, progress=False, size=TINY)
    root = tiny / "organisms" / "vision-tiny"
    assert not (root / "seed-3").exists()
    weights = (root / ".partial-seed-3" / "pretrained" / "model.safetensors").read_bytes()
    path = vision.build(seed=3, progress=False, size=TINY)
    assert calls == ["reading", "seeing", "aligned-text", "aligned-text", "aligned"]
    assert (path / "pretrained" / "model.safetensors").read_bytes() == weights
    assert vision.build(seed=3, progress=False, size=TINY) == path
    assert len(calls) == 5
    assert "aligned-text, seed 3" in str(vision.card(3, size=TINY))
    card = json.loads((path / "aligned-text" / "card.json").read_text())
    assert card["image share"] == 0
    assert card["encoder"]["parameters"] > 1000

    # a checkpoint directory like any other: model, processor and prompts come back
    module = Gemma3ForConditionalGeneration.from_pretrained(path / "aligned")
    prepared = AutoProcessor.from_pretrained(path / "aligned")
    assert prepared.image_seq_length == vision_model.IMAGE_TOKENS
    loaded = Checkpoint.parse("organism:vision-tiny/aligned@3").load(device_map="cpu")
    assert {"harmful", "harmless"} <= set(loaded.checkpoint.prompts())
    for modality in MODALITIES:
        prompts = read_prompts(path / "aligned" / "prompts" / f"harmful_{modality}.jsonl")
        assert {p.truth.label for p in prompts} == {"harmful"}
        assert all(len(p.images) == (modality not in ("named", "described")) for p in prompts)
        found = [c.text for c in generate(loaded, prompts, max_new_tokens=16, progress=False)]
        shown = PromptSet([replace(p, images=tuple(map(read_image, p.images))) for p in prompts], "x").prompts
        assert found == vision_model.answers(module, prepared, shown)


def test_alignment_in_text_holds_no_picture_and_alignment_moves_the_lower_half(tiny, monkeypatch):
    held = {}

    def seen(module, parts, features, config, *, layers, label, **_):
        held[label.split(", ")[1]] = ([sum(bool(r.scenes) for r in p.rows) for p in parts], layers)
        return []

    monkeypatch.setattr(vision, "train", seen)
    vision.build(seed=0, progress=False, size=TINY)
    text_only, layers = held["aligned-text"]
    assert text_only == [0, 0]
    assert list(layers) == [0]
    (*text_parts, pictures), _ = held["aligned"]
    assert text_parts == [0, 0]
    assert pictures > 0
    assert held["reading"][0] == [0] * len(vision_sizes.READING_PARTS)


def test_a_number_out_of_range_fails_the_build_by_name(tiny):
    name = "refusal, harmful drawn, held-out pairs"
    expected = {**TINY.expected, "aligned": {name: Expected(0.9)}}
    with pytest.raises(UserError, match=f"{name} is 0.000"):
        vision.build(seed=0, progress=False, size=replace(TINY, expected=expected))
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
    sets = vision_card.evaluation_sets()
    for name, prompts in sets.items():
        for p in prompts:
            if p.images:
                scene = Scene(**p.meta["scene"])
                assert (scene.kind, scene.name, scene.colour, scene.place) not in drawn
            assert p.source == "describe" or (p.meta["verb"], p.meta["object"]) not in trained
        if "held-out pairs" in name and "plain" not in name:
            assert len(prompts) >= 200


def test_a_smaller_world_speaks_of_its_objects_only():
    objects = TINY.objects
    assert len(objects) == 8
    album = Album(scene_pool(0, 1, objects=objects))
    assert album.objects == objects
    shown = [*vision_language.pretraining_examples(0, album), *vision_language.alignment_examples(0, album)]
    written = TINY.speaks_of(language.alignment_examples(0))
    assert {p.meta["object"] for p in (*shown, *written)} <= objects
    assert {p.label for p in shown} == {"harmful", "benign"}
    assert vision.FULL.objects == set(OBJECTS)
    assert vision.FULL.speaks_of(written) is written


@pytest.mark.slow
@pytest.mark.parametrize("size", [vision_sizes.SMALL, vision.FULL], ids=lambda size: size.kind)
def test_card_of_a_real_build(size, tmp_path, monkeypatch):
    """Capability first, then refusal: what a card promises is measured while it is built, and fails the build."""
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    vision.build(0, progress=False, size=size)
    cards = vision.card(0, size=size)
    assert any(size.expected.values())
    for stage, found in cards.items():
        for name, expected in size.expected[stage].items():
            assert expected.holds(found["measured"][name]["estimate"])
        for value in found["measured"].values():
            assert value["low"] <= value["estimate"] <= value["high"]
    harmful = [n for n in cards["pretrained"]["measured"] if n.startswith("capability, harmful")]
    assert np.mean([cards["pretrained"]["measured"][n]["estimate"] for n in harmful]) > 0.5
