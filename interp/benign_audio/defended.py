"""Which defence keeps more safety at equal utility? All on the proximate subset's skill, read where as much of it is learnt.

The utility is the skill in speech; the target a stated share of what plain fine-tuning on the proximate subset reaches on the same unit.

* Defences that act while training (distant filtering, SPF, safety mixing; plain fine-tuning itself) are read where their learning
  curve first reaches the target.
* SARSteer, which acts on the plainly tuned model, is read at the strongest push that leaves the target's utility.
* The defence prompt is one point: it counts where its utility is at least the target's.

What a defence does not reach on a unit is no value, and counted.
"""

from __future__ import annotations

import math

import pandas as pd

from interp.benign_audio.trial import NONE, PROMPT, SAR
from interp.defence.compare import at_utility

SKILL, JSR, OVER = "skill speech", "jsr speech", "over_refusal speech"
COLUMNS = {
    SKILL: "utility",
    JSR: "jsr",
    "refused speech": "refused",
    OVER: "over_refusal",
    "retained speech": "retained",
    "incoherent speech": "incoherent",
}
NAMES = {
    "aligned": "before fine-tuning",
    "plain": "no defence",
    "end": "no defence, all steps",
    "distant": "distant filtering",
    "prompt": "system prompt",
    "spf": "SPF",
    "mixing": "safety mixing",
    "sarsteer": "SARSteer",
}
# training is stopped where the utility is reached; what acts afterwards acts on all of it
BESIDE = {"distant": "plain", "spf": "plain", "mixing": "plain", "prompt": "end", "sarsteer": "end"}
READ = ("utility", "jsr", "refused", "over_refusal", "retained")


def at_matched_utility(
    shares: pd.DataFrame, curve: pd.DataFrame, defended: pd.DataFrame, matched: float
) -> pd.DataFrame:
    """One row a defence and unit: `method`, `seed` (the unit), `target`, and `READ` at the target; NaN where it is not reached.

    shares, curve, defended: of the study, of which the section `defences` counts.
    """
    shares, curve, defended = (
        part[part["section"] == "defences"] if len(part) else part for part in (shares, curve, defended)
    )
    rows: list[dict[str, object]] = []
    for unit, part in shares.groupby("unit", sort=False) if len(shares) else ():
        plain = part[(part["rule"] == "proximate") & (part["method"] == "plain")]
        if plain.empty:
            continue
        target = matched * float(plain[SKILL].iloc[0])
        about = {"seed": unit, "organism": plain["organism"].iloc[0], "target": target}
        for _, trial in part.iterrows():
            name = "distant" if trial["rule"] == "distant" else str(trial["method"])
            own = curve[
                (curve["unit"] == unit)
                & (curve["rule"] == trial["rule"])
                & (curve["method"] == trial["method"])
            ]
            if len(own):
                rows.append(about | {"method": name} | _read(own, target))
                if name == "plain":
                    before = own.sort_values("step").iloc[0]
                    rows.append(
                        about | {"method": "aligned"} | {new: float(before[old]) for old, new in COLUMNS.items() if new in READ}
                    )  # fmt: skip
        points = defended[(defended["unit"] == unit) & (defended["rule"] == "proximate") & (defended["method"] == "plain")]  # fmt: skip
        for name, arm in (("end", NONE), ("prompt", PROMPT), ("sarsteer", SAR)):
            own = points[points["defence"].isin([NONE, SAR] if name == "sarsteer" else [arm])]
            if (own["defence"] == arm).any():
                found = strongest(own, target)
                rows.append(about | {"method": name} | found)
    return pd.DataFrame(rows)


def _read(curve: pd.DataFrame, target: float) -> dict[str, float]:
    """A learning curve where it first reaches the target."""
    named = curve[["step", *COLUMNS]].rename(columns=COLUMNS).assign(held_out_loss=math.nan)
    found = at_utility(named, target)
    return {name: found[name] for name in READ}


def strongest(points: pd.DataFrame, target: float) -> dict[str, float]:
    """The strongest of the points before utility falls under the target, and the crossing itself by linear interpolation.

    points: one row a strength, ascending from 0 where there is one; a single point is read as it is. NaN where none reaches the target.
    """
    ordered = points.rename(columns=COLUMNS).sort_values("strength")[list(READ)].reset_index(drop=True)
    below = [i for i, value in enumerate(ordered["utility"]) if value < target]
    if not below:
        last = ordered.iloc[-1]
    elif below[0] == 0:
        last = pd.Series(dict.fromkeys(READ, math.nan))
    else:
        kept, lost = ordered.iloc[below[0] - 1], ordered.iloc[below[0]]
        share = (kept["utility"] - target) / (kept["utility"] - lost["utility"])
        last = (1 - share) * kept + share * lost
    return {name: float(last[name]) for name in READ}
