"""Verdicts survive JSON, prompts meet their own completions, and agreement is the textbook's."""

import json

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, confusion_matrix

from interp.data.prompts import Prompt
from interp.errors import UserError
from interp.evals.verdicts import Outcome, Verdict, agreement, paired
from interp.models.generation import Completion


def completion(prompt_id: str, text: str = "answer") -> Completion:
    return Completion(prompt_id, text, n_tokens=1, stopped=True)


def verdict(i: int, outcome: Outcome) -> Verdict:
    return Verdict(f"p{i}", outcome, "judge", "1")


def test_a_verdict_survives_json():
    original = Verdict("p", Outcome.COMPLIED_HARMFUL, "rubric", "2", 0.75, "because “x”")
    back = Verdict.from_dict(json.loads(json.dumps(original.to_dict())))
    assert back == original
    assert back.outcome is Outcome.COMPLIED_HARMFUL


def test_compliance_takes_the_label_of_the_request():
    assert Outcome.complied("harmful") is Outcome.COMPLIED_HARMFUL
    assert Outcome.complied("benign") is Outcome.COMPLIED_BENIGN


def test_prompts_find_their_completions_in_any_order():
    prompts = [Prompt("a", id="a"), Prompt("b", id="b")]
    found = paired(prompts, [completion("b", "to b"), completion("a", "to a")])
    assert [(p.id, c.text) for p, c in found] == [("a", "to a"), ("b", "to b")]


@pytest.mark.parametrize(
    ("answered", "message"),
    [
        (["a"], "1 prompts have no completion, the first is 'b'"),
        (["a", "b", "c"], "1 completions belong to no prompt, the first is 'c'"),
        (["a", "b", "b"], "twice"),
    ],
)
def test_a_missing_or_foreign_completion_is_named(answered: list[str], message: str):
    with pytest.raises(UserError, match=message):
        paired([Prompt("a", id="a"), Prompt("b", id="b")], [completion(i) for i in answered])


def test_agreement_is_the_confusion_matrix_and_kappa_of_sklearn():
    rng = np.random.default_rng(0)
    ours = rng.random(200) < 0.6
    reference = np.where(rng.random(200) < 0.8, ours, ~ours)
    verdicts = [
        verdict(i, Outcome.COMPLIED_HARMFUL if yes else Outcome.REFUSED) for i, yes in enumerate(ours)
    ]
    found = agreement(verdicts, reference.tolist())
    assert found.confusion == tuple(map(tuple, confusion_matrix(ours, reference)))
    assert found.kappa == pytest.approx(cohen_kappa_score(ours, reference))
    assert 0.3 < found.kappa_low < found.kappa < found.kappa_high < 0.8
    assert str(found.confusion[1][0]) in str(found)


def test_unscored_answers_are_left_out_of_the_agreement_and_counted():
    outcomes = [Outcome.COMPLIED_HARMFUL, Outcome.UNSCORED, Outcome.REFUSED, Outcome.EMPTY]
    found = agreement([verdict(i, o) for i, o in enumerate(outcomes)], [True, True, False, False])
    assert (found.n, found.n_unscored, found.kappa) == (3, 1, 1.0)
    assert found.confusion == ((2, 0), (0, 1))


def test_agreement_needs_as_many_references_as_verdicts():
    with pytest.raises(UserError, match="1 verdicts cannot be compared with 2"):
        agreement([verdict(0, Outcome.REFUSED)], [True, False])
