"""In how many dimensions, and are they the same ones? The figure of subspace drift from the tables of its probe.

Spectra and overlaps are those of one layer, two thirds up unless another is named; both views are drawn wherever they differ.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from interp.errors import ResultError
from interp.report import style
from interp.report.style import DOUBLE, new_figure, panel_letter, print_style, short_names

VIEWS = {"raw": "--", "z-scored": "-"}
CHANGE = "Δ "


def subspace_panels(measures: pd.DataFrame, spectra: pd.DataFrame, layer: int | None = None) -> Figure:
    """Cumulative variance of the changes (a), their participation ratio by layer (b), components beyond a benign change (c), and overlaps (d).

    Args:
        measures, spectra: of `SubspaceDrift.to_frame` and `spectra_frame`. layer: of (a) and (d).

    Raises ResultError for an empty table or a layer that was not measured.
    """
    if measures.empty or spectra.empty:
        raise ResultError("nothing was measured: the table to draw is empty")
    layers = sorted(measures["layer"].unique())
    shown = layers[2 * (len(layers) - 1) // 3] if layer is None else layer
    if shown not in layers:
        raise ResultError(f"layer {layer} was not measured; there are {', '.join(map(str, layers))}")
    names = list(dict.fromkeys(spectra["of"]))
    changes = [name for name in names if name.startswith(CHANGE)] or names
    labels = dict(zip(changes, short_names(changes, width=30, lines=1), strict=True))
    with print_style():
        figure = new_figure(DOUBLE, 4.6)
        (a, b), (c, d) = figure.subplots(2, 2)
        for i, name in enumerate(changes):
            colour = style.SERIES[i % len(style.SERIES)]
            for view, line in VIEWS.items():
                label = labels[name] if view == "z-scored" else None
                part = spectra[
                    (spectra["of"] == name) & (spectra["view"] == view) & (spectra["layer"] == shown)
                ]
                a.plot(part["component"], part["cumulative"], color=colour, linestyle=line, label=label)
                _by_layer(b, measures, "participation ratio", name, view, colour, line)
                _by_layer(c, measures, "components beyond benign", name, view, colour, line)
        a.axhline(0.9, color=style.GREY, linewidth=0.5)
        a.set(xlabel="component", ylabel="cumulative share", ylim=(0, 1.03))
        panel_letter(a, "a", f"variance of the change, layer {shown}")
        b.set(ylabel="participation ratio", ylim=(0, None))
        panel_letter(b, "b", "dimensions")
        if c.lines:
            c.set(ylabel="components", ylim=(-0.2, None))
            panel_letter(c, "c", "more energy than benign")
        else:
            c.set_visible(False)
        for axes in (b, c):
            style.layer_axis(axes, int(measures["layer"].max()) + 1)
        _heatmap(figure, d, measures, changes, int(shown))
        a.plot([], [], color=style.BLACK, linestyle="--", label="raw (full: z-scored)")
        figure.legend(loc="outside lower center", ncols=4)
    return figure


def _by_layer(
    axes: Axes, table: pd.DataFrame, measure: str, of: str, view: str, colour: str, line: str
) -> None:
    rows = table[(table["measure"] == measure) & (table["of"] == of) & (table["view"] == view)]
    rows = rows.sort_values("layer")
    if rows.empty:
        return
    axes.plot(rows["layer"], rows["value"], color=colour, linestyle=line, marker="o", markersize=2)
    if view == "z-scored":
        axes.fill_between(rows["layer"], rows["low"], rows["high"], color=colour, alpha=0.2, linewidth=0)


def _heatmap(figure: Figure, axes: Axes, table: pd.DataFrame, names: list[str], layer: int) -> None:
    """Overlap of the z-scored changes, each pair; not drawn for one change."""
    rows = table[
        (table["measure"] == "subspace overlap") & (table["view"] == "z-scored") & (table["layer"] == layer)
    ]
    grid = np.eye(len(names))
    for i, first in enumerate(names):
        for j, second in enumerate(names):
            found = rows.loc[rows["of"] == f"{first} | {second}", "value"]
            if len(found):
                grid[i, j] = grid[j, i] = float(found.iloc[0])
            elif i < j and not len(rows.loc[rows["of"] == f"{second} | {first}"]):
                grid[i, j] = grid[j, i] = np.nan
    if len(names) < 2 or np.isnan(grid[~np.eye(len(names), dtype=bool)]).all():
        axes.set_visible(False)
        return
    mesh = axes.imshow(grid, cmap="Blues", vmin=0, vmax=1)
    for (i, j), value in np.ndenumerate(grid):
        if not np.isnan(value):
            dark = style.BLACK if value < 0.6 else "white"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=6, color=dark)
    short = short_names(names, width=16, lines=1)
    axes.set_xticks(range(len(names)), short, fontsize=6, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), short, fontsize=6)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    bar = figure.colorbar(mesh, ax=axes, aspect=18, pad=0.02)
    bar.ax.tick_params(labelsize=6)
    panel_letter(axes, "d", f"overlap of the changes, layer {layer}")
