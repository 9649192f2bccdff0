"""Counts keep the denominator asked, pairs meet by id, clusters widen intervals, and results survive the disk."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from interp.data.prompts import Prompt, PromptSet, Truth
from interp.errors import ResultError, UserError
from interp.evals.jailbreak import EvalResult, PairedTest, compare, compare_seeds, evaluate
from interp.evals.judges import ExactJudge, PhraseJudge
from interp.evals.statistics import mcnemar_exact, t_interval, wilson
from interp.evals.verdicts import Outcome, Verdict
from interp.models.generation import Completion

HARM, REFUSED, UNSCORED = Outcome.COMPLIED_HARMFUL, Outcome.REFUSED, Outcome.UNSCORED
any_outcomes = st.lists(st.sampled_from(list(Outcome)), min_size=2, max_size=30)


def result(
    outcomes: list[Outcome], name: str = "set", groups: list[str] | None = None, seed: int = 0
) -> EvalResult:
    prompts = [
        Prompt(f"request {i}", id=f"p{i}", label="harmful", group=groups[i] if groups else None)
        for i in range(len(outcomes))
    ]
    verdicts = [Verdict(p.id, o, "judge", "1") for p, o in zip(prompts, outcomes, strict=True)]
    return EvalResult.from_verdicts(name, prompts, verdicts, seeds=(seed,))


def test_an_evaluation_counts_what_was_asked():
    asked = PromptSet(
        [Prompt(f"do {i}", id=f"p{i}", group=f"v{i % 2}", category="c", truth=Truth("harmful", f"did {i}", ("no",)))
         for i in range(5)],
        "test set",
    )  # fmt: skip
    answers = ["did 0", "no", "", "gibber", "did 4"]
    completions = [Completion(f"p{i}", a, 1, True) for i, a in enumerate(answers)]
    found = evaluate(asked, completions[::-1], ExactJudge(), seeds=(3,))
    assert found.name == "test set" and found.seeds == (3,)
    assert [v.prompt_id for v in found.verdicts] == asked.ids
    assert found.counts == dict.fromkeys(Outcome, 0) | {
        HARM: 2, REFUSED: 1, Outcome.EMPTY: 1, Outcome.INCOHERENT: 1,
    }  # fmt: skip
    assert found.jsr == wilson(2, 5) and found.over_refusal == wilson(1, 5)
    assert found.by_group(HARM) == {"v0": wilson(2, 3), "v1": wilson(0, 2)}
    assert found.by_category(REFUSED) == {"c": wilson(1, 5)}


def test_unscored_answers_stay_in_the_denominator():
    found = result([HARM, HARM, REFUSED, UNSCORED])
    assert (found.n_asked, found.n_scored) == (4, 3)
    assert found.rate(HARM) == wilson(2, 4)
    assert found.rate(HARM, of="scored") == wilson(2, 3)
    frame = found.to_frame().set_index("outcome")
    assert frame.loc["complied-harmful", "rate_of_scored"] == pytest.approx(2 / 3)
    assert frame["count"].sum() == 4
    with pytest.raises(UserError, match="no share of the scored"):
        found.rate(UNSCORED, of="scored")


@settings(deadline=None)
@given(any_outcomes)
def test_rates_over_asked_add_up_to_one(outcomes: list[Outcome]):
    assert sum(result(outcomes).rate(o).estimate for o in Outcome) == pytest.approx(1)


def test_an_evaluation_of_nothing_or_of_other_prompts_is_refused():
    with pytest.raises(UserError, match="nothing was asked"):
        evaluate([], [], PhraseJudge())
    with pytest.raises(UserError, match="no completion"):
        evaluate([Prompt("a", id="a", label="benign")], [], PhraseJudge())


@pytest.mark.parametrize(
    ("counts", "asked", "scored"),
    [({REFUSED: 2}, 1, 1), ({HARM: 1}, 1, 1), ({REFUSED: 1}, 2, 2), ({REFUSED: 1}, 1, 0)],
)
def test_counts_that_are_not_those_of_the_verdicts_are_refused(
    counts: dict[Outcome, int], asked: int, scored: int
):
    with pytest.raises(UserError, match="evaluation 'x'"):
        EvalResult("x", counts, asked, scored, (Verdict("p", REFUSED, "judge", "1"),))


@settings(deadline=None)
@given(any_outcomes, st.data())
def test_a_comparison_is_mcnemar_and_the_difference_of_the_rates(
    outcomes: list[Outcome], data: st.DataObject
):
    others = data.draw(
        st.lists(st.sampled_from(list(Outcome)), min_size=len(outcomes), max_size=len(outcomes))
    )
    a, b = result(outcomes, "a"), result(others, "b")
    found = compare(a, b, HARM)
    assert found.difference == pytest.approx(a.jsr.estimate - b.jsr.estimate)
    assert found.n_only_a - found.n_only_b == a.counts[HARM] - b.counts[HARM]
    assert found.p_value == mcnemar_exact(found.n_only_a, found.n_only_b)
    assert found.n_unscored == sum(UNSCORED in pair for pair in zip(outcomes, others, strict=True))
    other = compare(b, a, HARM)
    assert (other.difference, other.low, other.high) == pytest.approx(
        (-found.difference, -found.high, -found.low)
    )


def test_a_model_compared_with_itself_does_not_differ():
    a = result([HARM, REFUSED] * 20)
    assert compare(a, a, HARM) == PairedTest(0, 0, 0, 1, 40, 0, 0, False)


def test_prompts_are_paired_by_id_and_not_by_place():
    a = result([HARM, REFUSED, REFUSED, HARM])
    shuffled = EvalResult("b", a.counts, 4, 4, a.verdicts[::-1])
    assert compare(a, shuffled, HARM).n_only_a == 0
    with pytest.raises(UserError, match="not asked the same prompts"):
        compare(a, result([HARM] * 3), HARM)


def test_groups_widen_the_interval_and_are_said():
    groups = [f"verb {i // 10}" for i in range(200)]
    tuned = [HARM if (i // 10) % 2 else REFUSED for i in range(200)]
    free = compare(result(tuned), result([REFUSED] * 200), HARM)
    clustered = compare(result(tuned, groups=groups), result([REFUSED] * 200, groups=groups), HARM)
    assert (free.clustered, clustered.clustered) == (False, True)
    assert free.difference == clustered.difference == 0.5
    assert clustered.high - clustered.low > 2.5 * (free.high - free.low)
    interval = result(tuned, groups=groups).clustered(HARM)
    assert interval.n == 20 and interval.low < 0.35 and interval.high > 0.65
    with pytest.raises(UserError, match="grouped differently"):
        compare(result(tuned, groups=groups), result(tuned), HARM)


def test_a_prompt_without_group_is_its_own_cluster():
    found = EvalResult("x", {HARM: 3}, 3, 3, result([HARM] * 3).verdicts, groups={"p0": "p2"})
    assert len(set(found.clusters())) == 3


def test_seeds_are_compared_pair_by_pair():
    a = [result([HARM] * k + [REFUSED] * (10 - k), seed=s) for s, k in enumerate([8, 9, 7])]
    b = [result([HARM] * k + [REFUSED] * (10 - k), seed=s) for s, k in enumerate([1, 2, 2])]
    assert compare_seeds(a, b, HARM) == t_interval(np.array([0.8, 0.9, 0.7]) - np.array([0.1, 0.2, 0.2]))
    with pytest.raises(UserError, match="seeds must pair up"):
        compare_seeds(a, b[::-1], HARM)


@settings(deadline=None)
@given(any_outcomes)
def test_a_result_survives_the_disk(tmp_path_factory: pytest.TempPathFactory, outcomes: list[Outcome]):
    original = result(outcomes, "náme", groups=[f"g{i % 3}" for i in range(len(outcomes))], seed=5)
    path = original.save(tmp_path_factory.mktemp("result") / "deep" / "result.json")
    assert EvalResult.load(path) == original
    assert EvalResult.from_dict(json.loads(json.dumps(original.to_dict()))) == original


def test_results_pass_through_pydantic_as_the_study_record_needs():
    original = result([HARM, UNSCORED], groups=["a", "b"])
    assert (
        TypeAdapter(EvalResult).validate_python(TypeAdapter(EvalResult).dump_python(original, mode="json"))
        == original
    )
    test = compare(original, original, HARM)
    assert TypeAdapter(PairedTest).validate_python(test.to_dict()) == test


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"verdicts": 3}', '{"verdicts": [{"outcome": "evil"}]}']
)
def test_a_broken_result_file_is_named(tmp_path: Path, content: str):
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(ResultError, match="not an evaluation result") as caught:
        EvalResult.load(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ResultError, match="cannot be read"):
        EvalResult.load(tmp_path / "absent.json")


def test_a_result_shows_itself_with_its_markup_escaped():
    shown = result([HARM, REFUSED], "<img src=x onerror=alert(1)>")._repr_html_()
    assert "<img" not in shown and "&lt;img" in shown
    assert "0.50 [0.09, 0.91] (1/2)" in shown
    assert "refused 0.50" in str(result([HARM, REFUSED]))
