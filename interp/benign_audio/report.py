"""What does the study leave behind? Tables as CSV, figures as PNG and PDF, and a conclusion in words."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from interp.benign_audio import effects
from interp.benign_audio.conclusion import ARM, conclude, dose_sentence
from interp.benign_audio.defended import NAMES, READ
from interp.benign_audio.effects import ALIGNED, RANDOM, WAYS
from interp.benign_audio.nearness import AXES, carried
from interp.benign_audio.study import Study
from interp.defence.compare import means
from interp.report import benign_figures as draw
from interp.report import benign_layer_figures as layers
from interp.report.style import save_figure

SAFETY = {"jsr speech": "speech", "jsr text": "the same requests in writing"}
MAIN = [
    "jsr speech",
    "jsr text",
    "scored_jsr speech",
    "refused speech",
    "incoherent speech",
    "prompt jsr speech",
]
UTILITY = ["skill speech", "skill text", "recognised speech", "retained speech", "over_refusal speech", "prompt over_refusal speech"]  # fmt: skip
HELD = ["fact near_lexical", "fact near_acoustic", "fact items", "fact words"]
BY = ["section", "bridge", "pool", "modality", "share", "rule", "axis", "method"]
CLASS_ARMS = {
    ALIGNED: "aligned",
    RANDOM: "random",
    effects.NEAR: "nearest in words",
    effects.NEAR_LIKE_RANDOM: "nearest, classes of random",
    effects.RANDOM_LIKE_NEAR: "random, classes of nearest",
}
ARMS_INSIDE = (ARM, "proximate acoustic", RANDOM)


def save_study(found: Study, directory: Path) -> dict[str, list[str]]:
    """Write tables, figures and the conclusion into an existing directory; returns the conclusion's sentences by heading."""
    for name, table in tables(found).items():
        table.to_csv(directory / f"{name}.csv", index=False)
    for name, figure in figures(found).items():
        save_figure(figure, directory, name)
    sentences = conclude(found)
    body = "\n\n".join(
        f"**{heading}**\n\n" + "\n".join(f"- {sentence}" for sentence in part)
        for heading, part in sentences.items()
    )
    quick = "" if len(found.grid.units) > 1 else "**One unit: a look, no claim.**\n\n"
    (directory / "conclusion.md").write_text(
        f"# Benign fine-tuning of an audio model\n\n{quick}{body}\n\n{dose_sentence(found)}\n",
        encoding="utf-8",
    )
    return sentences


def tables(found: Study) -> dict[str, pd.DataFrame]:
    """All tables by file name; those of sections that were not run are left out."""
    # the aligned model answers the same for every seed of an organism
    aligned = found.shares["rule"] == ALIGNED
    once = found.shares[~(aligned & found.shares.duplicated(["rule", "bridge", "organism"]))]
    made = {
        "trials": found.shares,
        "safety": means(once, BY, MAIN),
        "utility": means(once, BY, UTILITY),
        "composition": means(found.shares, BY, HELD) if set(HELD) <= set(found.shares) else pd.DataFrame(),
        "distances": distances(found),
        "separations": found.separated,
        "effects": paired(found),
        "band": effects.beyond_band(found),
        "layers": effects.layer_effects(found),
        "projections": found.projections,
        "probes": found.probes,
        "tuning": found.tuning,
        "defences": effects.defences(found),
        "classes": found.classes,
    }
    if len(made["defences"]):
        made["defences_matched"] = means(made["defences"], ["method"], list(READ))
    planted = found.items[(found.items["pool"] == "planted") & (found.items["bridge"] == "linear")]
    parts = [
        carried(pool.dropna(axis=1, how="all")).assign(
            organism=pool["organism"].iloc[0], seed=pool["seed"].iloc[0]
        )
        for _, pool in planted.groupby(["organism", "seed"])
    ]
    made["axes"] = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    return {name: table for name, table in made.items() if len(table)}


def distances(found: Study) -> pd.DataFrame:
    """Distances by pool, axis and kind: mean, standard deviation, least and most over items, means over pools."""
    rows = []
    for (pool, organism, bridge, seed), items in found.items.groupby(
        ["pool", "organism", "bridge", "seed"], sort=False
    ):
        for axis in AXES:
            for kind in ("raw", "centred") if f"{axis} raw" in items else ("",):
                if (name := f"{axis} {kind}".strip()) in items:
                    values = items[name].dropna()
                    if len(values):
                        rows.append(
                            {"pool": pool, "organism": organism, "bridge": bridge, "seed": seed, "axis": axis, "kind": kind or "rank"}
                            | {"mean": values.mean(), "sd": values.std(), "min": values.min(), "max": values.max(), "n": len(values)}
                        )  # fmt: skip
    return pd.DataFrame(rows)


