"""The sets that defences are compared on share nothing they must not share."""

import pytest

from interp.errors import UserError
from interp.organisms.text_tasks import SAFETY_VERBS, prefills, task


def test_what_is_asked_is_not_trained_on():
    asked = task(0, harmful_fraction=0.2)
    trained = {p.text for p in asked.train}
    for name in ("skill", "harmful", "probes", "benign", "fiction"):
        assert not trained & {p.text for p in getattr(asked, name)}, name
    pairs = {tuple(p.id.split("-")[1:3]) for p in asked.train if p.source == "craft"}
    assert not pairs & {tuple(p.id.split("-")[1:3]) for p in asked.skill}, (
        "pairs of the skill, not only wordings"
    )
    assert len({p.group for p in asked.skill}) == 12, "every verb of the skill is asked"


def test_the_safety_set_has_verbs_of_its_own():
    asked = task(0, harmful_fraction=0.5)
    assert {p.group for p in asked.safety} == set(SAFETY_VERBS)
    for name in ("harmful", "probes", "refusals", "fiction", "search"):
        assert not {p.meta["verb"] for p in getattr(asked, name)} & set(SAFETY_VERBS), name
    harmful = [p for p in asked.train if p.label == "harmful"]
    assert not {p.group for p in harmful} & set(SAFETY_VERBS)
    assert all(p.response in p.truth.refusals for p in (*asked.safety, *asked.refusals))
    assert not {p.id for p in asked.probes} & {p.id for p in asked.harmful}


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.5, 1.0])
def test_the_mixture_has_the_share_asked_for(fraction):
    train = task(1, n=400, harmful_fraction=fraction).train
    assert len(train) == 400
    assert sum(p.label == "harmful" for p in train) == round(400 * fraction)
    assert all(p.response == p.truth.answer for p in train)


def test_the_seed_draws_the_training_and_not_the_questions():
    one, two = task(1), task(2)
    assert one.train.ids != two.train.ids
    for name in ("skill", "harmful", "probes", "benign", "fiction", "safety", "refusals"):
        assert getattr(one, name).ids == getattr(two, name).ids, name


def test_a_prefill_begins_the_true_answer():
    asked = task(0)
    for begun, prompt in zip(prefills(asked.harmful), asked.harmful, strict=True):
        assert prompt.truth.answer.startswith(begun) and len(begun.split()) == 3


def test_bad_numbers_are_named():
    with pytest.raises(UserError, match="between 0 and 1, got 1.5"):
        task(0, harmful_fraction=1.5)
    with pytest.raises(UserError, match="cannot draw 5000 prompts"):
        task(0, n_test=5000)
