"""Where does a behaviour come along when values or weights are put in? Figures of patching, from the tables of `PatchGrid.to_frame`.

Maps show the mean share of the gap by layer and column, with a dot where its 95 % interval leaves out zero. Curves show it by layer with the
interval, in grey what values of a shuffled pair do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_lowercase

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from interp.errors import ResultError
from interp.report import style
from interp.report.style import DOUBLE, SINGLE, new_figure, panel_letter, plain, print_style, short_names

MOST_LABELS = 24
SHARE = "share of the gap"
BLOCK_CURVES = {
    "alone": ("this block alone", style.BLACK, "o"),
    "up to": ("all blocks up to it", style.BLUE, "s"),
    "from": ("all blocks from it on", style.VERMILLION, "^"),
}


def patch_maps(
    tables: Sequence[pd.DataFrame],
    titles: Sequence[str] | None = None,
    *,
    labels: Sequence[str] | None = None,
) -> Figure:
    """One map a table, layers across and columns down, all on one colour scale.

    Args:
        titles: of the panels, by default the streams.
        labels: of the columns, in their order: the tokens of a prompt, say.
    """
    if not tables or any(table.empty for table in tables):
        raise ResultError("nothing was patched: a table to draw is empty")
    names = list(titles or [_title(table) for table in tables])
    rows = max(table["column"].nunique() for table in tables)
    across = min(len(tables), 3)
    down = -(-len(tables) // across)
    reach = max(float(np.nanmax(np.abs(table["value"].to_numpy()), initial=0.0)) for table in tables) or 1.0
    with print_style():
        height = 1.0 + min(max(rows, 4) * 0.13, 3.4)
        figure = new_figure(SINGLE if across == 1 else DOUBLE, down * height + 0.5)
        panels = figure.subplots(down, across, squeeze=False)
        mesh = None
        for i, (table, name) in enumerate(zip(tables, names, strict=True)):
            axes = panels[i // across][i % across]
            mesh = _map(axes, table, reach, labels if i % across == 0 else None)
            panel_letter(axes, ascii_lowercase[i % 26], plain(name))
        for axes in panels.flat[len(tables) :]:
            axes.set_visible(False)
        bar = figure.colorbar(mesh, ax=list(panels.flat), location="bottom", aspect=40, pad=0.02, label=SHARE)  # type: ignore[arg-type]
        bar.outline.set_linewidth(0.4)
    return figure


def _title(table: pd.DataFrame) -> str:
    return f"{table['stream'].iloc[0]}, {table['method'].iloc[0]}"


def _map(axes: Axes, table: pd.DataFrame, reach: float, labels: Sequence[str] | None):  # type: ignore[no-untyped-def]
    columns = list(dict.fromkeys(table["column"]))
    layers = sorted(table["layer"].unique())
    wide = {
        name: table.pivot(index="column", columns="layer", values=name).loc[columns, layers].to_numpy()
        for name in ("value", "low", "high")
    }
    edges = np.arange(len(layers) + 1) - 0.5 + layers[0], np.arange(len(columns) + 1) - 0.5
    axes.set_facecolor(style.PALE)
    mesh = axes.pcolormesh(
        *edges, np.ma.masked_invalid(wide["value"]), cmap="PuOr_r", norm=TwoSlopeNorm(0.0, -reach, reach), rasterized=True
    )  # fmt: skip
    row, column = np.nonzero((wide["low"] > 0) | (wide["high"] < 0))
    axes.scatter(np.array(layers)[column], row, s=1.5, color=style.BLACK, linewidths=0)
    every = -(-len(columns) // MOST_LABELS)
    shown = short_names(list(labels or columns), width=18, lines=1)
    axes.set_yticks(range(0, len(columns), every), shown[::every], fontsize=6)
    axes.set_ylim(len(columns) - 0.5, -0.5)
    axes.set_xlim(layers[0] - 0.5, layers[-1] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=2))
    axes.set_xlabel("layer")
    axes.set_ylabel(table["axis"].iloc[0])
    axes.tick_params(left=False)
    return mesh


def layer_curves(
    tables: Mapping[str, pd.DataFrame], *, column: str | None = None, null: pd.DataFrame | None = None
) -> Figure:
    """Mean share by layer of several grids, one line each.

    Args:
        column: of the grids, by default their first. null: the grid of shuffled pairs, drawn as a grey band of its intervals.
    """
    with print_style():
        figure = new_figure(SINGLE, 2.6)
        axes = figure.subplots()
        axes.axhline(0, color=style.GREY, linewidth=0.6)
        axes.axhline(1, color=style.GREY, linewidth=0.6, linestyle=":")
        if null is not None:
            rows = _column(null, column)
            axes.fill_between(rows["layer"], rows["low"], rows["high"], color=style.PALE, linewidth=0, label="shuffled pairs, 95 %")  # fmt: skip
        names = short_names(list(tables), width=40, lines=1)
        for i, (table, name) in enumerate(zip(tables.values(), names, strict=True)):
            _curve(axes, _column(table, column), name, style.SERIES[i % 6], style.MARKERS[i % 6])
        axes.set(xlabel="layer", ylabel=SHARE)
        handles, shown = axes.get_legend_handles_labels()
        figure.legend(handles, shown, loc="outside lower center", ncols=2)
    return figure


def _column(table: pd.DataFrame, column: str | None) -> pd.DataFrame:
    chosen = table["column"].iloc[0] if column is None else column
    rows = table[table["column"] == chosen].sort_values("layer")
    if rows.empty:
        raise ResultError(
            f"there is no column {column!r}; there are {', '.join(dict.fromkeys(table['column']))}"
        )
    return rows


def _curve(axes: Axes, rows: pd.DataFrame, label: str, colour: str, marker: str) -> None:
    axes.fill_between(rows["layer"], rows["low"], rows["high"], color=colour, alpha=0.2, linewidth=0)
    axes.plot(
        rows["layer"],
        rows["value"],
        color=colour,
        marker=marker,
        markevery=max(1, len(rows) // 12),
        label=label,
    )


def agreement_scatter(
    exact: Sequence[pd.DataFrame], estimate: Sequence[pd.DataFrame], notes: Sequence[str] | None = None
) -> Figure:
    """Raw effect of exact patching against its first-order estimate, a point a cell, a panel a stream; notes stand in the titles."""
    n = len(exact)
    with print_style():
        figure = new_figure(SINGLE if n < 3 else DOUBLE, 2.3 if n < 4 else 4.4)
        across = min(n, 3)
        panels = figure.subplots(-(-n // across), across, squeeze=False).flatten()
        for i, (a, b) in enumerate(zip(exact, estimate, strict=True)):
            axes = panels[i]
            both = a.merge(b, on=["layer", "column"], suffixes=("", "_estimate"))
            points = axes.scatter(
                both["raw_value"], both["raw_value_estimate"], c=both["layer"], s=5, cmap="viridis", linewidths=0, rasterized=True
            )  # fmt: skip
            low = float(both[["raw_value", "raw_value_estimate"]].min().min())
            high = float(both[["raw_value", "raw_value_estimate"]].max().max())
            axes.plot([low, high], [low, high], color=style.GREY, linewidth=0.6)
            axes.set(xlabel="exact", ylabel="attribution" if i % across == 0 else "")
            panel_letter(
                axes, ascii_lowercase[i], plain(f"{a['stream'].iloc[0]} {notes[i] if notes else ''}".strip())
            )
        for axes in panels[n:]:
            axes.set_visible(False)
        bar = figure.colorbar(points, ax=panels.tolist(), aspect=25, pad=0.02, label="layer")
        bar.outline.set_linewidth(0.4)
    return figure


def block_curves(tables: Mapping[str, pd.DataFrame], label: str = SHARE, *, value: str = "value") -> Figure:
    """What blocks of weights bring back, alone and cumulated from both ends; a panel a table.

    value: `value` for shares of the gap, `raw_value` for differences.
    """
    prefix = value.removesuffix("value")
    with print_style():
        figure = new_figure(SINGLE if len(tables) == 1 else DOUBLE, 2.8)
        panels = figure.subplots(1, len(tables), squeeze=False, sharey=True)[0]
        for i, (name, table) in enumerate(tables.items()):
            axes = panels[i]
            axes.axhline(0, color=style.GREY, linewidth=0.6)
            for column, (shown, colour, marker) in BLOCK_CURVES.items():
                rows = _column(table, column)
                rows = rows.assign(value=rows[value], low=rows[f"{prefix}low"], high=rows[f"{prefix}high"])
                _curve(axes, rows, shown, colour, marker)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=2))
            axes.set_xlabel("block")
            panel_letter(axes, ascii_lowercase[i], plain(name))
        panels[0].set_ylabel(label)
        handles, shown_labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, shown_labels, loc="outside lower center", ncols=2 if len(tables) == 1 else 3)
    return figure


def pattern_panels(
    patterns: Float[np.ndarray, "head query key"],
    heads: Sequence[tuple[int, int]],
    tokens: Sequence[str],
) -> Figure:
    """Attention patterns of some heads, queries down and keys across."""
    n = len(heads)
    across = min(n, 4)
    down = -(-n // across)
    names = short_names(list(tokens), width=12, lines=1)
    with print_style():
        figure = new_figure(SINGLE if across == 1 else DOUBLE, down * (2.2 if across < 3 else 1.9) + 0.5)
        panels = figure.subplots(down, across, squeeze=False).flatten()
        for i, (axes, pattern, (layer, head)) in enumerate(zip(panels, patterns, heads, strict=False)):
            axes.imshow(pattern, cmap="Blues", vmin=0, vmax=1, interpolation="none")
            axes.set_xticks(range(len(names)), names, rotation=90, fontsize=5)
            axes.set_yticks(range(len(names)), names if i % across == 0 else [""] * len(names), fontsize=5)
            axes.tick_params(length=0)
            panel_letter(axes, ascii_lowercase[i], f"layer {layer}, head {head}")
        for axes in panels[n:]:
            axes.set_visible(False)
    return figure


def restored_curves(table: pd.DataFrame) -> Figure:
    """Refusals, benign answers and the skill by number of modules put back, the best ones and random ones; mean and range over seeds.

    table: one row a seed, choice (best, random, all), k and draw; dashed lines are the aligned and the tuned model.
    """
    measures = [
        name for name in ("refused", "benign", "skill") if name in table and table[name].notna().any()
    ]
    titles = {
        "refused": "harmful, refused",
        "benign": "benign, answered",
        "skill": "skill of the fine-tune",
    }
    looks = {"best": ("best modules", style.VERMILLION, "o"), "random": ("random modules", style.SKY, "^")}
    with print_style():
        figure = new_figure(DOUBLE if len(measures) > 1 else SINGLE, 2.6)
        panels = figure.subplots(1, len(measures), squeeze=False, sharey=True)[0]
        for i, (axes, name) in enumerate(zip(panels, measures, strict=True)):
            for choice, (label, colour, marker) in looks.items():
                own = table[table["choice"] == choice].groupby(["k", "seed"])[name].mean().groupby("k")
                mean = own.mean()
                axes.fill_between(mean.index, own.min(), own.max(), color=colour, alpha=0.2, linewidth=0)
                axes.plot(mean.index, mean, color=colour, marker=marker, label=label)
            for which, colour in (("aligned", style.ALIGNED), ("tuned", style.GREY)):
                axes.axhline(
                    table[f"{name}_{which}"].mean(), color=colour, linestyle="--", linewidth=0.8, label=which
                )
            axes.set_xscale("log", base=2)
            ks = sorted(table.loc[table["choice"] == "best", "k"].unique())
            axes.set_xticks(ks, [str(k) for k in ks])
            axes.minorticks_off()
            axes.set(xlabel="modules put back", ylim=(-0.03, 1.03))
            panel_letter(axes, ascii_lowercase[i], titles[name])
        panels[0].set_ylabel("share of answers")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure
