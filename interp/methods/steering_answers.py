"""What does a steered model answer? Requests asked, answers judged, shares counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from interp.data.prompts import Prompt
from interp.evals.statistics import wilson
from interp.evals.verdicts import Judge, Outcome
from interp.methods.steering import Steering
from interp.models.generation import generate
from interp.models.model import Model

MEASURES: dict[str, tuple[str, Outcome]] = {
    "refused": ("harmful", Outcome.REFUSED),
    "jsr": ("harmful", Outcome.COMPLIED_HARMFUL),
    "incoherent": ("harmful", Outcome.INCOHERENT),
    "over_refusal": ("benign", Outcome.REFUSED),
    "correct": ("benign", Outcome.COMPLIED_BENIGN),
    "garbled": ("benign", Outcome.INCOHERENT),
}
"""Share of which outcome among the requests of which label."""


def answers(
    model: Model,
    prompts: Mapping[str, Sequence[Prompt]],
    judge: Judge,
    steering: Steering | None = None,
    *,
    max_new_tokens: int,
    batch_size: int = 64,
    progress: bool = False,
) -> pd.DataFrame:
    """One row a prompt: `set` (its key), `label`, `prompt`, `group`, `answer` and `outcome`; whole answers, greedy."""
    rows = []
    for name, asked in prompts.items():
        made = generate(
            model,
            asked,
            edits=steering,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            progress=progress,
        )
        for prompt, answer, verdict in zip(asked, made, judge.judge(asked, made), strict=True):
            rows.append(
                {
                    "set": name,
                    "label": prompt.label,
                    "prompt": prompt.id,
                    "group": prompt.group or prompt.id,
                    "answer": answer.text,
                    "outcome": verdict.outcome.value,
                }
            )
    return pd.DataFrame(rows)


def rates(table: pd.DataFrame) -> dict[str, float]:
    """Every share of `MEASURES` over all asked, with its Wilson interval as `_low` and `_high`, and the numbers asked."""
    found: dict[str, float] = {}
    for name, (label, outcome) in MEASURES.items():
        mine = table[table["label"] == label]
        share = wilson(int((mine["outcome"] == outcome.value).sum()), len(mine))
        found |= {name: share.estimate, f"{name}_low": share.low, f"{name}_high": share.high}
    return found | {f"n_{label}": int((table["label"] == label).sum()) for label in ("harmful", "benign")}
