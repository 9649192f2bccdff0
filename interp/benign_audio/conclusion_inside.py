"""What do the intervals say of the inside, in words? Dissociation, where refusal was lost by three ways of looking, encoder, bridges."""

from __future__ import annotations

from interp.benign_audio import effects
from interp.benign_audio.effects import RANDOM, WAYS
from interp.benign_audio.study import Study
from interp.benign_audio.words import capital, count, part_of, percent, share
from interp.defence.conclusion import points
from interp.evals.statistics import t_interval

ARM = effects.NEAR


def mechanism_sentences(found: Study) -> list[str]:
    """Dissociation, and where three ways of looking place the loss."""
    said = []
    for arm in (ARM, RANDOM):
        inside = effects.dissociation(found, arm)
        if inside is None:
            continue
        probes = "; ".join(
            f"{name} requests {effects.PROBES[name][2]} {points(change)} from {share(inside.before[name])} (bag of words {share(inside.words[name])})"
            for name, change in inside.probes.items()
        )
        verdict = f": {inside.verdict}" if arm == ARM else ""
        no_more = inside.no_more_than_words
        caveat = (
            f" {capital(', '.join(no_more))}: not shown to read more than a bag of words." if no_more else ""
        )
        said.append(
            f"Dissociation after the {arm} quarter, last third of the layers, {count(inside.projection.n, 'unit')}{verdict}. Harmful speech loses "
            f"{part_of(inside.projection)} of the aligned gap in projection onto the refusal direction (random directions up to {part_of(inside.chance)}), the "
            f"gap to benign speech {part_of(inside.gap)}. Harm probes, change against the aligned model: {probes}.{caveat}"
        )
    layers = effects.layer_effects(found)
    n_layers = int(found.projections["layer"].max()) + 1 if len(found.projections) else 0
    late = effects.lateness(layers, ARM, n_layers)
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
        said.append(
            f"Last third of the layers minus first, by each way of locating: {', '.join(parts)} ({verdict}; projection and component of a "
            "layer hold what all layers before it wrote, the others are of one layer alone)."
        )
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
        mine = mine[mine["bridge"] == "linear"]
        if len(mine):
            # every seed of an organism asks the same encoder the same
            accuracy = t_interval(mine.groupby("organism")["value"].mean().tolist())
            parts.append(
                f"{place} {share(accuracy)} (shuffled labels up to {percent(float(mine['null_high'].mean()))})"
            )
    return [*said, f"Accuracy of a harm probe on them: {', '.join(parts)}."] if parts else said


def bridge_sentences(found: Study) -> list[str]:
    """Whether the bridge changes what an axis does, and where refusal is lost."""
    parts = []
    for one in effects.bridge_effects(found):
        each = ", ".join(f"{bridge} {points(interval)}" for bridge, interval in one.by_bridge.items())
        verdict = "differs" if one.apart.low > 0 or one.apart.high < 0 else "no difference shown"
        parts.append(f"{one.axis}: {each}; {verdict}, {points(one.apart)}, {count(one.apart.n, 'unit')}")
    if not parts:
        return []
    said = [f"Proximate minus random by bridge, {'; '.join(parts)}."]
    sections = {"linear": "main", "mlp": "bridge mlp"}
    layers = {name: effects.layer_effects(found, section=section) for name, section in sections.items()}
    n_layers = int(found.projections["layer"].max()) + 1
    both = set.intersection(
        *(set(effects.late_by_unit(one, ARM, n_layers, "projection")) for one in layers.values())
    )
    profiles = []
    for name, section in sections.items():
        late = effects.lateness(layers[name], ARM, n_layers, both).get("projection")
        inside = effects.dissociation(found, ARM, section=section)
        if late is not None and inside is not None:
            profiles.append(
                f"{name}: lost in the last third {part_of(inside.projection)}, last minus first third {points(late)}"
            )
    return said + (
        [
            f"Projection lost after the {ARM} quarter by bridge, {'; '.join(profiles)} (the latter on the {count(len(both), 'unit')} where both bridges "
            "have early layers that tell harmful from benign speech)."
        ]
        if len(profiles) > 1
        else []
    )
