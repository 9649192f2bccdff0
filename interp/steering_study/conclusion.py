"""What do the intervals say, in words? Sentences made from the numbers, so that no wish can enter them.

The primary claims are named here, before any run at full size: at 5 points more over-refusal, and again at a loss of 5 points of right
answers, SARSteer gains more refusals than steering with the text direction, than its own vector without the ablation, and than a random
direction of equal norm; and more than the defence prompt at the defence prompt's own cost. They are corrected together by Holm's procedure.
All other sentences describe and claim nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from interp.defence.compare import Difference, difference
from interp.evals.statistics import Interval, holm, t_interval

PRIMARY = (("sarsteer", "plain"), ("sarsteer", "unablated"), ("sarsteer", "random"))
AT_PROMPT = ("sarsteer", "prompt")
NAMES = {
    "none": "no steering",
    "prompt": "the defence prompt",
    "plain": "the text direction",
    "target": "the direction of the asked modality",
    "unablated": "SARSteer without ablation",
    "sarsteer": "SARSteer",
    "conditional": "conditional SARSteer",
    "random": "a random direction",
}


def claims(
    read: Mapping[str, pd.DataFrame], at_prompt: Mapping[str, pd.DataFrame]
) -> dict[str, list[Difference]]:
    """The primary claims that the tables can bear, by what costs are equal in, corrected together.

    Args:
        read: by cost, one row an arm and seed with `gained` at the claims' cost. at_prompt: the same at the defence prompt's cost.
    """
    found: dict[str, list[Difference]] = {}
    for name in read:
        there = set(read[name]["arm"])
        mine = [_difference(read[name], a, b) for a, b in PRIMARY if {a, b} <= there]
        if set(AT_PROMPT) <= set(at_prompt[name]["arm"]):
            mine.append(_difference(at_prompt[name], *AT_PROMPT))
        found[name] = mine
    flat = [claim for part in found.values() for claim in part]
    tested = [claim for claim in flat if math.isfinite(claim.p)]
    corrected = holm([claim.p for claim in tested]).tolist() if tested else []
    p = dict(zip(map(id, tested), corrected, strict=True))
    return {
        name: [
            Difference(c.method, c.baseline, c.column, c.interval, p.get(id(c), math.nan), c.asked)
            for c in part
        ]
        for name, part in found.items()
    }


def _difference(frame: pd.DataFrame, arm: str, baseline: str) -> Difference:
    return difference(frame.rename(columns={"arm": "method"}), arm, baseline, "gained")


def claim_sentences(found: Mapping[str, Sequence[Difference]], cost: float) -> list[str]:
    """One sentence a primary claim: shown, contradicted, or left open."""
    said = []
    for name, part in found.items():
        for claim in part:
            a, b = NAMES[claim.method], NAMES[claim.baseline]
            where = (
                f"{name} of the defence prompt"
                if claim.baseline == "prompt"
                else f"{100 * cost:g} points of {name}"
            )
            if not math.isfinite(claim.p):
                said.append(
                    f"{_capital(a)} against {b}, at {where}: not decided, {claim.interval.n} of {claim.asked} seeds can be compared."
                )
                continue
            verdict = (
                "not decided"
                if not claim.shown
                else "reproduced"
                if claim.interval.value > 0
                else "contradicted"
            )
            said.append(
                f"{_capital(a)} against {b}, at {where}: {verdict}. Difference of refusals gained {points(claim.interval)}, "
                f"{claim.interval.n} of {claim.asked} seeds, Holm-corrected p = {claim.p:.3g}."
            )
    return said


def modality_sentence(base: pd.DataFrame) -> str:
    """How much is refused in each modality, without steering. base: columns arm, modality, seed, refused, over_refusal; one row an organism."""
    mine = base[base["arm"] == "none"]
    shares = [
        f"{modality} {points(t_interval(part['refused'].tolist()), sign=False)} of harmful and "
        f"{points(t_interval(part['over_refusal'].tolist()), sign=False)} of benign ones"
        for modality, part in mine.groupby("modality", sort=False)
    ]
    n = mine["seed"].nunique()
    return (
        f"Requests refused without steering, {n} {'organisms' if n > 1 else 'organism'}: {'; '.join(shares)}."
    )


def prompt_sentence(base: pd.DataFrame, target: str) -> str:
    """What the defence prompt changes in the asked modality."""
    mine = base[base["modality"] == target]
    said = []
    for column, what in (("refused", "harmful"), ("over_refusal", "benign")):
        wide = mine.pivot(index="seed", columns="arm", values=column)
        said.append(f"{what} ones {points(t_interval((wide['prompt'] - wide['none']).tolist()))}")
    return f"The defence prompt changes refusals of {target}: {', '.join(said)}."


def arms_sentence(read: pd.DataFrame, cost: float, name: str) -> str:
    """The gain of every arm at the claims' cost."""
    said = []
    for arm in (arm for arm in NAMES if arm in set(read["arm"])):
        kept = read.loc[read["arm"] == arm, "gained"].dropna().tolist()
        if kept:
            said.append(f"{NAMES[arm]} {points(t_interval(kept))}")
    return (
        f"Harmful requests refused beyond no steering, at {100 * cost:g} points of {name}: {'; '.join(said)}."
    )


