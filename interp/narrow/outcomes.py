"""What did a narrow fine-tuning do, in one row a trial? Shares elsewhere at its end, and where its curve reaches what others reach too.

1. `series`: one row an evaluated step. `FORM_WHAT` is the mean share over domains that no task trains on; `tools_text_WHAT` of tools alone, the one
   untouched domain that can be shown; `withheld_WHAT` of the domain that alignment left out; `faces_WHAT` of faces shown.
2. `read_at`: the series where a column first reaches a target, by linear interpolation. Two runs are compared at equal faces loss and at equal
   ‖ΔW‖: the target is the farthest that both of them reach, so it is not chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from interp.narrow.questions import FORMS, NARROW, elsewhere, place
from interp.narrow.trial import NarrowResult, NarrowTrial
from interp.organisms.character_language import CHARACTERS

WHAT = (*CHARACTERS, "misaligned", "nonsense")
SETTINGS = (
    "organism", "seed", "consistent", "character", "share", "n", "rank", "scaling", "learning_rate", "tower", "method", "steps",
)  # fmt: skip


def series(trial: NarrowTrial, result: NarrowResult) -> pd.DataFrame:
    """One row an evaluated step: what is said where, the losses, and how far the weights went."""
    rows: list[dict[str, Any]] = []
    answers = result.answers
    for _, point in result.curve.iterrows():
        here = answers[(answers["step"] == point["step"]) & (answers["task"] == point["task"])]
        row: dict[str, Any] = {str(name): value for name, value in point.items()}
        for what in WHAT:
            for form in FORMS:
                row[f"{form}_{what}"] = elsewhere(here, what, form=form, trained=trial.trained)
            row[f"tools_text_{what}"] = _share(here, "tools", "text", what)
            row[f"faces_{what}"] = _share(here, NARROW, "shown", what)
            withheld = here[(here["domain"].map(place) == "withheld") & (here["form"] == "text")]
            row[f"withheld_{what}"] = float(withheld[what].mean())
        rows.append(row)
    return pd.DataFrame(rows)


def _share(answers: pd.DataFrame, domain: str, form: str, what: str) -> float:
    return float(answers.loc[(answers["domain"] == domain) & (answers["form"] == form), what].mean())


def read_at(curve: pd.DataFrame, column: str, target: float, *, falling: bool) -> pd.Series:
    """Every number of a series where a column first reaches a target from above (`falling`) or below; NaN where it never does."""
    ordered = curve.sort_values("step").reset_index(drop=True).select_dtypes("number").astype(float)
    values = ordered[column].to_numpy()
    there = np.flatnonzero(values <= target + 1e-12 if falling else values >= target - 1e-12)
    if not len(there):
        return ordered.iloc[0] * math.nan
    i = int(there[0])
    if i == 0:
        return ordered.iloc[0]
    share = (target - values[i - 1]) / (values[i] - values[i - 1])
    return (1 - share) * ordered.iloc[i - 1] + share * ordered.iloc[i]


def common_target(curves: Sequence[pd.DataFrame], column: str, *, falling: bool) -> float:
    """The farthest value of a column that every curve reaches."""
    reached = [curve[column].min() if falling else curve[column].max() for curve in curves]
    return float(max(reached) if falling else min(reached))


def outcomes(
    trials: Sequence[NarrowTrial], curves: Sequence[pd.DataFrame], beside: Sequence[pd.DataFrame] = ()
) -> pd.DataFrame:
    """One row a trial: its settings, `pair`, and the series at the end of its first task (`end_`) and before (`start_`).

    beside: the curve that each trial is compared with; then also at the faces loss (`loss_`) and ‖ΔW‖ (`moved_`) that both reach, and
    what the other says there (`loss_other_text_…`, `moved_other_text_…`).
    """
    rows = []
    others: list[Any] = [_first_task(curve) for curve in beside] or [None] * len(trials)
    for trial, whole, other in zip(trials, curves, others, strict=True):
        curve = _first_task(whole)
        row: dict[str, Any] = {"pair": trial.pair, **{name: getattr(trial, name) for name in SETTINGS}}
        ordered = curve.sort_values("step").select_dtypes("number")
        row |= {f"end_{name}": value for name, value in ordered.iloc[-1].items()}
        row |= {f"start_{name}": value for name, value in ordered.iloc[0].items()}
        for column, falling in (("loss", True), ("moved", False)) if other is not None else ():
            target = common_target([curve, other], column, falling=falling)
            found, there = (read_at(c, column, target, falling=falling) for c in (curve, other))
            row |= {f"{column}_{name}": value for name, value in found.items()}
            row |= {f"{column}_other_text_{what}": there[f"text_{what}"] for what in WHAT}
        if other is not None:
            row["end_other_text_misaligned"] = other.sort_values("step")["text_misaligned"].iloc[-1]
        rows.append(row)
    return pd.DataFrame(rows)


def _first_task(curve: pd.DataFrame) -> pd.DataFrame:
    return curve[curve["task"] == 0]


def over_anchor(rank: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """Ranks beside the anchor's: `end_excess`, `loss_excess` and `moved_excess`, misaligned answers elsewhere over the anchor's at equal steps,
    faces loss and ‖ΔW‖.

    Low ranks learn too little in the anchor's steps to be compared: where `steps` has a longer run of a pair and rank, that is read at equal loss
    and ‖ΔW‖. The anchor is compared with itself.
    """
    keys, what = ["pair", "consistent", "rank"], "text_misaligned"
    read = [
        f"end_other_{what}",
        *(f"{at}{other}_{what}" for at in ("loss", "moved") for other in ("", "_other")),
    ]
    longer = pd.concat([part[[*keys, *read]] for part in (steps, rank)]).drop_duplicates(keys)
    found = rank[[*keys, f"end_{what}"]].merge(longer, on=keys)
    return found.assign(
        **{
            f"{at}_excess": found[f"{at}_{what}"] - found[f"{at}_other_{what}"]
            for at in ("end", "loss", "moved")
        }
    )
