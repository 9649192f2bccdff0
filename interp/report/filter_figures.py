"""Where did a filter cut? Histograms of the distances on every axis, kept and left out."""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_lowercase

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.figure import Figure

from interp.report.style import (
    BLUE,
    DOUBLE,
    SINGLE,
    VERMILLION,
    new_figure,
    panel_letter,
    plain,
    print_style,
    short_names,
)

BINS = 40


def distance_histograms(
    distances: Mapping[str, Float[np.ndarray, " item"]], kept: Bool[np.ndarray, " item"]
) -> Figure:
    """One panel an axis: how many items lie how far from the harmful ones, those kept above those left out."""
    columns = min(2, len(distances))
    rows = -(-len(distances) // columns)
    names = short_names(list(distances), width=34)
    with print_style():
        figure = new_figure(SINGLE if columns == 1 else DOUBLE, 1.7 * rows + 0.45)
        grid = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axes, letter, name, values in zip(grid, ascii_lowercase, names, distances.values(), strict=False):
            edges = np.histogram_bin_edges(values, BINS)
            axes.hist(
                [values[~kept], values[kept]],
                edges,
                stacked=True,
                color=[VERMILLION, BLUE],
                label=["left out", "kept"],
            )
            axes.set_xlabel(plain("distance to the harmful items"))
            axes.set_ylabel("items")
            panel_letter(axes, letter, name)
        for unused in grid[len(distances) :]:
            unused.set_visible(False)
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower right", ncols=2)
    return figure