def paired(found: Study) -> pd.DataFrame:
    """Paired differences over units: every arm of a section against the section's random quarter and the aligned model."""
    rows = []
    tuned = found.shares[found.shares["rule"] != ALIGNED]
    for (section, share), _ in tuned.groupby(["section", "share"], sort=False):
        # defences are compared where as much is learnt; the band has several draws a unit
        if section in ("defences", "null band"):
            continue
        frame = effects.arms(found, section=str(section), share=share)
        for arm in frame["method"].unique():
            for baseline in (RANDOM, ALIGNED):
                for column in (*SAFETY, "refused speech", "skill speech"):
                    gap = effects.effect(frame, arm, baseline, column) if arm != baseline else None
                    if gap is not None:
                        one = gap.interval
                        rows.append(
                            {"section": section, "share": share, "arm": arm, "baseline": baseline, "column": column}
                            | {"difference": one.value, "low": one.low, "high": one.high, "n": one.n}
                        )  # fmt: skip
    return pd.DataFrame(rows)


def figures(found: Study) -> dict[str, Figure]:
    """All figures by file name; those of sections that were not run are left out."""
    frame = effects.arms(found)
    linear = (found.items["bridge"] == "linear") & found.items["seed"].isin(found.grid.seeds)
    first = found.items[linear].iloc[0]
    pools = {
        kind: _of_pool(found.items, first, kind) for kind in ("planted", "unplanted") if kind in set(found.items["pool"])
    }  # fmt: skip
    drawn = {
        "safety": draw.safety_bars(frame, SAFETY),
        "plane": draw.embedding_planes(_of_pool(found.plane, first, "planted")),
        **{f"distances_{kind}": draw.distance_histograms(items.dropna(axis=1, how="all")) for kind, items in pools.items()},
    }  # fmt: skip
    unplanted = effects.arms(found, section="unplanted")
    if len(unplanted):
        drawn["safety_unplanted"] = draw.safety_bars(unplanted, SAFETY)
    shown = found.shares[found.shares["section"].isin(["main", "shares"])]
    if shown["share"].nunique() > 1:
        others = shown[shown["section"] == "shares"]
        # the units that have every share
        kept = shown[shown["axis"].isin(["", *others["axis"]]) & shown["unit"].isin(others["unit"])]
        band = effects.null_band(found)
        low, high = band.edges(others["unit"].nunique())
        drawn["by_share"] = draw.by_share(kept, (band.centre + low, band.centre + high))
    projected = found.projections
    if len(projected):
        projected = projected[projected["section"].isin(["main", "aligned"])]
    if len(projected) and (projected["rule"] != "aligned").any():
        drawn["projection"] = layers.projection_by_layer(
            projected[projected["arm"].isin([*ARMS_INSIDE, "aligned"])]
        )
        drawn["shift"] = layers.shift_map(projected)
        probes = found.probes[found.probes["section"] == "main"]
        if ARM in set(probes["arm"]):
            drawn["recognition"] = layers.recognition_beside_refusal(
                probes, projected[projected["arm"] == ARM], ARM
            )
            drawn["ways"] = layers.three_ways(effects.layer_effects(found), ARM, WAYS)
    if len(found.classes):
        drawn["classes"] = draw.class_bars(found.classes, CLASS_ARMS)
    defended = effects.defences(found)
    if len(defended):
        drawn["defences"] = draw.defence_bars(
            # the aligned model answers the same for every seed of an organism
            defended[(defended["method"] != ALIGNED) | ~defended.duplicated(["method", "organism"])],
            NAMES,
        )
    bridges = effects.bridge_effects(found)
    if bridges:
        drawn["bridges"] = draw.bridge_bars([(one.axis, one.by_bridge) for one in bridges])
    return drawn


def _of_pool(table: pd.DataFrame, first: pd.Series, kind: str) -> pd.DataFrame:
    """The rows of one kind of pool of the first organism, bridge and seed."""
    about = {name: first[name] for name in ("organism", "bridge", "seed")} | {"pool": kind}
    for name, value in about.items():
        table = table[table[name] == value]
    return table
