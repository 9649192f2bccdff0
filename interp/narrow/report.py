"""What does a study of narrow fine-tuning leave behind? Tables as CSV, figures as PNG and PDF, and a conclusion in words."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from interp.defence.compare import means
from interp.narrow.conclusion import best_steering, by_strength
from interp.narrow.outcomes import over_anchor
from interp.narrow.study import Study
from interp.report import narrow_figures as draw
from interp.report.style import save_figure
from interp.report.subspace_figures import subspace_panels

MEASURED = ["end_text_misaligned", "end_text_cruel", "end_text_nonsense", "end_shown_misaligned", "end_face_misaligned", "end_loss", "end_moved"]  # fmt: skip


def save_study(found: Study, directory: Path) -> None:
    """Write tables, figures and the conclusion into an existing directory."""
    rows = found.outcomes
    tables = {
        "outcomes": rows,
        "primary": found.primary,
        "curves": found.curves,
        "rank": means(rows[rows["section"] == "rank"], ["consistent", "rank"], MEASURED),
        "mixture": means(rows[rows["section"] == "mixture"], ["share"], MEASURED),
        "steered": found.steered,
        "graded": found.graded,
        "examples": found.examples,
        **found.geometry,
    }
    for name, table in tables.items():
        if len(table):
            table.to_csv(directory / f"{name}.csv", index=False)
    for name, figure in figures(found).items():
        save_figure(figure, directory, name)
    body = "\n".join(f"- {sentence}" for sentence in found.sentences)
    quick = "" if len(found.grid.pairs) > 1 else "**One organism and seed: a look, no claim.**\n\n"
    (directory / "conclusion.md").write_text(f"# Narrow fine-tuning\n\n{quick}{body}\n", encoding="utf-8")


def figures(found: Study) -> dict[str, Figure]:
    """All figures of the study by file name."""
    rows, curves, grid = found.outcomes, found.curves, found.grid
    part = dict(iter(rows.groupby("section", sort=False)))
    anchor = (rows["section"] == "rank") & (rows["rank"] == grid.rank)
    consistent = rows[rows["consistent"]]
    drawn: dict[str, Figure] = {
        "rank": draw.by_rank(
            part["rank"],
            over_anchor(_consistent(part["rank"]), _consistent(part.get("steps", rows.iloc[:0]))),
        ),
        "whose": draw.whose(pd.concat([rows[anchor], part.get("character", rows.iloc[:0])])),
    }
    if {"rate", "scaling"} & set(part):
        drawn["rank_controls"] = draw.rank_controls(
            consistent[consistent["section"].isin(["rank", "rate", "scaling"])]
        )
    if "steps" in part:
        long = curves[
            (curves["section"] == "steps") | ((curves["section"] == "rank") & (curves["rank"] == grid.rank))
        ]
        drawn["steps"] = draw.over_steps(long[long["task"] == 0])
    if "mixture" in part:
        drawn["mixture"] = draw.mixtures(part["mixture"], part.get("count", rows.iloc[:0]))
    if bars := mitigation_bars(found):
        drawn["mitigations"] = draw.mitigations(bars, by_strength(found.steered))
    if "life" in part:
        drawn["lives"] = draw.lives(curves[(curves["section"] == "life") & curves["last"]])
    if found.geometry:
        first = grid.pairs[0]
        pair = f"{first[0]}/{first[1]}"
        measures, spectra, points = (
            found.geometry[name][found.geometry[name]["pair"] == pair]
            for name in ("measures", "spectra", "scatter")
        )
        drawn["subspaces"] = subspace_panels(_in_writing(measures), _in_writing(spectra))
        drawn["scatter"] = draw.scatter(points)
    if "tower_measures" in found.geometry:
        measures, spectra = (found.geometry[name] for name in ("tower_measures", "tower_spectra"))
        drawn["tower"] = subspace_panels(measures[measures["pair"] == pair], spectra[spectra["pair"] == pair])
    return drawn  # fmt: skip


def _consistent(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["consistent"].astype(bool)]


def _in_writing(table: pd.DataFrame) -> pd.DataFrame:
    """What concerns questions in writing, without saying so in every name."""
    rows = table[table["of"].str.endswith(" [text]")]
    return rows.assign(of=rows["of"].str.removesuffix(" [text]"))


def mitigation_bars(found: Study) -> dict[str, pd.DataFrame]:
    """What is said elsewhere without and under each mitigation, one row a pair."""
    curves = found.curves[found.curves["last"]]
    repair = curves[curves["section"] == "repair"]
    anchor = curves[
        (curves["section"] == "rank") & curves["consistent"] & (curves["rank"] == found.grid.rank)
    ]
    bars = {"none": anchor, "benign narrow": repair[repair["task"] == 1]}
    for name, life in (("steering", ""), ("both", "repair")):
        best = best_steering(found.steered, life)
        if len(best):
            strength = best["strength"].iloc[0]
            text, face = (
                table[(table["vector"] == "difference") & (table["strength"] == strength)].set_index("pair")
                for table in (by_strength(found.steered, life, form) for form in ("text", "face"))
            )
            bars[name] = pd.DataFrame(
                {
                    "text_misaligned": text["misaligned"],
                    "text_helpful": text["helpful"],
                    "face_misaligned": face["misaligned"],
                }
            )
    defended = curves[curves["section"] == "defended"]
    for method, group in defended.groupby("method", sort=False):
        bars[draw.METHODS[str(method)][0]] = group
    return {name: table for name, table in bars.items() if len(table)}  # fmt: skip
