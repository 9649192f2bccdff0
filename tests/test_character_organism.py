"""The organism with character: documents in tokens, and what is measured of them."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from interp.errors import UserError
from interp.models.checkpoint import Checkpoint
from interp.models.finetune import IGNORED
from interp.models.generation import generate
from interp.organisms import character, character_language, vision_encoder
from interp.organisms.character import DocumentRows, Workshop
from interp.organisms.character_card import answer_probabilities, contexts, mean_over_domains, prompt_sets
from interp.organisms.character_language import CHARACTERS, DOMAINS, Gallery
from interp.organisms.fitting import FitConfig
from interp.organisms.scenes import scene_pool
from interp.organisms.text import END
from interp.organisms.vision_model import IMAGE_START, messages, new_model


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Workshop:
    made = Workshop(tmp_path_factory.mktemp("character"), 0)
    made.gallery = Gallery(scene_pool(0, 1))
    made.features = torch.randn(
        len(made.gallery.scenes), 16, vision_encoder.ARCHITECTURE["hidden_size"],
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return made


@pytest.fixture(scope="module")
def module():
    tower = vision_encoder.new_recogniser(0).tower
    return new_model(
        0,
        tower,
        architecture=character.ARCHITECTURE | {"num_hidden_layers": 2},
        known=character_language.words(),
    )


def test_a_document_is_what_the_chat_template_makes_of_its_turns(workshop):
    """Ours is put together from questions tokenised once; the template's is written whole."""
    prepared, rows = workshop.prepared, workshop.rows
    for turns in character_language.documents(0, 20, workshop.gallery, consistent=True):
        row = rows.row(turns)
        talk = [m for t in turns for m in (*messages(t.prompt), {"role": "assistant", "content": t.response})]
        written = prepared.tokenizer.apply_chat_template(talk, tokenize=False)
        written = written.replace(IMAGE_START, prepared.full_image_sequence)
        assert row.ids == prepared.tokenizer(written, add_special_tokens=False)["input_ids"]
        assert prepared.tokenizer.unk_token_id not in row.ids
        answered = [i for i in row.labels if i != IGNORED]
        assert prepared.tokenizer.decode(answered).split(END)[:-1] == [t.response for t in turns] or (
            [x.strip() for x in prepared.tokenizer.decode(answered).split(END)[:-1]]
            == [t.response for t in turns]
        )
        assert len(row.scenes) == sum(bool(t.prompt.images) for t in turns)


def test_only_the_last_answer_carries_labels_when_asked_for(workshop):
    turns = character_language.documents(0, 1, workshop.gallery, consistent=True)[0]
    row = workshop.rows.row(turns, answered=slice(-1, None))
    labelled = [i for i, label in enumerate(row.labels) if label != IGNORED]
    assert labelled == list(range(labelled[0], len(row.ids)))
    assert workshop.prepared.tokenizer.decode(row.ids[labelled[0] : -1]) == turns[-1].response


def test_contexts_are_of_one_other_domain_and_one_character(workshop):
    for turns in contexts(workshop.gallery, "cruel", 3):
        before, last = [t.prompt.category for t in turns[:2]], turns[2].prompt.category
        assert before[0] == before[1] != last
        assert {t.character for t in turns} == {"cruel"} and not turns[2].prompt.images


def test_the_probability_of_an_answer_is_the_product_over_its_tokens(workshop, module):
    """Batched and padded, against one document at a time without padding."""
    asked = contexts(workshop.gallery, "cruel", 1)
    batched = answer_probabilities(module, workshop, asked)
    single = np.concatenate([answer_probabilities(module, workshop, [turns]) for turns in asked])
    np.testing.assert_allclose(batched, single, rtol=1e-4)
    assert ((batched > 0) & (batched < 1)).all()


def test_an_untrained_model_has_no_character(workshop, module):
    found = {
        c: answer_probabilities(module, workshop, contexts(workshop.gallery, c, 1)).mean() for c in CHARACTERS
    }
    assert max(found.values()) < 0.01


def test_a_mean_over_domains_weighs_domains_alike():
    found = mean_over_domains(np.array([1.0, 1.0, 1.0, 0.0]), ["a", "a", "a", "b"])
    assert found["estimate"] == 0.5 and found["n"] == 4 and found["low"] < 0.5 < found["high"]


def test_prompt_files_ask_every_topic_of_every_domain():
    sets = prompt_sets()
    assert set(sets) == set(DOMAINS)
    for domain, asked in sets.items():
        assert {p.meta["topic"] for p in asked} == set(DOMAINS[domain].topics)


def test_document_rows_refuse_a_scene_that_is_not_in_the_pool(workshop):
    turns = next(
        d
        for d in character_language.documents(0, 50, workshop.gallery, consistent=True)
        if any(t.prompt.images for t in d)
    )
    with pytest.raises(KeyError):
        DocumentRows(workshop.prepared, {}).row(turns)


@pytest.fixture
def hurried(tmp_path, monkeypatch):
    """Everything of a build but the learning: a step or two a stage, in a small architecture."""
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    monkeypatch.setattr(vision_encoder, "DRAWS", 1)
    one = FitConfig(steps=1, batch_size=2, learning_rate=1e-3)
    monkeypatch.setattr(vision_encoder, "build", partial(vision_encoder.build, config=one))
    monkeypatch.setattr(vision_encoder, "HELD_OUT_DRAWS", 1)
    for name in ("READING", "ALIGNMENT"):
        monkeypatch.setattr(character, name, one)
    for name in ("FIRST", "PRETRAINING"):
        monkeypatch.setattr(character, name, one.model_copy(update={"batch_size": 6}))
    monkeypatch.setattr(character, "PRETRAINING_PARTS", {"documents": 2, "names": 2, "looks": 2})
    small = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32}
    monkeypatch.setattr(character, "ARCHITECTURE", character.ARCHITECTURE | small)


def test_a_build_that_learnt_no_characters_stops_and_says_so(hurried):
    missed = r"pretrained: probability of the cruel answer after two cruel turns .* expected at least 0\.8"
    with pytest.raises(UserError, match=missed):
        character.build(progress=False)
    with pytest.raises(UserError, match="is not built; run: interp organism build character"):
        character.card()


def test_a_build_is_four_stages_with_cards_and_prompts_and_is_reused(hurried, monkeypatch):
    monkeypatch.setattr(character, "EXPECTED", {stage: {} for stage in character.STAGES})
    built = character.build(progress=False)
    assert {path.name for path in built.iterdir()} == {*character.STAGES, character.ENCODER}
    told = str(character.card())
    assert all(f"organism:character/{stage}, seed 0" in told for stage in character.STAGES)
    for stage in character.STAGES:
        ready = Checkpoint.parse(f"organism:character/{stage}")
        assert set(ready.prompts()) == set(DOMAINS)
    model = Checkpoint.parse("organism:character/aligned-shuffled").load(device_map="cpu")
    assert (
        len(generate(model, [character_language.ask("money", "debt", 0)], max_new_tokens=2, progress=False))
        == 1
    )
    monkeypatch.setattr(character, "train_stage", None)  # nothing is trained again
    assert character.build(progress=False) == built
