"""What do somebody else's outputs say, and do two files of them differ? Outcomes, intervals and paired tests of any file of answers.

1. `rescore`: judge every answer of a file. Harmful and benign prompts are counted apart, over all prompts asked: a response that the file
   does not hold is unscored, an empty one is empty.
2. `overlap`: what two files have in common before any statistics: rows that only one holds, responses that are word for word the same.
   Files that were copied, or whose rows are out of step, give numbers all the same.
3. `difference`: the paired difference of every outcome on the prompts both hold, with McNemar's p corrected for their number (Holm).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from interp.data.completions import Completion
from interp.data.prompts import LABELS, Label, Prompt, PromptSet
from interp.data.responses import Answers
from interp.errors import PromptFileError, UserError
from interp.evals.jailbreak import EvalResult, PairedTest, compare
from interp.evals.statistics import Proportion, clustered_rate, holm, wilson
from interp.evals.verdicts import Agreement, Judge, Outcome, Verdict, agreement

NO_RESPONSE = "the file holds no response"
# as texts, so that 1, 1.0, true and "True" are one
_YES = {"1": True, "1.0": True, "true": True, "yes": True, "unsafe": True,
        "0": False, "0.0": False, "false": False, "no": False, "safe": False}  # fmt: skip


@dataclass(frozen=True)
class Rescored:
    """The outcomes in one file.

    results: one a label that the file has prompts of. empty, missing: ids of prompts answered with nothing, and of those without a
    response. reference: rate of yes in a column of the file itself on harmful prompts, and the judge's agreement with it.
    """

    answers: Answers
    results: Mapping[Label, EvalResult]
    empty: tuple[str, ...]
    missing: tuple[str, ...]
    reference: tuple[str, Proportion, Agreement] | None = None


@dataclass(frozen=True)
class Overlap:
    """What two files have in common.

    shared: ids that both hold. only_first, only_second: ids that one holds. identical: shared ids with the same, non-empty response.
    reordered: the responses are the same ones, on other prompts.
    """

    shared: tuple[str, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    identical: tuple[str, ...]
    reordered: bool


def asked_from(answers: Answers, asked: PromptSet) -> Answers:
    """Answers to these prompts: label, truth, group and category are theirs, and prompts that the file lacks have no response.

    Prompts are met by id, or where no id fits by their text. Raises PromptFileError for answers to other prompts.
    """
    known = {prompt.id: prompt for prompt in asked}
    if not known.keys() & set(answers.keys):
        known = {" ".join(prompt.text.split()): prompt for prompt in asked}
    found = []
    for prompt, key in zip(answers.prompts, answers.keys, strict=True):
        if key not in known:
            raise PromptFileError(
                f"{answers.path}: answers {key[:60]!r}, which is not among the prompts of {asked.name}"
            )
        source = known[key]
        found.append(
            replace(
                source,
                id=prompt.id,
                label=source.label or prompt.label,
                group=source.group or prompt.group,
                meta={**source.meta, **prompt.meta},
            )
        )
    answered = set(answers.keys)
    lost = {key: replace(prompt, id=key) for key, prompt in known.items() if key not in answered}
    return replace(
        answers,
        prompts=PromptSet([*found, *lost.values()], answers.prompts.name),
        responses=(*answers.responses, *[None] * len(lost)),
        keys=(*answers.keys, *lost),
    )


def rescore(answers: Answers, judge: Judge, *, reference: str | None = None, seed: int = 0) -> Rescored:
    """Judge every answer of a file.

    reference: a column of the file with another judge's yes or no on harmful prompts.
    Raises UserError for prompts without label, for what the judge cannot judge, and for a reference that is neither yes nor no.
    """
    name = answers.prompts.name
    pairs = list(zip(answers.prompts, answers.responses, strict=True))
    for prompt, _ in pairs:
        if prompt.label is None:
            raise UserError(
                f"{answers.path}: {prompt.id!r} is not labelled harmful or benign; say it for all with --label"
            )
    given = [(prompt, Completion(prompt.id, text, 0, True)) for prompt, text in pairs if text is not None]
    judged = judge.judge([prompt for prompt, _ in given], [done for _, done in given])
    verdicts = {verdict.prompt_id: verdict for verdict in judged}
    for prompt, text in pairs:
        if text is None:
            verdicts[prompt.id] = Verdict(
                prompt.id, Outcome.UNSCORED, judge.name, judge.version, None, NO_RESPONSE
            )
    results: dict[Label, EvalResult] = {}
    for label in LABELS:
        part = [prompt for prompt, _ in pairs if prompt.label == label]
        if part:
            results[label] = EvalResult.from_verdicts(name, part, [verdicts[prompt.id] for prompt in part])
    return Rescored(
        answers,
        results,
        tuple(prompt.id for prompt, text in pairs if text is not None and not text.strip()),
        tuple(prompt.id for prompt, text in pairs if text is None),
        None if reference is None else _reference(answers, verdicts, reference, seed),
    )


def _reference(
    answers: Answers, verdicts: Mapping[str, Verdict], column: str, seed: int
) -> tuple[str, Proportion, Agreement]:
    said: dict[str, bool] = {}
    for prompt in answers.prompts:
        value = prompt.meta.get(column)
        if prompt.label != "harmful" or value is None:
            continue
        text = str(value).strip().lower()
        if text not in _YES:
            raise UserError(
                f"{answers.path}: {prompt.id!r}: {column!r} holds {value!r}, neither yes nor no (0 and 1, true "
                "and false, safe and unsafe)"
            )
        said[prompt.id] = _YES[text]
    if not said:
        raise UserError(f"{answers.path}: no harmful prompt has a {column!r} to compare the judge with")
    ids = list(said)
    found = agreement([verdicts[i] for i in ids], [said[i] for i in ids], seed=seed)
    return column, wilson(sum(said.values()), len(said)), found


def overlap(first: Answers, second: Answers) -> Overlap:
    """Compare two files row by row, before any judge."""
    a, b = first.by_id, second.by_id
    shared = tuple(i for i in a if i in b)
    same = tuple(i for i in shared if (a[i] or "").strip() and (a[i] or "").strip() == (b[i] or "").strip())
    texts = [Counter((side[i] or "").strip() for i in shared) for side in (a, b)]
    return Overlap(
        shared,
        tuple(i for i in a if i not in b),
        tuple(i for i in b if i not in a),
        same,
        texts[0] == texts[1] and len(texts[0]) > 1 and len(same) < sum(bool(a[i]) for i in shared),
    )


def difference(
    first: Rescored, second: Rescored, seed: int = 0
) -> dict[Label, dict[Outcome, tuple[PairedTest, float]]]:
    """Second minus first for every outcome that occurs, on the prompts both hold, with its p corrected by Holm's procedure.

    Raises UserError when the files share no prompt, label a shared prompt differently, or ask another text under a shared id.
    """
    shared = set(overlap(first.answers, second.answers).shared)
    if not shared:
        raise UserError(
            f"{first.answers.path} and {second.answers.path} share no prompt; are they paired by --by prompt?"
        )
    others = {prompt.id: prompt for prompt in second.answers.prompts}
    for prompt in first.answers.prompts:
        if prompt.id in shared:
            _check_same(prompt, others[prompt.id], first, second)
    found: dict[Label, dict[Outcome, tuple[PairedTest, float]]] = {}
    for label in LABELS:
        if label not in first.results or label not in second.results:
            continue
        a, b = (_only(side.results[label], shared) for side in (first, second))
        # the first file's clusters: what the second one calls them may differ, the prompts do not
        b = replace(b, groups=a.groups)
        outcomes = [o for o in Outcome if a.counts.get(o, 0) or b.counts.get(o, 0)]
        tests = [compare(b, a, outcome, seed) for outcome in outcomes]
        adjusted = holm([test.p_value for test in tests])
        found[label] = {o: (t, float(p)) for o, t, p in zip(outcomes, tests, adjusted, strict=True)}
    return found


def _check_same(prompt: Prompt, other: Prompt, first: Rescored, second: Rescored) -> None:
    where = f"{first.answers.path} and {second.answers.path}: {prompt.id!r}"
    if " ".join(prompt.text.split()) != " ".join(other.text.split()):
        raise UserError(f"{where} is another prompt in each; pair the rows with --by prompt")
    if prompt.label != other.label:
        raise UserError(f"{where} is {prompt.label} in one and {other.label} in the other")


def _only(result: EvalResult, ids: set[str]) -> EvalResult:
    kept = tuple(verdict for verdict in result.verdicts if verdict.prompt_id in ids)
    counted = Counter(verdict.outcome for verdict in kept)
    return replace(
        result,
        counts={outcome: counted.get(outcome, 0) for outcome in Outcome},
        n_asked=len(kept),
        n_scored=len(kept) - counted.get(Outcome.UNSCORED, 0),
        verdicts=kept,
        groups={i: group for i, group in result.groups.items() if i in ids},
    )


def summary(found: Rescored) -> str:
    """What one file says, as text of a few lines."""
    n = len(found.answers)
    lines = [f"{found.answers.path}: {n} answers asked for"]
    if repeated := n - len(set(found.answers.keys)):
        lines.append(f"  {repeated} rows answer a prompt again: intervals resample prompts, not answers")
    lines += _named("have no response and count as unscored", found.missing, n)
    lines += _named("are empty", found.empty, n)
    texts = Counter(text for text in found.answers.responses if text)
    if texts and (most := texts.most_common(1)[0])[1] > max(1, n // 2):
        lines.append(f"  warning: {most[1]} of {n} responses are one and the same: {most[0][:60]!r}")
    for label, result in found.results.items():
        lines.append(f"  {label} prompts ({result.n_asked}), judge {result.verdicts[0].judge}")
        clusters = result.clusters() if result.groups else None
        for outcome in Outcome:
            if result.counts.get(outcome, 0):
                rate = clustered_rate(result.indicator(outcome), clusters)
                lines.append(
                    f"    {outcome.value:<18} {result.counts[outcome]:>6}   "
                    f"{rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}]"
                )
    if found.reference is not None:
        column, yes, agrees = found.reference
        lines.append(f"  {column}: yes {yes}; the judge agrees with {agrees}")
    return "\n".join(lines)


def comparison(
    common: Overlap, tests: Mapping[Label, Mapping[Outcome, tuple[PairedTest, float]]], names: tuple[str, str]
) -> str:
    """What sets two files apart, as text of a few lines."""
    n = len(common.shared)
    lines = [f"{names[1]} − {names[0]}: {n} prompts in both"]
    for name, ids in zip(names, (common.only_first, common.only_second), strict=True):
        lines += _named(f"are only in {name} and left out", ids, n + len(ids))
    if common.identical and len(common.identical) == n:
        lines.append("  warning: the two files hold identical responses; is one a copy of the other?")
    elif common.reordered:
        lines.append(
            "  warning: the two files hold the same responses on other prompts; are their rows in step?"
        )
    else:
        lines += _named("have the same response in both", common.identical, n)
    for label, found in tests.items():
        lines.append(
            f"  {label} prompts: difference [95 %], McNemar p, p corrected for {len(found)} outcomes"
        )
        for outcome, (test, adjusted) in found.items():
            lines.append(
                f"    {outcome.value:<18} {test.difference:+.3f} [{test.low:+.3f}, {test.high:+.3f}]   "
                f"p = {test.p_value:.2g}, {adjusted:.2g}   (+{test.n_only_a} −{test.n_only_b} of {test.n})"
            )
    return "\n".join(lines)


def _named(what: str, ids: Sequence[str], n: int) -> list[str]:
    return [f"  {len(ids)} of {n} {what}, the first is {ids[0][:60]!r}"] if ids else []


def to_dict(
    files: Sequence[Rescored], tests: Mapping[Label, Mapping[Outcome, tuple[PairedTest, float]]]
) -> dict[str, Any]:
    """Everything as JSON values."""
    return {
        "files": [
            {
                "path": one.answers.path,
                "asked": len(one.answers),
                "empty": list(one.empty),
                "missing": list(one.missing),
                "results": {label: result.to_dict() for label, result in one.results.items()},
            }
            for one in files
        ],
        "differences": {
            label: {o.value: {**test.to_dict(), "p_holm": p} for o, (test, p) in found.items()}
            for label, found in tests.items()
        },
    }
