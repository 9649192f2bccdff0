"""What does each modality add to a study's figures? Behaviour on the same requests, the gap, the transfer of directions, and the towers.

`towers` is the figure to read first: what fine-tuning left as it was, whether harm is still recognised and whether the model acts on it, from
encoder to decoder.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from interp.errors import ResultError
from interp.evals.verdicts import Outcome
from interp.modality_results import ModalityStudy, Transfer
from interp.report import style
from interp.report.drift_figures import curve, legend_below
from interp.report.panels import interval
from interp.report.style import DOUBLE, new_figure, panel_letter, short_names
from interp.report.tower_figures import LABELS, axis_length, draw_towers, finish_rows, tower_spans
from interp.results import StudyResult

NO_EDIT = ""


def behaviour(result: StudyResult) -> Figure:
    """Harmful requests refused (a) and answered (b), harmless ones refused (c), by modality and checkpoint."""
    study = modalities_of(result)
    names = short_names([found.name for found in study.checkpoints], width=26)
    figure = new_figure(DOUBLE, 2.6)
    panels = figure.subplots(1, 3, sharey=True)
    asked = (
        ("harmful, refused", "harmful", Outcome.REFUSED),
        ("harmful, answered", "harmful", Outcome.COMPLIED_HARMFUL),
        ("harmless, refused", "harmless", Outcome.REFUSED),
    )
    step = 0.7 / max(len(names), 2)
    for letter, axes, (title, kind, outcome) in zip("abc", panels, asked, strict=True):
        for i, found in enumerate(study.checkpoints):
            places = np.arange(len(study.names)) + (i - (len(names) - 1) / 2) * step
            rates = [found.behaviour[modality][kind].rate(outcome) for modality in study.names]  # type: ignore[index]
            colour, marker = _look(i)
            axes.plot(
                places, [100 * rate.estimate for rate in rates], color=colour, marker=marker, markersize=4,
                linestyle=":", linewidth=0.7, label=names[i],
            )  # fmt: skip
            for place, rate in zip(places, rates, strict=True):
                interval(axes, rate, float(place), horizontal=False)
        axes.set_xticks(range(len(study.names)), short_names(study.names, width=11))
        axes.set(xlim=(-0.6, len(study.names) - 0.4), ylim=(-3, 104), yticks=range(0, 101, 25))
        panel_letter(axes, letter, title)
    panels[0].set_ylabel("% of requests asked")
    legend_below(figure, panels[:1], ncols=3)
    return figure


def gap(result: StudyResult) -> Figure:
    """Distance of means, separability, CKA and cosine of harm directions by layer: one row a modality, beside the reference."""
    study = modalities_of(result)
    table = study.to_frame("gap")
    others = [name for name in study.names[1:] if not table.empty and (table["second"] == name).any()]
    if not others:
        raise ResultError("no gap was measured between modalities; the report's limits say why")
    names = short_names([found.name for found in study.checkpoints], width=26)
    figure = new_figure(DOUBLE, 0.7 + 1.55 * len(others))
    grid = figure.subplots(len(others), 4, squeeze=False, sharex=True)
    titles = (
        "distance (spreads)",
        "AUROC of a probe",
        "CKA of partners",
        "cosine of directions",
    )
    for row, second in zip(grid, others, strict=True):
        part = table[table["second"] == second]
        for i, found in enumerate(study.checkpoints):
            rows = part[part["checkpoint"] == found.name]
            colour, marker = _look(i)
            for axes, measure in zip(row, ("distance", "AUROC", "CKA", "cosine"), strict=True):
                curve(axes, rows, measure, "", colour=colour, marker=marker, label=names[i], chance=i == 0)
            if i == 0:
                halves = rows[rows["measure"] == "cosine of halves"].sort_values("layer")
                row[3].plot(
                    halves["layer"],
                    halves["ceiling"],
                    color=style.BLACK,
                    linestyle=":",
                    label="split-half ceiling",
                )
        (name,) = short_names([f"{study.reference} and {second}"], width=26, lines=1)
        row[0].text(0.03, 0.97, name, ha="left", va="top", fontsize=6.5, transform=row[0].transAxes)
        row[0].set_ylim(bottom=0)
        for axes in row[1:]:
            axes.set_ylim(None, 1.05)
    for letter, title, axes in zip("abcd", titles, grid[0], strict=True):
        panel_letter(axes, letter, title)
    for axes in grid.flatten():
        # a count that does not depend on the height: the layout measures labels before it sets the height
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
        style.layer_axis(axes, result.n_layers, "layer" if axes in grid[-1] else None)
    legend_below(figure, [grid[0][0], grid[0][3]], ncols=3)
    return figure


def transfer(result: StudyResult) -> Figure:
    """Requests more likely refused than not, direction from one modality (rows), requests in another (columns)."""
    study = modalities_of(result)
    aligned, *tuned = study.checkpoints
    names = short_names([found.name for found in tuned], width=24)
    panels: list[tuple[str, tuple[Transfer, ...], str, str]] = [
        ("aligned, ablated: harmful", aligned.transfer, "ablated", "harmful"),
        ("aligned, added: harmless", aligned.transfer, "added", "harmless"),
        *((f"{name}\nadded: harmful", found.transfer, "added", "harmful") for name, found in zip(names, tuned, strict=True)),
    ]  # fmt: skip
    sources = [NO_EDIT, *study.names, "random", "shuffled"]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(DOUBLE, rows * (0.75 + 0.21 * len(sources)) + 0.3)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    mesh = None
    for index, axes in enumerate(grid):
        if index >= len(panels):
            axes.set_visible(False)
            continue
        title, effects, edit, kind = panels[index]
        values = np.full((len(sources), len(study.names)), np.nan)
        for effect in effects:
            if effect.kind == kind and effect.edit in ("none", edit):
                values[sources.index(effect.of), study.names.index(effect.on)] = 100 * effect.refused.estimate
        mesh = axes.imshow(values, cmap="Blues", vmin=0, vmax=100, aspect="auto")
        for (y, x), value in np.ndenumerate(values):
            if not np.isnan(value):
                axes.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=6.5,
                          color="white" if value > 60 else "black")  # fmt: skip
        axes.axhline(0.5, color=style.BLACK, linewidth=0.6)
        axes.axhline(len(sources) - 2.5, color=style.BLACK, linewidth=0.6)
        shown = [
            "no edit",
            *(f"from {n}" for n in short_names(study.names, width=14, lines=1)),
            "random",
            "shuffled",
        ]
        axes.set_yticks(
            range(len(sources)), shown if index % columns == 0 else [""] * len(sources), fontsize=6.5
        )
        axes.set_xticks(range(len(study.names)), short_names(study.names, width=11), fontsize=6.5)
        axes.tick_params(length=0)
        panel_letter(axes, "abcdefgh"[index], title)
    assert mesh is not None
    bar = figure.colorbar(mesh, ax=list(grid[: len(panels)]), aspect=30, pad=0.02)
    bar.set_label("refused, %")
    bar.outline.set_linewidth(0.4)
    return figure


def towers(result: StudyResult) -> Figure:
    """Encoder, projector and decoder on one axis, one column a modality (`tower_figures`)."""
    study = modalities_of(result)
    drift, probes = study.to_frame("drift"), study.to_frame("recognition")
    tables = {modality: (_rows(drift, modality), _rows(probes, modality)) for modality in study.names}
    shown = {modality: pair for modality, pair in tables.items() if not all(part.empty for part in pair)}
    if not shown:
        raise ResultError("no drift was measured; the report's limits say why")
    names = [found.name for found in study.checkpoints[1:]]
    labels = list(zip(names, short_names(names, width=26), strict=True))
    figure = new_figure(DOUBLE, 4.6)
    widths = [2 + axis_length(tower_spans(*pair)) for pair in shown.values()]
    grid = figure.subplots(3, len(shown), squeeze=False, sharey="row", width_ratios=widths)
    for column, (modality, pair) in enumerate(shown.items()):
        draw_towers(list(grid[:, column]), *pair, labels)
        few = len(shown) <= 3
        (title,) = short_names([modality], width=24 if few else 16, lines=1)
        title += f"\n{'refused ' if few else ''}{_refused(study, modality)}"
        panel_letter(grid[0][column], "abcdefgh"[column], title)
    finish_rows(list(grid[:, 0]))
    for row, label in zip(grid, LABELS, strict=True):
        row[0].set_ylabel(label)
    legend_below(figure, [grid[1][0]], ncols=3)
    return figure


FIGURES: dict[str, Callable[[StudyResult], Figure]] = {
    "modality_behaviour": behaviour,
    "modality_towers": towers,
    "modality_transfer": transfer,
    "modality_gap": gap,
}
"""The figures of the section about modalities, in the order of the page."""


def drawable(result: StudyResult) -> list[str]:
    """Names of those FIGURES that this study has the numbers for."""
    study = result.modalities
    if study is None:
        return []
    wanted = {"modality_gap": study.gap, "modality_towers": (*study.drift, *study.recognition)}
    return [name for name in FIGURES if wanted.get(name, True)]


def modalities_of(result: StudyResult) -> ModalityStudy:
    """The study's modalities; raises ResultError where all of its prompts are text."""
    if result.modalities is None:
        raise ResultError("this study has no modalities: none of its prompts has an image or audio attached")
    return result.modalities


def _look(i: int) -> tuple[str, str]:
    """Colour and marker of checkpoint i, the aligned one first."""
    if i == 0:
        return style.ALIGNED, "o"
    return style.SERIES[(i - 1) % len(style.SERIES)], style.MARKERS[i % len(style.MARKERS)]


def _rows(table: pd.DataFrame, modality: str) -> pd.DataFrame:
    return table if table.empty else table[table["modality"] == modality]


def _refused(study: ModalityStudy, modality: str) -> str:
    """Harmful requests refused, aligned → tuned; of several fine-tunes the least and the most."""
    rates = [
        found.behaviour[modality]["harmful"].rate(Outcome.REFUSED).estimate for found in study.checkpoints
    ]
    after = [style.percent(share) for share in (min(rates[1:]), max(rates[1:]))]
    return f"{style.percent(rates[0])} → {'–'.join(dict.fromkeys(after))} %"
