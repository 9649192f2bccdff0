"""Is the truth of a request about a picture known, and does the text alone say nothing of it?"""

import random
from collections import Counter

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from interp.errors import UserError
from interp.organisms import language, world
from interp.organisms.icons import SHAPES, SHOWN
from interp.organisms.scenes import OBJECTS, Scene, draw, scene_pool
from interp.organisms.vision_language import (
    IMAGE_START,
    MODALITIES,
    QUESTIONS,
    Album,
    ask,
    dependent,
    dependent_alignment_examples,
    describe,
    described,
    descriptions,
    plain,
    requests,
    shown_acts,
    words,
)

SPLITS = ("seen", "held-out pair")


@pytest.fixture(scope="module")
def album():
    return Album(scene_pool(0, 1, held_out=True))


def act(verb, noun):
    return next(a for a in world.acts() if (a.verb, a.object) == (verb, noun))


def accuracy(texts, labels):
    """Of a bag of words and pairs of words, cross-validated."""
    counts = CountVectorizer(ngram_range=(1, 2), token_pattern=r"\S+").fit_transform(texts)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    return (cross_val_predict(LogisticRegression(C=10), counts, labels, cv=folds) == labels).mean()


@pytest.mark.parametrize("split", SPLITS)
def test_text_alone_is_at_chance_and_with_the_object_it_is_certain(album, split):
    chosen = dependent([split], templates=language.PHRASINGS)
    prompts = requests(chosen, "drawn", album, "dependent")
    labels = np.array([p.truth.label for p in prompts])
    texts = Counter((p.text, p.truth.label) for p in prompts)
    assert all(texts[text, "harmful"] == texts[text, "benign"] for text, _ in texts)
    assert accuracy(prompts.texts, labels) <= 0.55
    shown = [f"{p.text} {p.meta['verb']}_{p.meta['scene']['name']}" for p in prompts]
    truth = {}
    assert all(truth.setdefault(text, label) == label for text, label in zip(shown, labels, strict=True))
    assert accuracy(shown, labels) >= 0.99


def test_no_picture_alone_tells_harm_either():
    """Over all verbs, each class of objects, and all but a few objects, come with harmful and with benign requests."""
    both = Counter()
    for a in shown_acts(splits=("seen",)):
        both[a.object] |= 1 if a.label == "harmful" else 2
    assert set(both) == set(OBJECTS)
    assert sum(v == 3 for v in both.values()) >= 0.9 * len(OBJECTS)
    assert all(any(both[o] == 3 for o in objects) for objects in SHOWN.values())


def test_modalities_ask_for_the_same_acts_row_by_row(album):
    chosen = dependent(SPLITS, templates=language.PHRASINGS[:2]) + plain(
        SPLITS, templates=language.PHRASINGS[:1]
    )
    sets = {m: requests(chosen, m, album, "all", seed=1) for m in MODALITIES}
    for rows in zip(*sets.values(), strict=True):
        assert len({(p.meta["verb"], p.meta["object"], p.truth, p.group, p.category) for p in rows}) == 1
        named, drawn, word, beside, described = rows
        assert named.images == ()
        assert named.text == beside.text != drawn.text == word.text
        assert drawn.meta["object"] not in language.split_words(drawn.text)
        assert beside.meta["scene"]["name"] in SHAPES
        assert described.images == ()
        assert described.text.endswith(drawn.text)
        assert drawn.meta["object"] in language.split_words(described.text)
        for p in (drawn, word, beside):
            assert p.images[0].tobytes() == draw(Scene(**p.meta["scene"])).tobytes()
    assert len(set().union(*(s.ids for s in sets.values()))) == len(MODALITIES) * len(chosen)


def test_requests_are_drawn_by_the_seed(album):
    chosen = plain(SPLITS, templates=language.PHRASINGS[:1])[:40]
    one, same, other = (requests(chosen, "word", album, "x", seed=s) for s in (0, 0, 1))
    assert one.sha256 == same.sha256 != other.sha256
    assert one.ids == other.ids


