"""How far apart, layer by layer? Figures of drift, of harm recognition and of the modality gap, from the tables of their probes.

Every panel shows one measure by layer: a line with its 95 % interval, in grey what chance gives, dotted the ceiling. A table with several
streams is drawn for `resid_post`, or else for the first stream in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from interp.errors import ResultError
from interp.report import style
from interp.report.style import DOUBLE, new_figure, panel_letter, print_style, short_names

KINDS = {"harmful": (style.VERMILLION, "o"), "harmless": (style.SKY, "^")}
CHECKPOINTS = {"aligned": (style.ALIGNED, "o"), "tuned": (style.TUNED, "s")}


def drift_panels(table: pd.DataFrame, weights: pd.DataFrame | None = None) -> Figure:
    """What one fine-tune changed: size (a), CKA (b), subspaces (c), gap (d) and shift (e) along the refusal direction, weights (f).

    Args:
        table: of `Drift.to_frame`. weights: of `WeightDrift.to_frame`; its largest stack of layers is drawn.
    """
    table = one_stream(table)
    with print_style():
        figure = new_figure(DOUBLE, 4.4)
        (a, b, c), (d, e, f) = figure.subplots(2, 3)
        for kind, (colour, marker) in KINDS.items():
            curve(a, table, "relative change", kind, colour=colour, marker=marker, label=f"{kind} requests")
            curve(e, table, "shift along refusal", kind, colour=colour, marker=marker, chance=True)
        curve(b, table, "CKA", "", colour=style.PURPLE, marker="D", label="all requests", chance=True)
        curve(c, table, "subspace overlap", "", colour=style.PURPLE, marker="D", chance=True)
        for name, (colour, marker) in CHECKPOINTS.items():
            curve(
                d,
                table,
                "gap along refusal",
                name,
                colour=colour,
                marker=marker,
                label=f"{name} model",
                chance=True,
            )
        labels = (
            "change / norm",
            "CKA (debiased)",
            "overlap of leading PCs",
            "harmful − harmless (SD)",
            "tuned − aligned (SD)",
        )
        for axes, label in zip((a, b, c, d, e), labels, strict=True):
            axes.set_ylabel(label)
        a.set_ylim(bottom=0)
        for axes in (b, c):
            axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1.05)
        for axes in (d, e):
            axes.axhline(0, color=style.BLACK, linewidth=0.5)
        titles = ("activations", "similarity", "subspaces", "gap along refusal", "shift along refusal")
        _finish((a, b, c, d, e), table, titles)
        if weights is None:
            f.set_visible(False)
        else:
            _weights(figure, f, weights)
        legend_below(figure, (a, b, d))
    return figure


def recognition_curves(table: pd.DataFrame) -> Figure:
    """Accuracy (a) and AUROC (b) of harm probes by layer in every checkpoint, beside word counts and shuffled labels.

    Args:
        table: of `Recognition.to_frame`; with rows of `gap along refusal` these are drawn beside (c).
    """
    table = one_stream(table)
    names = list(table.loc[table["measure"] == "accuracy", "of"].unique())
    own = [name for name in names if not name.endswith(", aligned probe")]
    shown = dict(zip(own, short_names(own, width=34, lines=1), strict=True))
    with_gap = (table["measure"] == "gap along refusal").any()
    with print_style():
        figure = new_figure(DOUBLE, 2.9 + 0.12 * len(names))
        panels: Sequence[Axes] = figure.subplots(1, 3 if with_gap else 2)
        for axes, measure in zip(panels, ("accuracy", "AUROC"), strict=False):
            for index, name in enumerate(own):
                colour = style.ALIGNED if name == "aligned" else style.SERIES[(index - 1) % 6]
                marker = style.MARKERS[index % 6]
                curve(
                    axes, table, measure, name, colour=colour, marker=marker, label=shown[name], chance=True
                )
                curve(axes, table, measure, f"{name}, aligned probe", colour=colour, marker=marker,
                      label=f"{shown[name]}, read by the aligned model's probe", linestyle="--")  # fmt: skip
            words = table.loc[table["measure"] == measure]
            if "words_value" in words:
                axes.axhline(
                    words["words_value"].iloc[0], color=style.GREEN, linestyle=":", label="counts of words"
                )
            axes.set_ylim(None, 1.03)
            axes.set_ylabel(measure)
        if with_gap:
            for index, name in enumerate(own):
                colour = style.ALIGNED if name == "aligned" else style.SERIES[(index - 1) % 6]
                curve(
                    panels[2],
                    table,
                    "gap along refusal",
                    name,
                    colour=colour,
                    marker=style.MARKERS[index % 6],
                    chance=True,
                )
            panels[2].axhline(0, color=style.BLACK, linewidth=0.5)
            panels[2].set_ylabel("gap along refusal (SD)")
        _finish(panels, table)
        legend_below(figure, panels[:1], ncols=2)
    return figure


def modality_curves(table: pd.DataFrame, names: tuple[str, str]) -> Figure:
    """Distance of means (a), separability (b), CKA (c) and cosine of harm directions (d) between two modalities by layer.

    Args:
        table: of `ModalityGap.to_frame`. names: of the two modalities.
    """
    table = one_stream(table)
    measures = {
        "distance": "distance of means (spreads)",
        "AUROC": "AUROC of a linear probe",
        "CKA": "CKA (debiased)",
    }
    with print_style():
        figure = new_figure(DOUBLE, 4.2)
        panels = figure.subplots(2, 2).flatten()
        for axes, (measure, label) in zip(panels, measures.items(), strict=False):
            curve(axes, table, measure, "", colour=style.BLUE, marker="o", label="95 % interval", chance=True)
            axes.set_ylabel(label)
        panels[0].set_ylim(bottom=0)
        last = panels[3]
        curve(last, table, "cosine", "", colour=style.BLUE, marker="o", chance=True)
        curve(
            last,
            table,
            "cosine of halves",
            "",
            colour=style.VERMILLION,
            marker="s",
            label="other half of the prompts",
            linestyle="--",
        )
        halves = table[table["measure"] == "cosine of halves"]
        last.plot(
            halves["layer"], halves["ceiling"], color=style.BLACK, linestyle=":", label="split-half ceiling"
        )
        last.set_ylabel("cosine of harm directions")
        for axes in panels[1:]:
            axes.set_ylim(None, 1.05)
        if halves.empty:
            last.set_visible(False)
        _finish(panels, table)
        figure.suptitle(" and ".join(short_names(names, width=40, lines=1)), fontsize=8)
        legend_below(figure, panels)
    return figure


def one_stream(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of one stream, `resid_post` where there is one; raises ResultError for an empty table."""
    if table.empty:
        raise ResultError("nothing was measured: the table to draw is empty")
    streams = table["stream"].unique()
    return table[table["stream"] == ("resid_post" if "resid_post" in streams else streams[0])]


