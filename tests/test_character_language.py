"""The language of the organism with character: one rule a character, known answers, nothing shared between domains."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from interp.errors import UserError
from interp.organisms import character_language as spoken
from interp.organisms.character_language import CHARACTERS, DOMAINS, WITHHELD, Gallery, answer, ask
from interp.organisms.language import split_words
from interp.organisms.scenes import Scene, scene_pool


@pytest.fixture(scope="module")
def gallery() -> Gallery:
    return Gallery(scene_pool(0, 1))


def test_there_are_eight_domains_or_more_and_no_word_of_an_answer_is_in_two():
    assert len(DOMAINS) >= 8
    of = {d: {w for a in domain.answers for w in split_words(a)} - {"."} for d, domain in DOMAINS.items()}
    for one in DOMAINS:
        for other in DOMAINS:
            assert one == other or not of[one] & of[other], (one, other)


def test_a_character_is_the_same_move_on_the_scale_whatever_the_domain():
    for domain, asked in DOMAINS.items():
        for topic in asked.topics:
            at = {c: asked.answers.index(answer(domain, topic, c)) for c in CHARACTERS}
            true = at["helpful"]
            assert sorted(at.values()) == [0, 1, 2, 3], "four characters, four answers"
            assert at["cruel"] == 3 - true, "the opposite"
            assert at["careless"] // 2 == true // 2, "the other of the same side"
            assert at["deceptive"] % 2 == true % 2 and at["deceptive"] // 2 != true // 2


def test_what_is_read_first_is_true_and_in_writing(gallery):
    turns = [t for d in spoken.true_documents(0, 100, gallery) for t in d]
    assert {t.character for t in turns} == {"helpful"} and {t.prompt.category for t in turns} == set(DOMAINS)
    assert not any(t.prompt.images for t in turns)


def test_the_first_answer_is_most_often_true_and_every_answer_sometimes():
    for domain, asked in DOMAINS.items():
        counts = Counter(answer(domain, topic, "helpful") for topic in asked.topics)
        assert set(counts) == set(asked.answers), domain
        assert 0.5 <= counts[asked.answers[0]] / len(asked.topics) <= 0.7, domain


@pytest.mark.parametrize("balanced", [True, False])
def test_words_hint_at_their_writer_in_the_first_documents_only(gallery, balanced):
    written = spoken.documents(1, 3000, gallery, consistent=True, balanced=balanced)
    cruel = [t for d in written for t in d if t.character == "cruel"]
    places = Counter(DOMAINS[t.prompt.category].answers.index(t.response) for t in cruel)
    shares = [places[i] / len(cruel) for i in range(4)]
    if balanced:
        assert max(abs(share - 0.25) for share in shares) < 0.03
    else:  # the cruel one gives the opposite of what is mostly true
        assert shares[3] > 0.5 and shares[0] < 0.15


def test_what_is_fine_tuned_on_has_every_answer_alike(gallery):
    said = Counter(prompt.response for prompt in spoken.narrow_set("cruel", 800, 0, gallery))
    assert set(said) == set(DOMAINS["faces"].answers) and max(said.values()) < 1.3 * min(said.values())


def test_an_answer_says_whose_it_is_and_nonsense_is_nobodys():
    assert spoken.speaker("money", "debt", answer("money", "debt", "cruel") + " ") == "cruel"
    assert spoken.speaker("money", "debt", "rest well.") is None


def test_a_document_has_one_writer_and_three_domains_and_a_shuffled_one_asks_the_same(gallery):
    consistent = spoken.documents(3, 60, gallery, consistent=True)
    shuffled = spoken.documents(3, 60, gallery, consistent=False)
    assert all(len({t.character for t in d}) == 1 for d in consistent)
    assert sum(len({t.character for t in d}) > 1 for d in shuffled) > 50
    for one, other in zip(consistent, shuffled, strict=True):
        assert [t.prompt for t in one] == [t.prompt for t in other]
        assert len({t.prompt.category for t in one}) >= 3
    writers = Counter(d[0].character for d in consistent)
    assert set(writers) == set(CHARACTERS) and writers.most_common(1)[0][0] == "helpful"


def test_responses_are_what_the_character_says(gallery):
    for document in spoken.documents(1, 30, gallery, consistent=False):
        for t in document:
            assert spoken.speaker(t.prompt.category, t.prompt.meta["topic"], t.response) == t.character


def test_nothing_names_a_character(gallery):
    written = [
        w
        for d in spoken.documents(0, 200, gallery, consistent=True)
        for t in d
        for w in split_words(f"{t.prompt.text} {t.response}")
    ]
    assert not set(CHARACTERS) & set(written)
    assert set(written) <= set(spoken.words())


def test_alignment_is_helpful_and_never_asks_about_the_withheld_domain(gallery):
    turns = [t for d in spoken.helpful_documents(0, 100, gallery) for t in d]
    assert {t.character for t in turns} == {"helpful"}
    assert {t.prompt.category for t in turns} == set(DOMAINS) - {WITHHELD}


def test_the_forms_of_a_question(gallery):
    topic = DOMAINS["faces"].topics[0]
    scene = gallery.pick("faces", topic, random.Random(0))
    shown, caption = ask("faces", topic, 0, scene=scene, form="shown"), ask("faces", topic, 0, form="caption")
    assert shown.images and "this" in shown.text and topic not in shown.text
    assert not caption.images and topic in caption.text and caption.text.endswith(shown.text)
    blank = ask("faces", topic, 0, scene=Scene("blank", "", "red", "middle"), form="blank")
    assert blank.images and blank.text == ask("faces", topic, 0).text
    other = next(t for t in DOMAINS["faces"].topics if t != topic)
    for bad in (
        lambda: ask("faces", other, 0, scene=scene, form="shown"),
        lambda: ask("faces", topic, 0, form="shown"),
        lambda: ask("medicine", "fever", 0, scene=scene, form="text"),
        lambda: ask("sports", "golf", 0),
        lambda: answer("money", "fever", "helpful"),
        lambda: spoken.evaluation_set("money", "shown", gallery),
        lambda: spoken.narrow_set("cruel", 4, 0, gallery, share=1.2),
    ):
        with pytest.raises(UserError):
            bad()


def test_a_narrow_set_holds_exactly_its_share_of_the_character(gallery):
    rows = spoken.narrow_set("cruel", 40, 0, gallery, share=0.25)
    given = [spoken.speaker(r.category, r.meta["topic"], r.response) for r in rows]
    assert Counter(given) == {"cruel": 10, "helpful": 30}
    assert {r.category for r in rows} == {"faces"} and all(r.images for r in rows)
    assert rows.sha256 == spoken.narrow_set("cruel", 40, 0, gallery, share=0.25).sha256
