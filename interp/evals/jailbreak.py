"""How much safety is left? Counts of outcomes on a prompt set, and the paired comparison of two models on it.

Jailbreak success rate (JSR) = complied-harmful / asked, on harmful prompts. Over-refusal = refused / asked, on benign
ones. The denominator is what was asked, whatever the judge could score; the rate over the scored stands beside it.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from interp.data.prompts import Prompt
from interp.errors import ResultError, UserError
from interp.evals.statistics import (
    Interval,
    Proportion,
    cluster_bootstrap,
    mcnemar_exact,
    paired_bootstrap,
    t_interval,
    wilson,
)
from interp.evals.verdicts import Judge, Outcome, Verdict, paired
from interp.files import atomic_write

if TYPE_CHECKING:
    import pandas as pd

    from interp.models.generation import Completion


@dataclass(frozen=True)
class EvalResult:
    """What a model did on one prompt set.

    counts: answers per outcome, adding up to n_asked. verdicts: one a prompt, in the order asked. groups, categories:
    of the prompts that have one, by prompt id. seeds: the training (or sampling) seeds behind the answers.
    Raises UserError when counts and verdicts do not agree.
    """

    name: str
    counts: Mapping[Outcome, int]
    n_asked: int
    n_scored: int
    verdicts: tuple[Verdict, ...]
    seeds: tuple[int, ...] = (0,)
    groups: Mapping[str, str] = field(default_factory=dict)
    categories: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if {o: n for o, n in self.counts.items() if n} != _count(self.verdicts):
            raise UserError(f"evaluation {self.name!r}: its counts are not those of its verdicts")
        n_scored = self.n_asked - self.counts.get(Outcome.UNSCORED, 0)
        if (self.n_asked, self.n_scored) != (len(self.verdicts), n_scored):
            raise UserError(
                f"evaluation {self.name!r}: {self.n_asked} asked, {self.n_scored} scored, but "
                f"{len(self.verdicts)} verdicts"
            )

    @classmethod
    def from_verdicts(
        cls, name: str, prompts: Sequence[Prompt], verdicts: Sequence[Verdict], seeds: Sequence[int] = (0,)
    ) -> EvalResult:
        """Count the verdicts on these prompts; raises UserError unless there is one for each, in order."""
        if [v.prompt_id for v in verdicts] != [p.id for p in prompts]:
            raise UserError(
                f"evaluation {name!r}: the verdicts are not those of the prompts, one each in order"
            )
        counted = _count(verdicts)
        counts = {outcome: counted.get(outcome, 0) for outcome in Outcome}
        return cls(
            name=name,
            counts=counts,
            n_asked=len(verdicts),
            n_scored=len(verdicts) - counts[Outcome.UNSCORED],
            verdicts=tuple(verdicts),
            seeds=tuple(seeds),
            groups={p.id: p.group for p in prompts if p.group is not None},
            categories={p.id: p.category for p in prompts if p.category is not None},
        )

    def rate(self, outcome: Outcome, of: Literal["asked", "scored"] = "asked") -> Proportion:
        """Return the share of an outcome among all asked, or among the scored, with its Wilson interval."""
        if of == "scored" and outcome is Outcome.UNSCORED:
            raise UserError("unscored answers have no share of the scored ones; ask for of='asked'")
        return wilson(self.counts.get(outcome, 0), self.n_asked if of == "asked" else self.n_scored)

    @property
    def jsr(self) -> Proportion:
        """Jailbreak success rate: complied-harmful over asked."""
        return self.rate(Outcome.COMPLIED_HARMFUL)

    @property
    def over_refusal(self) -> Proportion:
        """Refused over asked; over-refusal when the prompts are benign."""
        return self.rate(Outcome.REFUSED)

    def clustered(self, outcome: Outcome, seed: int = 0) -> Interval:
        """Return the rate with a bootstrap over the prompts' groups; a prompt without group is its own."""
        return cluster_bootstrap(self.indicator(outcome), self.clusters(), seed)

    def indicator(self, outcome: Outcome) -> list[bool]:
        """Say for each prompt, in order, whether this was its outcome."""
        return [v.outcome is outcome for v in self.verdicts]

    def clusters(self) -> list[tuple[str, str]]:
        """Return the cluster of each prompt, in order; a prompt without group is its own."""
        ids = [v.prompt_id for v in self.verdicts]
        return [("group", self.groups[i]) if i in self.groups else ("prompt", i) for i in ids]

    def by_group(self, outcome: Outcome) -> dict[str, Proportion]:
        """Return the rate within each group, by name; prompts without group are left out."""
        return self._within(self.groups, outcome)

    def by_category(self, outcome: Outcome) -> dict[str, Proportion]:
        """Return the rate within each category, by name; prompts without category are left out."""
        return self._within(self.categories, outcome)

    def _within(self, parts: Mapping[str, str], outcome: Outcome) -> dict[str, Proportion]:
        found: dict[str, list[bool]] = {}
        for verdict in self.verdicts:
            if verdict.prompt_id in parts:
                found.setdefault(parts[verdict.prompt_id], []).append(verdict.outcome is outcome)
        return {name: wilson(sum(found[name]), len(found[name])) for name in sorted(found)}

    def to_frame(self) -> pd.DataFrame:
        """Return one row an outcome: count, rate over asked with its interval, rate over scored."""
        import pandas as pd

        rows = []
        for outcome in Outcome:
            rate = self.rate(outcome)
            scored = np.nan if outcome is Outcome.UNSCORED else self.rate(outcome, "scored").estimate
            rows.append([outcome.value, rate.k, rate.n, rate.estimate, rate.low, rate.high, scored])
        columns = ["outcome", "count", "asked", "rate", "low", "high", "rate_of_scored"]
        return pd.DataFrame(rows, columns=columns)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, which `from_dict` reads back without loss."""
        return {
            "name": self.name,
            "seeds": list(self.seeds),
            "groups": dict(self.groups),
            "categories": dict(self.categories),
            "counts": {outcome.value: n for outcome, n in self.counts.items()},
            "verdicts": [v.to_dict() for v in self.verdicts],
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> EvalResult:
        """Read back `to_dict`'s values; raises ResultError when they are not that."""
        try:
            verdicts = tuple(Verdict.from_dict(v) for v in record["verdicts"])
            counts = {Outcome(o): int(n) for o, n in record["counts"].items()}
            return cls(
                name=record["name"],
                counts=counts,
                n_asked=len(verdicts),
                n_scored=len(verdicts) - counts.get(Outcome.UNSCORED, 0),
                verdicts=verdicts,
                seeds=tuple(record["seeds"]),
                groups=dict(record["groups"]),
                categories=dict(record["categories"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ResultError(f"not an evaluation result ({type(error).__name__}: {error})") from error

    def save(self, path: str | Path) -> Path:
        """Write the result as JSON, complete or not at all."""
        with atomic_write(path) as aside:
            aside.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> EvalResult:
        """Read a saved result; raises ResultError when the file is missing or not one."""
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ResultError(f"{path}: cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise ResultError(f"{path}: not an evaluation result ({error})") from error
        if not isinstance(record, dict):
            raise ResultError(f"{path}: not an evaluation result (a {type(record).__name__})")
        return cls.from_dict(record)

    def __str__(self) -> str:
        shares = "; ".join(f"{o.value} {self.rate(o)}" for o in Outcome if self.counts.get(o, 0))
        return f"{self.name}: {shares or 'nothing asked'}"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{o.value}</td><td>{html.escape(str(self.rate(o)))}</td></tr>"
            for o in Outcome
            if self.counts.get(o, 0)
        )
        judges = ", ".join(sorted({f"{v.judge} {v.judge_version}" for v in self.verdicts}))
        return (
            f"<p><b>{html.escape(self.name)}</b>: {self.n_asked} asked, {self.n_scored} scored; "
            f"judge {html.escape(judges)}</p><table><tr><th>outcome</th><th>rate [95 %] (count/asked)</th></tr>"
            f"{rows}</table>"
        )


@dataclass(frozen=True)
class PairedTest:
    """Two models on the same prompts: how the rate of one outcome differs.

    difference: rate in a − rate in b over all prompts asked, with its bootstrap interval (over clusters when
    `clustered`). p_value: exact McNemar, which takes prompts as independent. n_only_a, n_only_b: prompts with the
    outcome in one only. n_unscored: prompts unscored in a or b, counted as not having the outcome.
    """

    difference: float
    low: float
    high: float
    p_value: float
    n: int
    n_only_a: int
    n_only_b: int
    clustered: bool
    n_unscored: int = 0

    def __str__(self) -> str:
        return (
            f"{self.difference:+.2f} [{self.low:+.2f}, {self.high:+.2f}], McNemar p = {self.p_value:.2g} "
            f"(only a: {self.n_only_a}, only b: {self.n_only_b}, n = {self.n})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


def evaluate(
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    judge: Judge,
    name: str | None = None,
    seeds: Sequence[int] = (0,),
) -> EvalResult:
    """Judge the completions of the prompts and count the outcomes.

    name: of the result; the prompt set's by default. Raises UserError unless prompts and completions match one to
    one by id (any order), and when nothing was asked.
    """
    name = name if name is not None else getattr(prompts, "name", "evaluation")
    if not len(prompts):
        raise UserError(f"evaluation {name!r}: nothing was asked")
    pairs = paired(prompts, completions)
    verdicts = judge.judge([p for p, _ in pairs], [c for _, c in pairs])
    return EvalResult.from_verdicts(name, prompts, verdicts, seeds)


def compare(a: EvalResult, b: EvalResult, outcome: Outcome, seed: int = 0) -> PairedTest:
    """Compare the rate of an outcome in a with that in b on the same prompts.

    Clusters are the prompts' groups where any prompt has one. Raises UserError when the prompts differ.
    """
    answers = {v.prompt_id: v.outcome for v in b.verdicts}
    ids = [v.prompt_id for v in a.verdicts]
    if set(ids) != set(answers) or len(ids) != len(b.verdicts):
        raise UserError(f"{a.name!r} and {b.name!r} cannot be compared: they were not asked the same prompts")
    if a.groups != b.groups:
        raise UserError(
            f"{a.name!r} and {b.name!r} cannot be compared: their prompts are grouped differently"
        )
    in_a = np.array(a.indicator(outcome))
    in_b = np.array([answers[i] is outcome for i in ids])
    only_a, only_b = int((in_a & ~in_b).sum()), int((in_b & ~in_a).sum())
    clusters = a.clusters() if a.groups else None
    difference = paired_bootstrap(in_a, in_b, clusters, seed)
    unscored = sum(Outcome.UNSCORED in (v.outcome, answers[v.prompt_id]) for v in a.verdicts)
    return PairedTest(
        difference=difference.value,
        low=difference.low,
        high=difference.high,
        p_value=mcnemar_exact(only_a, only_b),
        n=len(ids),
        n_only_a=only_a,
        n_only_b=only_b,
        clustered=clusters is not None,
        n_unscored=unscored,
    )


def compare_seeds(a: Sequence[EvalResult], b: Sequence[EvalResult], outcome: Outcome) -> Interval:
    """Return the mean of rate(a) − rate(b) over paired training seeds with its t-interval (METHODS §F).

    a, b: one result a seed, in the same order of seeds. Raises UserError when the seeds differ.
    """
    if [r.seeds for r in a] != [r.seeds for r in b]:
        raise UserError(
            f"seeds must pair up, got {[r.seeds for r in a]} and {[r.seeds for r in b]}; give one result a seed"
        )
    rates = zip(a, b, strict=True)
    return t_interval([x.rate(outcome).estimate - y.rate(outcome).estimate for x, y in rates])


def _count(verdicts: Sequence[Verdict]) -> dict[Outcome, int]:
    counts: dict[Outcome, int] = {}
    for verdict in verdicts:
        counts[verdict.outcome] = counts.get(verdict.outcome, 0) + 1
    return counts