def organisms_sentence(read: pd.DataFrame, cost: float, name: str) -> str | None:
    """The primary differences by organism, as draws on one organism are not independent; None where no organism has two draws.

    read: one row an arm and seed, written organism/draw, with `gained` at the claims' cost.
    """
    organism = read["seed"].str.partition("/")[0]
    if read["seed"].nunique() == organism.nunique():
        return None
    wide = read.assign(organism=organism).pivot_table(index="organism", columns="arm", values="gained")
    said = [
        f"SARSteer less {NAMES[baseline]} "
        + ", ".join(f"{100 * value:+.1f}" for value in wide[arm] - wide[baseline]).replace("-", "−")
        for arm, baseline in PRIMARY
        if {arm, baseline} <= set(wide.columns)
    ]
    return (
        f"Intervals are over draws, which share {len(wide)} organisms. Means by organism, in points at {100 * cost:g} points of {name}: "
        f"{'; '.join(said)}."
    )


def safe_sentence(safe: pd.DataFrame) -> str:
    """How much of the refusal vector lies in the safe space."""
    each = safe.groupby("seed")[["inside", "chance"]].mean()
    inside = t_interval(each["inside"].tolist())
    return (
        f"Of the energy of SARSteer's refusal vectors {points(inside, sign=False)} lies in the safe space, mean over layers; of a random "
        f"vector's {100 * each['chance'].mean():.0f}."
    )


def measures(base: pd.DataFrame, read: pd.DataFrame, target: str, cost: float) -> dict[str, Interval]:
    """What the page of the papers' claims asks for, by name.

    Args:
        base: as in `modality_sentence`. read: one row an arm, seed and cost of over-refusal, with `gained`.
        target: the modality that is asked. cost: that differences of gains are read at.
    """
    none = base[base["arm"] == "none"].pivot(index="seed", columns="modality", values="refused")
    asked = base[base["modality"] == target].pivot(index="seed", columns="arm", values="over_refusal")
    at = read[read["cost"] == cost]
    return {
        "text_minus_speech_refused": t_interval((none["text"] - none[target]).tolist()),
        "over_refusal_prompt": t_interval((asked["prompt"] - asked["none"]).tolist()),
        "gained_sarsteer_minus_unablated": _difference(at, "sarsteer", "unablated").interval,
        "gained_sarsteer_minus_plain": _difference(at, "sarsteer", "plain").interval,
    }


def points(interval: Interval, *, sign: bool = True) -> str:
    """A share, or difference of shares, in percentage points with its interval where there is one."""
    form = "+.1f" if sign else ".1f"
    span = (
        f" [{100 * interval.low:{form}}, {100 * interval.high:{form}}]" if math.isfinite(interval.low) else ""
    )
    return f"{100 * interval.value:{form}}{span}".replace("-", "−") + " points"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
