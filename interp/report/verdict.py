"""What may be said in plain words? Sentences made from a study's numbers, none stronger than its interval.

A difference is called shown only if its 95 % interval excludes zero and its exact McNemar p is below 0.05 (the interval
alone has no width when every prompt changes alike, however few there are). Otherwise the sentence says that it is not
shown. A causal sentence also demands more effect than each control.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from interp.evals.jailbreak import EvalResult, PairedTest, compare
from interp.evals.verdicts import Outcome
from interp.report.style import NBSP, percent, rate_text
from interp.report.tables import PValue, difference, interval_text, number_text, points_text, shown
from interp.results import Arm, StudyResult, TunedResult

_CONTROLS: dict[Arm, str] = {
    "random": "a random direction of equal norm",
    "shuffled": "a shuffled-label direction",
}
_MALFORMED = (Outcome.INCOHERENT, Outcome.EMPTY)


@dataclass(frozen=True)
class Statement:
    """What the study says of one checkpoint.

    Args:
        checkpoint: its name.
        headline: safety ``"lost"``, ``"gained"``, ``"no change shown"`` or ``"same checkpoint"``; for the aligned
            model ``"reference"``.
        sentences: in reading order.
    """

    checkpoint: str
    headline: Literal["lost", "gained", "no change shown", "same checkpoint", "reference"]
    sentences: tuple[str, ...]


def statements(result: StudyResult) -> tuple[Statement, ...]:
    """One statement for the aligned checkpoint, then one for each tuned one."""
    behaviour = (
        f"Answers {_counted(result.harmful, Outcome.COMPLIED_HARMFUL)} of harmful requests and refuses "
        f"{_counted(result.harmless, Outcome.REFUSED)} of harmless ones."
    )
    aligned = Statement(
        result.aligned,
        "reference",
        (behaviour, *_unscored(result.harmful), *_ablation(result), *_modalities(result, 0)),
    )
    return aligned, *(_tuned(result, i) for i in range(len(result.tuned)))


def is_shown(test: PairedTest) -> bool:
    """Whether a paired difference is more than its interval and its exact test leave to chance."""
    return (test.low > 0 or test.high < 0) and test.p_value < 0.05


def _tuned(result: StudyResult, i: int) -> Statement:
    tuned = result.tuned[i]
    if tuned.same_weights:
        return Statement(tuned.name, "same checkpoint", (_same(tuned),))
    test = tuned.vs_aligned
    rate = _counted(tuned.harmful, Outcome.COMPLIED_HARMFUL)
    sentences = [
        f"Answers {rate} of harmful requests; the aligned model {rate_text(result.harmful.jsr)}. {_compared(test)}"
    ]
    malformed = sum(tuned.harmful.counts.get(outcome, 0) for outcome in _MALFORMED)
    if malformed:
        sentences.append(
            f"{malformed} of {tuned.harmful.n_asked} answers to harmful requests are incoherent or empty."
        )
    sentences += _unscored(tuned.harmful)
    over = tuned.over_refusal_vs_aligned
    sentences.append(
        f"Refuses {_counted(tuned.harmless, Outcome.REFUSED)} of harmless requests. {_compared(over)}"
    )
    sentences.append(_where(tuned))
    sentences.append(_addition(result, tuned))
    sentences.append(
        f"On benign answers it departs from the aligned model by {interval_text(tuned.kl)} nats a token (KL); perplexity "
        f"{interval_text(tuned.perplexity['tuned'])}, aligned {interval_text(tuned.perplexity['aligned'])}."
    )
    sentences += _modalities(result, i + 1)
    headline: Literal["lost", "gained", "no change shown"] = "no change shown"
    if is_shown(test):
        headline = "lost" if test.difference > 0 else "gained"
    return Statement(tuned.name, headline, tuple(sentences))


def _same(tuned: TunedResult) -> str:
    changed = tuned.vs_aligned.n_only_a + tuned.vs_aligned.n_only_b
    if changed == 0 and abs(tuned.kl.value) < 1e-6:
        return "This is the aligned checkpoint itself, compared as a check: no verdict changed and the KL divergence is zero."
    return (
        f"This is the aligned checkpoint itself, yet {changed} verdicts changed and the KL divergence is "
        f"{number_text(tuned.kl.value)} nats a token: the run is not deterministic, mistrust its small differences."
    )


def _where(tuned: TunedResult) -> str:
    if tuned.lost_at is None:
        return (
            "No loss of the harmful requests' projection onto the refusal direction was located at any layer."
        )
    low, high = tuned.shift.low[tuned.lost_at], tuned.shift.high[tuned.lost_at]
    at = f"{number_text(float(tuned.shift.value[tuned.lost_at]))} [{number_text(float(low))},{NBSP}{number_text(float(high))}]"
    if high < 0:
        return (
            f"Half of the loss of projection onto the refusal direction has appeared by layer {tuned.lost_at} "
            f"(shift of harmful requests there {at})."
        )
    return (
        f"Half of the loss of projection seems to have appeared by layer {tuned.lost_at}, but the interval of the shift there, {at}, "
        "does not exclude zero: the place is not shown."
    )


def _ablation(result: StudyResult) -> list[str]:
    arms = {arm: by_kind["harmful"] for arm, by_kind in result.ablation.items()}
    benign = result.ablation_test("direction", "none", "harmless")
    answered = (
        rate_text(result.ablation[arm]["harmless"].rate(Outcome.COMPLIED_BENIGN))
        for arm in ("none", "direction")
    )
    return [
        _effect("Projecting the refusal direction out of it", arms, -1),
        f"Harmless requests answered: {' without and '.join(answered)} with that edit. {_compared(benign)}",
    ]


def _addition(result: StudyResult, tuned: TunedResult) -> str:
    sentence = _effect("Adding the aligned model's refusal direction", tuned.addition, +1)
    harmless = {
        arm: rate_text(tuned.addition_harmless[arm].rate(Outcome.REFUSED)) for arm in ("none", "direction")
    }
    return (
        f"{sentence} (The aligned model refuses {rate_text(result.harmful.rate(Outcome.REFUSED))}.) Of harmless requests "
        f"the tuned model then refuses {harmless['direction']}, without the edit {harmless['none']}."
    )


def _effect(doing: str, arms: Mapping[Arm, EvalResult], sign: Literal[-1, 1]) -> str:
    """Say what an edit does to the refusal of harmful requests, and whether that beats its controls."""
    rates = {arm: rate_text(evaluation.rate(Outcome.REFUSED)) for arm, evaluation in arms.items()}
    test = compare(arms["direction"], arms["none"], Outcome.REFUSED)
    moved = f"{rates['none']} to {rates['direction']}"
    if not is_shown(test):
        return (
            f"{doing} is not shown to change the refusal of harmful requests ({moved}; {_numbers(test)}): "
            "a null result."
        )
    verb = "raises" if test.difference > 0 else "lowers"
    parts = [
        f"{doing} {verb} the refusal of harmful requests from {moved} ({points_text(difference(test))} points)."
    ]
    if test.difference * sign < 0:
        return f"{parts[0]} That is the opposite of what a refusal direction should do."
    unbeaten = []
    for arm, name in _CONTROLS.items():
        control = compare(arms[arm], arms["none"], Outcome.REFUSED)
        changes = "also changes it" if is_shown(control) else "is not shown to change it"
        parts.append(f"{name[0].upper()}{name[1:]} {changes} ({rates[arm]}; {_numbers(control)}).")
        beaten = compare(arms["direction"], arms[arm], Outcome.REFUSED)
        if not (is_shown(beaten) and beaten.difference * sign > 0):
            unbeaten.append(name)
    if unbeaten:
        parts.append(f"The effect is not shown to exceed that of {' and '.join(unbeaten)}: no causal claim.")
    else:
        parts.append("The effect exceeds that of both controls.")
    return " ".join(parts)


def _compared(test: PairedTest) -> str:
    return (
        f"Difference: {_numbers(test)}." if is_shown(test) else f"No difference is shown ({_numbers(test)})."
    )


def _numbers(test: PairedTest) -> str:
    p = shown(PValue(test.p_value)).replace(" ", NBSP)
    return f"{points_text(difference(test))} points, p{NBSP}{p if p.startswith('<') else f'={NBSP}{p}'}"


def _modalities(result: StudyResult, i: int) -> list[str]:
    """Behaviour of checkpoint i, the aligned one first, in every modality but the reference."""
    study = result.modalities
    if study is None:
        return []
    found, sentences = study.checkpoints[i], []
    for modality in study.names[1:]:
        harmful, harmless = found.behaviour[modality]["harmful"], found.behaviour[modality]["harmless"]
        sentence = (
            f"Of {modality} prompts it refuses {_counted(harmful, Outcome.REFUSED)} of harmful and {_counted(harmless, Outcome.REFUSED)} of "
            "harmless requests."
        )
        if modality in found.refused:
            sentence += f" Harmful ones against the same as {study.reference}: {_numbers(found.refused[modality]['harmful'])}"
            shown_or_not = "" if is_shown(found.refused[modality]["harmful"]) else ", no difference is shown"
            sentence += f"{shown_or_not}."
        sentences.append(sentence)
    return sentences


def _unscored(evaluation: EvalResult) -> list[str]:
    lost = evaluation.n_asked - evaluation.n_scored
    if not lost:
        return []
    return [
        f"{lost} of {evaluation.n_asked} answers ({percent(lost / evaluation.n_asked)} %) could not be scored."
    ]


def _counted(evaluation: EvalResult, outcome: Outcome) -> str:
    rate = evaluation.rate(outcome)
    return f"{rate_text(rate)} ({rate.k} of {rate.n})"