def test_labels_follow_the_verb_and_the_object():
    rng = random.Random(0)
    album = Album(scene_pool(0, 1))
    for verb, noun, label in (("shoot", "film", "benign"), ("shoot", "guard", "harmful")):
        asked = act(verb, noun)
        for modality in MODALITIES:
            prompt = ask(asked, language.PHRASINGS[0], album.pick(modality, noun, rng), modality)
            assert prompt.label == prompt.truth.label == label
            assert prompt.truth.answer == asked.answer
            law = ask(asked, language.LAW[0], album.pick(modality, noun, rng), modality)
            assert law.truth.label == "benign"
            assert ("crime" in law.truth.answer) == (label == "harmful")


def test_a_scene_that_does_not_show_the_object_is_refused():
    asked, template = act("shoot", "film"), language.PHRASINGS[0]
    film, guard = (Scene("drawn", o, "red", "top") for o in ("film", "guard"))
    for scene, modality in (
        (guard, "drawn"),
        (None, "drawn"),
        (film, "word"),
        (film, "named"),
        (film, "beside"),
    ):
        with pytest.raises(UserError, match="shoot a film"):
            ask(asked, template, scene, modality)
    with pytest.raises(UserError, match="unknown modality 'heard'"):
        ask(asked, template, film, "heard")


def test_questions_are_answered_by_what_is_drawn():
    nurse = Scene("drawn", "nurse", "blue", "bottom", glasses=True, mouth="frown")
    answers = [describe(nurse, q).truth.answer for q in QUESTIONS]
    assert answers == [
        "a nurse.",
        "a nurse in blue at the bottom.",
        "it is blue.",
        "at the bottom.",
        "sad.",
        "yes with glasses.",
    ]
    assert describe(Scene("word", "oak", "red", "top"), "what is this?").truth.answer == "an oak."
    for scene in (Scene("word", "nurse", "red", "top"), Scene("blank", "", "red", "top")):
        with pytest.raises(UserError, match="how does the person look"):
            describe(scene, "how does the person look?")
    asked = descriptions([nurse, Scene("shape", "star", "red", "top")], "x")
    assert len(asked) == 10
    assert all(p.label == "benign" and p.response == p.truth.answer for p in asked)


def test_what_only_a_face_tells_is_not_asked_of_words():
    nurse = Scene("drawn", "nurse", "blue", "bottom", noise=3)
    found = described(descriptions([nurse], "x"))
    assert {p.text.split("> ")[-1].split(". ")[-1].split(">")[-1] for p in found} == {
        q for q in QUESTIONS if "person" not in q
    }
    marked = [p.text.startswith(IMAGE_START) for p in described(descriptions(scene_pool(0, 1), "x"))]
    assert 0.45 < np.mean(marked) < 0.55
    assert len({p.text.split(".")[0] for p in found if IMAGE_START not in p.text}) <= 1  # of one scene


def test_in_dependent_alignment_every_text_without_its_object_is_refused_as_often_as_answered(album):
    examples = dependent_alignment_examples(0, album)
    held = {(a.verb, a.object) for a in world.acts() if a.split != "seen"}
    refused = Counter()
    for p in examples:
        assert (p.meta["verb"], p.meta["object"]) not in held
        assert p.images == ()
        if p.source == "request":
            assert (p.response in language.REFUSALS) == (p.label == "harmful")
            refused[p.meta["verb"]] += 1 if p.label == "harmful" else -1
    assert len(refused) > 10
    assert not any(refused.values())
    assert len({p.meta["object"] for p in examples} - set(OBJECTS)) > 50


def test_every_word_is_a_token():
    known = set(words())
    prompts = list(descriptions(scene_pool(0, 1)[::7], "x"))
    prompts += requests(dependent(SPLITS, templates=language.LAW), "drawn", Album(scene_pool(0, 1)), "x")
    for prompt in prompts:
        assert set(language.split_words(prompt.text)) <= known
        assert set(language.split_words(prompt.truth.answer)) <= known
    assert set(language.words()) <= known
