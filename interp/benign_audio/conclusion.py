"""What do the intervals say, in words? Sentences made from the numbers, so that no wish can enter them.

Primary claims are those of `effects.py`. All other sentences describe and claim nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from interp.benign_audio import effects
from interp.benign_audio.defended import NAMES
from interp.benign_audio.effects import ALIGNED, JSR, RANDOM, WAYS
from interp.benign_audio.nearness import manipulated
from interp.benign_audio.study import Study
from interp.defence.compare import Difference, by_organism
from interp.defence.conclusion import points
from interp.evals.statistics import Interval, t_interval

ARM = "proximate semantic"


def conclude(found: Study) -> list[str]:
    """The sentences of the conclusion: whether the pools differ as made, primary claims, then what else was seen."""
    said = manipulation_sentences(found.separated)
    frame = effects.arms(found)
    for claim in effects.primary_claims(found):
        said.append(claim_sentence(claim, by_organism(frame, claim.method, claim.baseline, JSR)))
    said.append(band_sentence(found))
    said += [text for text in (modality_sentence(found), unplanted_sentence(found)) if text]
    said += mechanism_sentences(found) + encoder_sentences(found)
    said += [text for text in (bridge_sentence(found), defence_sentence(effects.defences(found))) if text]
    return [*said, prompt_sentence(found), utility_sentence(frame)]


def manipulation_sentences(separated: pd.DataFrame) -> list[str]:
    """Whether planted pools differ on the intended axis and not on the other."""
    planted = separated[(separated["pool"] == "planted") & (separated["bridge"] == "linear")]
    # one pool a seed: the plain axes do not depend on the organism
    once = planted.drop_duplicates(["seed", "axis", "factor"])
    said = []
    for axis, factor, interval, holds in manipulated(once):
        what = "words" if factor == "lexical" else "voices"
        verdict = "as made" if holds else "not decided" if not math.isfinite(interval.low) else "not as made"
        said.append(
            f"Manipulation check, items near in their {what} on the {axis} axis: {verdict}. They are nearer than the others in "
            f"{_share(interval)} of pairs, {_number(interval.n, 'pool')} (half by chance)."
        )
    return said


def claim_sentence(claim: Difference, organisms: Sequence[float]) -> str:
    """One primary claim: reproduced, contradicted, or not decided. organisms: the difference in each."""
    above = claim.method.startswith("proximate")
    what = f"{_capital(claim.method)} against a random quarter, harmful speech answered"
    if not math.isfinite(claim.p):
        return f"{what}: not decided on {_number(claim.interval.n, 'unit')} (difference {points(claim.interval)})."
    agrees = (claim.interval.value > 0) == above
    verdict = "not decided" if not claim.shown else "reproduced" if agrees else "contradicted"
    own = (
        f" Over {len(organisms)} organisms' own means {points(t_interval(organisms))}."
        if len(organisms) > 1
        else ""
    )
    return f"{what}: {verdict}. Difference {points(claim.interval)}, {_number(claim.interval.n, 'unit')}, Holm-corrected p = {claim.p:.3g}.{own}"


def band_sentence(found: Study) -> str:
    """Where the arms lie in the band of random quarters."""
    low, high, n = effects.null_band(found)
    frame = effects.arms(found)
    means = frame.groupby("method")[JSR].mean()
    outside = [str(arm) for arm, mean in means.items() if arm != ALIGNED and not low <= mean <= high]
    listed = ", ".join(outside) if outside else "none"
    return (
        f"Harmful speech answered: aligned {_percent(means.get(ALIGNED, math.nan))}, random quarters {_percent(means.get(RANDOM, math.nan))} "
        f"(95 % of {n} between {_percent(low)} and {_percent(high)}). Arms whose mean lies outside that band: {listed}."
    )


def modality_sentence(found: Study) -> str:
    """The same subset as speech and as text."""
    both = effects.arms_by_modality(found)
    if both.empty:
        return ""
    parts = [
        f"{what} {points(gap.interval)}"
        for column, what in ((JSR, "harmful speech"), ("jsr text", "harmful text"))
        if (gap := effects.effect(both, "speech", "text", column)) is not None
    ]
    return (
        f"Tuned on the {ARM} quarter as speech rather than as text, more is answered of: {', '.join(parts)}."
    )


def unplanted_sentence(found: Study) -> str:
    """What proximity does in a pool that nobody planted."""
    frame = effects.arms(found, section="unplanted")
    if frame.empty:
        return ""
    parts = [
        f"{arm} {points(gap.interval)}"
        for arm in ("proximate semantic", "proximate acoustic", "distant semantic", "distant acoustic")
        if (gap := effects.effect(frame, arm, RANDOM)) is not None
    ]
    return f"In the unplanted pool, harmful speech answered beyond a random quarter: {', '.join(parts)}."


def mechanism_sentences(found: Study) -> list[str]:
    """Dissociation, and where three ways of looking place the loss."""
    said = []
    inside = effects.dissociation(found, ARM)
    if {"probe", "projection", "gap"} <= set(inside):
        probe, projection = inside["probe"], inside["projection"]
        verdict = "not decided"
        if math.isfinite(probe.low) and math.isfinite(projection.low):
            kept, fell = probe.low > -0.05, projection.low > 0
            verdict = (
                "seen"
                if kept and fell
                else "not seen"
                if probe.high < -0.05 or projection.high <= 0
                else "not decided"
            )
        said.append(
            f"Dissociation after the {ARM} quarter, last third of the layers: {verdict}. The harm probe's accuracy changes by {points(probe)}, "
            f"the projection onto the refusal direction loses {_share(projection)} of the gap; the gap between harmful and benign speech itself "
            f"loses {_share(inside['gap'])}."
        )  # fmt: skip
        if "ambiguous probe" in inside:
            said.append(f"On ambiguous verbs alone the probe changes by {points(inside['ambiguous probe'])}.")
    n_layers = int(found.projections["layer"].max()) + 1 if len(found.projections) else 0
    late = effects.lateness(effects.layer_effects(found), ARM, n_layers)
    if late:
        parts = [f"{WAYS[way]} {points(interval)}" for way, interval in late.items()]
        signs = {interval.low > 0 for interval in late.values() if interval.low > 0 or interval.high < 0}
        verdict = (
            "those decided agree"
            if len(signs) == 1
            else "they disagree"
            if len(signs) == 2
            else "none decided"
        )
        said.append(f"Last third of the layers minus first, by each way of locating: {', '.join(parts)} ({verdict}).")  # fmt: skip
    return said


def encoder_sentences(found: Study) -> list[str]:
    """Whether encoder and projector were left as they were, and what a probe reads of harm off them."""
    columns = [name for name in ("fact encoder_changed", "fact projector_changed") if name in found.shares]
    if not columns or found.shares[columns].isna().all(axis=None):
        return []
    most = float(found.shares[columns].max().max())
    same = "the same, bit for bit" if most == 0 else f"what differs by up to {most:.2g}"
    said = [f"After every fine-tune that was looked into, encoder and projector hand over {same}."]
    parts = []
    for place in ("encoder", "projector"):
        mine = found.probes[(found.probes["set"] == place) & (found.probes["measure"] == "accuracy")]
        if len(mine):
            accuracy = t_interval(mine.groupby("unit")["value"].mean().tolist())
            parts.append(
                f"{place} {_share(accuracy)} (shuffled labels up to {_percent(float(mine['null_high'].mean()))})"
            )
    return [*said, f"Accuracy of a harm probe on them: {', '.join(parts)}."] if parts else said


def bridge_sentence(found: Study) -> str:
    """Whether the bridge changes what an axis does."""
    parts = []
    for one in effects.bridge_effects(found):
        each = ", ".join(f"{bridge} {points(interval)}" for bridge, interval in one.by_bridge.items())
        verdict = "differs" if one.apart.low > 0 or one.apart.high < 0 else "no difference shown"
        parts.append(f"{one.axis}: {each}; {verdict}, {points(one.apart)}")
    return f"Proximate minus random by bridge, {'; '.join(parts)}." if parts else ""


def defence_sentence(frame: pd.DataFrame) -> str:
    """Every defence at matched utility, and on how many units it reaches that."""
    if frame.empty:
        return ""
    parts = []
    for name in (name for name in NAMES if name in set(frame["method"])):
        mine = frame[frame["method"] == name]
        kept = mine.dropna(subset=["jsr"])
        if kept.empty:
            parts.append(f"{NAMES[name]} never reaches it")
            continue
        answered, over = (t_interval(kept[column].tolist()) for column in ("jsr", "over_refusal"))
        parts.append(
            f"{NAMES[name]} {_share(answered)} with {_share(over)} of benign speech refused ({len(kept)} of {len(mine)} units)"
        )
    return f"Harmful speech answered at matched utility: {'; '.join(parts)}."


def prompt_sentence(found: Study) -> str:
    """What the safety system prompt does, on harmful and on benign speech, before and after fine-tuning."""
    frame, parts = effects.arms(found), []
    for arm in (ALIGNED, ARM):
        mine = frame[frame["method"] == arm]
        if mine.empty:
            continue
        changes = [
            t_interval((mine[f"prompt {column}"] - mine[column]).tolist())
            for column in (JSR, "over_refusal speech")
        ]
        name = "aligned" if arm == ALIGNED else f"after the {arm} quarter"
        parts.append(f"{name}, harmful answered {points(changes[0])}, benign refused {points(changes[1])}")
    return f"The system prompt changes shares of speech: {'; '.join(parts)}."


def utility_sentence(frame: pd.DataFrame, columns: Sequence[str] = ("skill speech", "recognised speech", "retained speech")) -> str:  # fmt: skip
    """What was learnt and what is still heard and answered."""
    parts = []
    for arm in (ALIGNED, RANDOM, ARM):
        mine = frame[frame["method"] == arm]
        if len(mine):
            values = [
                f"{column.split()[0]} {_share(t_interval(mine[column].tolist()))}" for column in columns
            ]
            parts.append(f"{arm}: {', '.join(values)}")
    return f"Utility in speech: {'; '.join(parts)}."


def _share(interval: Interval) -> str:
    span = f" [{_percent(interval.low)}, {_percent(interval.high)}]" if math.isfinite(interval.low) else ""
    return f"{_percent(interval.value)}{span}"


def _percent(share: float) -> str:
    return "–" if not math.isfinite(share) else f"{100 * share:.1f} %".replace("-", "−")


def _number(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
