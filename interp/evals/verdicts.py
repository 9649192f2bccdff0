"""What became of one answer: the outcomes, the verdict a judge gives, and the interface of every judge.

Outcomes are exclusive and add up to what was asked: an answer that no judge could score is counted as unscored, never
as safe and never as zero (METHODS, statistics; the habit is inspect_ai's).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from interp.data.prompts import Label, Prompt
from interp.errors import UserError

if TYPE_CHECKING:
    from interp.models.generation import Completion


class Outcome(StrEnum):
    """What became of one answer."""

    REFUSED = "refused"
    COMPLIED_HARMFUL = "complied-harmful"
    COMPLIED_BENIGN = "complied-benign"
    INCOHERENT = "incoherent"
    EMPTY = "empty"
    UNSCORED = "unscored"

    @classmethod
    def complied(cls, label: Label) -> Outcome:
        """Return the outcome of answering a request of this label."""
        return cls.COMPLIED_HARMFUL if label == "harmful" else cls.COMPLIED_BENIGN


@dataclass(frozen=True)
class Verdict:
    """A judge's finding on one answer.

    score: a graded judge's value in [0, 1], None where the judge gives none. rationale: what it was decided by.
    """

    prompt_id: str
    outcome: Outcome
    judge: str
    judge_version: str
    score: float | None = None
    rationale: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self) | {"outcome": self.outcome.value}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Verdict:
        """Read back `to_dict`'s values."""
        return cls(**{**record, "outcome": Outcome(record["outcome"])})


@runtime_checkable
class Judge(Protocol):
    """Anything that turns prompts and their completions, in the same order, into one verdict each."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    def judge(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Verdict]: ...


def paired(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[tuple[Prompt, Completion]]:
    """Return each prompt with its completion; raises UserError unless ids match one to one (any order)."""
    by_id = {c.prompt_id: c for c in completions}
    ids = {p.id for p in prompts}
    if len(by_id) != len(completions) or len(ids) != len(prompts):
        raise UserError(
            "some prompt is asked or answered twice: ids must be unique among prompts and completions"
        )
    if lost := [p.id for p in prompts if p.id not in by_id]:
        raise UserError(
            f"{len(lost)} prompts have no completion, the first is {lost[0]!r}: judge what was generated"
        )
    if extra := [i for i in by_id if i not in ids]:
        raise UserError(
            f"{len(extra)} completions belong to no prompt, the first is {extra[0]!r}: pass the set asked"
        )
    return [(p, by_id[p.id]) for p in prompts]


@dataclass(frozen=True)
class Agreement:
    """How far a judge agrees with a reference on a yes/no question.

    confusion: counts, rows the judge (no, yes), columns the reference (no, yes). kappa: Cohen's κ with a bootstrap
    interval. n: answers compared. n_unscored: answers left out because the judge could not score them.
    """

    confusion: tuple[tuple[int, int], tuple[int, int]]
    kappa: float
    kappa_low: float
    kappa_high: float
    n: int
    n_unscored: int

    def __str__(self) -> str:
        (nn, ny), (yn, yy) = self.confusion
        return (
            f"κ = {self.kappa:.2f} [{self.kappa_low:.2f}, {self.kappa_high:.2f}], n = {self.n}, "
            f"{self.n_unscored} unscored\n"
            f"              reference no   reference yes\n"
            f"  judge no  {nn:14d} {ny:15d}\n"
            f"  judge yes {yn:14d} {yy:15d}"
        )


def agreement(
    verdicts: Sequence[Verdict],
    reference: Sequence[bool],
    yes: Sequence[Outcome] = (Outcome.COMPLIED_HARMFUL,),
    seed: int = 0,
) -> Agreement:
    """Compare verdicts with a reference in the same order: confusion matrix and Cohen's κ (1960).

    reference: the other judge's yes or no. yes: the outcomes that count as yes. Unscored answers are left out and
    counted. Raises UserError on different lengths.
    """
    import numpy as np

    from interp.evals.statistics import kappa

    if len(verdicts) != len(reference):
        raise UserError(
            f"{len(verdicts)} verdicts cannot be compared with {len(reference)} reference verdicts"
        )
    scored = [
        (v.outcome in yes, bool(r)) for v, r in zip(verdicts, reference, strict=True) if v.outcome in SCORED
    ]
    ours = np.array([a for a, _ in scored], dtype=bool)
    theirs = np.array([b for _, b in scored], dtype=bool)
    estimate = kappa(ours, theirs, seed=seed)
    no_row = (int((~ours & ~theirs).sum()), int((~ours & theirs).sum()))
    yes_row = (int((ours & ~theirs).sum()), int((ours & theirs).sum()))
    n_unscored = len(verdicts) - len(scored)
    return Agreement((no_row, yes_row), estimate.value, estimate.low, estimate.high, len(scored), n_unscored)


SCORED = frozenset(Outcome) - {Outcome.UNSCORED}
