"""What does steering buy, and what does it cost? Figures of paper D from tables; only means and intervals are computed here.

`points`: one row an arm, seed and strength: `refused` (harmful requests), `over_refusal` and `correct` (benign ones), and against the
unsteered model of the same seed `gained` (refusals), `cost` (over-refusal) and `lost` (right answers). Bands and crosses are 95 %
t-intervals over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from interp.errors import ResultError
from interp.evals.statistics import Interval, t_interval
from interp.report import style
from interp.report.style import (
    BLACK,
    BLUE,
    DOUBLE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SINGLE,
    SKY,
    VERMILLION,
    layer_axis,
    new_figure,
    panel_letter,
    print_style,
)

ARMS: dict[str, tuple[str, str, str]] = {
    "none": ("no steering", BLACK, "*"),
    "prompt": ("defence prompt", PURPLE, "P"),
    "plain": ("mean difference, text", BLUE, "^"),
    "target": ("mean difference, same modality", SKY, "v"),
    "unablated": ("SARSteer, λ = 0", ORANGE, "D"),
    "sarsteer": ("SARSteer", VERMILLION, "s"),
    "conditional": ("SARSteer, conditional", GREEN, "o"),
    "random": ("random, equal norm", GREY, "X"),
}
"""Label, colour and marker of each arm."""


def known_arms(frame: pd.DataFrame) -> list[str]:
    """The arms of a table in drawing order; raises ResultError for an empty table or an arm that has no style."""
    there = set(frame["arm"])
    if not there or there - set(ARMS):
        raise ResultError(f"a table of arms {sorted(there)} cannot be drawn; known are {', '.join(ARMS)}")
    return [arm for arm in ARMS if arm in there]


def operating_curves(points: pd.DataFrame, read: pd.DataFrame, cost: str = "over-refusal") -> Figure:
    """Refusals gained against over-refusal (a) and against right answers lost (b) along the strength, and read at equal cost (c).

    Args:
        read: one row an arm, seed and `cost`, the gain there: `gained`, NaN where an arm has no point at or below that cost.
        cost: what the columns of `read` are equal in.
    """
    with print_style():
        figure = new_figure(DOUBLE, 3.0)
        left, middle, right = figure.subplots(1, 3)
        for axes, column, label in (
            (left, "cost", "more benign refused"), (middle, "lost", "fewer benign answered rightly"),
        ):  # fmt: skip
            for arm in known_arms(points):
                _path(axes, points[points["arm"] == arm], column, arm)
            axes.axhline(0, color=BLACK, linewidth=0.5, zorder=0)
            axes.axvline(0, color=BLACK, linewidth=0.5, zorder=0)
            axes.set_xlabel(label)
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            _percent(axes, "more harmful refused")
        costs = sorted(read["cost"].unique())
        known = known_arms(read)
        for i, arm in enumerate(known):
            at = np.arange(len(costs)) + (i - (len(known) - 1) / 2) * 0.8 / len(known)
            for x, level in zip(at, costs, strict=True):
                values = read.loc[(read["arm"] == arm) & (read["cost"] == level), "gained"]
                _mark(right, values, float(x), arm)
        right.axhline(0, color=BLACK, linewidth=0.5, zorder=0)
        right.set_xticks(range(len(costs)), [f"+{100 * level:g} %" for level in costs])
        right.set_xlabel(f"at this {cost}")
        _percent(right, "more harmful refused")
        for axes, letter in zip((left, middle, right), "abc", strict=True):
            panel_letter(axes, letter)
        _legend(figure, (left, right))
    return figure


def attack_success(points: pd.DataFrame) -> Figure:
    """Harmful requests answered (attack success, not one minus refusal) against benign ones refused, every arm and strength.

    points: with `jsr`, `over_refusal`, `arm`, `strength` and `seed`, the unsteered model among them.
    """
    with print_style():
        figure = new_figure(SINGLE, 3.0)
        axes = figure.subplots()
        for arm in known_arms(points):
            _path(axes, points[points["arm"] == arm], "over_refusal", arm, "jsr")
        axes.set_xlabel("benign requests refused")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        _percent(axes, "harmful requests answered")
        axes.set_ylim(bottom=-0.02)
        _legend(figure, (axes,), 2)
    return figure


def _path(axes: Axes, frame: pd.DataFrame, column: str, arm: str, height: str = "gained") -> None:
    """The mean over seeds from strength to strength, a cross of intervals at each."""
    label, colour, marker = ARMS[arm]
    strengths = sorted(frame["strength"].unique())
    x, y = (
        [t_interval(frame.loc[frame["strength"] == s, name].tolist()) for s in strengths]
        for name in (column, height)
    )
    axes.errorbar(
        [f.value for f in x], [f.value for f in y], xerr=_reach(x), yerr=_reach(y), color=colour, marker=marker,
        markersize=3, linewidth=1.0, elinewidth=0.5, label=label,
    )  # fmt: skip


def _reach(found: Sequence[Interval]) -> np.ndarray:
    """Error bars of intervals; none where a single seed has no interval."""
    bars = np.array([[f.value - f.low for f in found], [f.high - f.value for f in found]])
    return np.nan_to_num(np.maximum(bars, 0.0))


def _mark(axes: Axes, values: pd.Series, at: float, arm: str) -> None:
    """The mean over seeds with its interval; a dash at the bottom where no seed has a value."""
    label, colour, marker = ARMS[arm]
    kept = values.dropna().to_numpy(dtype=float)
    if not len(kept):
        return
    found = t_interval(kept)
    named = label not in axes.get_legend_handles_labels()[1]
    axes.errorbar(
        at, found.value, yerr=_reach([found]), color=colour, marker=marker, markersize=4, linewidth=0.9, linestyle="none",
        label=label if named else None,
    )  # fmt: skip


def strength_curves(points: pd.DataFrame) -> Figure:
    """Harmful requests refused (a), benign ones refused (b) and answered rightly (c) by strength, with their intervals over prompts.

    points: one row an arm and strength; `refused`, `over_refusal` and `correct`, each with `_low` and `_high`.
    """
    panels = {
        "refused": "harmful refused",
        "over_refusal": "benign refused",
        "correct": "benign answered rightly",
    }
    known = [arm for arm in known_arms(points) if arm != "none"]
    base = points[points["arm"] == "none"]
    with print_style():
        figure = new_figure(DOUBLE, 2.4)
        for axes, letter, (column, label) in zip(figure.subplots(1, 3), "abc", panels.items(), strict=True):
            for _, row in base.iterrows():
                axes.axhline(row[column], color=BLACK, linewidth=0.7, linestyle=":", label="no steering")
            for arm in known:
                name, colour, marker = ARMS[arm]
                part = points[points["arm"] == arm].sort_values("strength")
                axes.plot(part["strength"], part[column], color=colour, marker=marker, label=name)
                axes.fill_between(
                    part["strength"],
                    part[f"{column}_low"],
                    part[f"{column}_high"],
                    color=colour,
                    alpha=0.15,
                    linewidth=0,
                )
            if len(set(points["strength"])) > 2:
                axes.set_xscale("log")
            axes.set_xlabel("strength α")
            _percent(axes, label)
            axes.set_ylim(-0.02, 1.02)
            panel_letter(axes, letter)
        _legend(figure, (axes,))
    return figure


def modality_bars(frame: pd.DataFrame) -> Figure:
    """Harmful requests refused (a) and benign ones refused (b), by modality, without steering and under the defence prompt.

    frame: columns arm, modality, seed, refused, over_refusal.
    """
    modalities = list(dict.fromkeys(frame["modality"]))
    known = known_arms(frame)
    with print_style():
        figure = new_figure(DOUBLE, 2.5)
        panels = figure.subplots(1, 2)
        for axes, letter, column in zip(panels, "ab", ("refused", "over_refusal"), strict=True):
            for i, arm in enumerate(known):
                for j, modality in enumerate(modalities):
                    part = frame[(frame["arm"] == arm) & (frame["modality"] == modality)]
                    _mark(axes, part[column], j + (i - (len(known) - 1) / 2) * 0.25, arm)
            axes.set_xticks(range(len(modalities)), [name.replace(" and ", "\nand ") for name in modalities])
            axes.set_xlim(-0.5, len(modalities) - 0.5)
            _percent(axes, f"{'harmful' if column == 'refused' else 'benign'} requests refused")
            axes.set_ylim(-0.02, 1.02)
            panel_letter(axes, letter)
        _legend(figure, panels[:1])
    return figure


def cosine_by_layer(table: pd.DataFrame) -> Figure:
    """Cosines of pairs of vectors at each layer, mean and 95 % interval over seeds.

    table: columns pair, layer, seed, cosine; with a column `chance` (95 % of random pairs lie within ± that) the band is drawn.
    """
    if table.empty:
        raise ResultError("there are no cosines to draw: the table is empty")
    with print_style():
        figure = new_figure(SINGLE, 2.9)
        axes = figure.subplots()
        if "chance" in table:
            band = table.groupby("layer")["chance"].mean()
            axes.fill_between(
                band.index, -band, band, color=style.PALE, linewidth=0, label="random pairs, 95 %", zorder=0
            )
        for i, (pair, part) in enumerate(table.groupby("pair", sort=False)):
            _line(axes, part, "cosine", str(pair), style.SERIES[i % 6], style.MARKERS[i % 6])
        axes.axhline(0, color=BLACK, linewidth=0.5)
        layer_axis(axes, int(table["layer"].max()) + 1)
        axes.set_ylim(min(-0.2, axes.get_ylim()[0]), 1.05)
        axes.set_ylabel("cosine")
        figure.legend(loc="outside lower center", ncols=1)
    return figure


def safe_space(table: pd.DataFrame) -> Figure:
    """Angle of the refusal vectors to the safe space (a) and the share of their energy inside it, beside chance (b), by layer.

    table: of `SARSteer.to_frame`, with a column `seed` where there are several.
    """
    table = table if "seed" in table else table.assign(seed=0)
    with print_style():
        figure = new_figure(DOUBLE, 2.4)
        left, right = figure.subplots(1, 2)
        _line(left, table, "angle", "refusal vector to safe space", VERMILLION, "s")
        left.axhline(90, color=GREY, linewidth=0.6, linestyle=":")
        left.set_ylim(0, 95)
        left.set_ylabel("angle (degrees)")
        _line(right, table, "inside", "share of energy in the safe space", VERMILLION, "s")
        _line(right, table, "explained", "benign variance it explains", BLUE, "o")
        _line(right, table, "chance", "random vector, k / d_model", GREY, "X")
        right.set_ylim(-0.02, 1.05)
        right.set_ylabel("share")
        for axes, letter in ((left, "a"), (right, "b")):
            layer_axis(axes, int(table["layer"].max()) + 1)
            panel_letter(axes, letter)
        _legend(figure, (right,), 3)
    return figure


def ablations(frames: Mapping[str, pd.DataFrame], label: str) -> Figure:
    """One panel a setting: what is gained at equal cost over its values, mean and 95 % interval over seeds.

    Args:
        frames: by the setting's name, columns `value`, `seed` and `gained`. label: of the gain.
    """
    with print_style():
        columns = min(4, len(frames))
        rows = -(-len(frames) // columns)
        figure = new_figure(DOUBLE, 2.0 * rows + 0.3)
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
        for unused in panels[len(frames) :]:
            unused.set_visible(False)
        for axes, letter, (name, frame) in zip(panels, "abcdefgh", frames.items(), strict=False):
            values = list(dict.fromkeys(frame["value"]))
            found = [frame.loc[frame["value"] == value, "gained"].dropna().tolist() for value in values]
            shown = [(i, t_interval(kept)) for i, kept in enumerate(found) if kept]
            axes.errorbar(
                [i for i, _ in shown], [f.value for _, f in shown], yerr=_reach([f for _, f in shown]), color=VERMILLION,
                marker="s", linewidth=1.0, elinewidth=0.6,
            )  # fmt: skip
            names = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
            every = max(1, len(names) // 6)
            axes.set_xticks(range(0, len(names), every), names[::every])
            axes.axhline(0, color=BLACK, linewidth=0.5, zorder=0)
            axes.set_xlabel(name)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            panel_letter(axes, letter)
        for axes in panels[::columns]:
            axes.set_ylabel(label)
    return figure


def _line(axes: Axes, frame: pd.DataFrame, column: str, label: str, colour: str, marker: str) -> None:
    """A measure by layer, its interval over seeds as a band."""
    layers = sorted(frame["layer"].unique())
    found = [t_interval(frame.loc[frame["layer"] == layer, column].tolist()) for layer in layers]
    axes.plot(
        layers, [f.value for f in found], color=colour, marker=marker, markersize=3, label=label,
        markevery=max(1, len(layers) // 8),
    )  # fmt: skip
    axes.fill_between(
        layers, [f.low for f in found], [f.high for f in found], color=colour, alpha=0.15, linewidth=0
    )


def _percent(axes: Axes, label: str) -> None:
    axes.set_ylabel(label)
    axes.yaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))  # whole percents, as they are written
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _legend(figure: Figure, panels: Sequence[Axes], columns: int = 4) -> None:
    found: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=columns)