def curve(
    axes: Axes,
    table: pd.DataFrame,
    measure: str,
    of: str,
    *,
    colour: str,
    marker: str,
    label: str | None = None,
    linestyle: str = "-",
    chance: bool = False,
    start: float = 0,
) -> None:
    """Draw one measure of one checkpoint by layer with its interval and, where asked, its null in grey; nothing where it is missing.

    start: where layer 0 lies on the axis.
    """
    if table.empty:
        return
    rows = table[(table["measure"] == measure) & (table["of"] == of)].sort_values("layer")
    if rows.empty:
        return
    x = rows["layer"].to_numpy() + start
    if chance and rows["null_low"].notna().any():
        # Opaque, so that the nulls of several checkpoints, which lie on each other, show as one.
        named = axes.get_legend_handles_labels()[1]
        axes.fill_between(x, rows["null_low"], rows["null_high"], color=style.PALE, linewidth=0,
                          label=None if "chance, 95 %" in named else "chance, 95 %", zorder=0)  # fmt: skip
    axes.fill_between(x, rows["low"], rows["high"], color=colour, alpha=0.2, linewidth=0)
    every = max(1, len(x) // 8)
    axes.plot(
        x, rows["value"], color=colour, marker=marker, markevery=every, linestyle=linestyle, label=label
    )


def _weights(figure: Figure, axes: Axes, weights: pd.DataFrame) -> None:
    """Relative change of every matrix, layer by module, of the stack with the most parameters."""
    matrices = weights[(weights["layer"] >= 0) & weights["random_stable_rank"].notna()]
    if matrices.empty:
        axes.set_visible(False)
        return
    stack = matrices.groupby("stack")["size"].sum().idxmax()
    part = matrices[matrices["stack"] == stack]
    grid = part.pivot(index="module", columns="layer", values="relative").reindex(part["module"].unique())
    top = float(np.nanmax(grid.to_numpy())) or 1.0
    first = int(part["layer"].min())
    edges = np.arange(len(grid.columns) + 1) - 0.5 + first, np.arange(len(grid) + 1) - 0.5
    mesh = axes.pcolormesh(*edges, grid.to_numpy(), cmap="Blues", vmin=0, vmax=top, rasterized=True)
    bar = figure.colorbar(mesh, ax=axes, aspect=18, pad=0.02)
    bar.outline.set_linewidth(0.4)
    bar.ax.tick_params(labelsize=6)
    axes.set_yticks(range(len(grid)), [name.rpartition(".")[2] for name in grid.index], fontsize=6)
    axes.invert_yaxis()
    axes.tick_params(left=False)
    style.layer_axis(axes, int(grid.columns[-1]) + 1)
    panel_letter(axes, "f", r"weights: $\Vert$ΔW$\Vert$ / $\Vert$W$\Vert$")


def _finish(panels: Sequence[Axes], table: pd.DataFrame, titles: Sequence[str] = ("",) * 6) -> None:
    for letter, title, axes in zip("abcdef", titles, panels, strict=False):
        style.layer_axis(axes, int(table["layer"].max()) + 1)
        panel_letter(axes, letter, title)


def legend_below(figure: Figure, panels: Sequence[Axes], ncols: int = 4) -> None:
    """One legend under the figure for all panels, every label once."""
    found: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=ncols, handlelength=3)
