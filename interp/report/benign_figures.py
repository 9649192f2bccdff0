"""How does benign fine-tuning look from outside? Figures of paper A from tables: answers, distances, defences.

Tables are those of `interp.benign_audio.study`. Points are means with 95 % t-intervals over units (organism × seed), faint dots units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from interp.errors import ResultError
from interp.evals.statistics import Interval, t_interval
from interp.report.style import (
    ALIGNED,
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
    new_figure,
    panel_letter,
    print_style,
)

AXES: dict[str, tuple[str, str]] = {
    "semantic": ("semantic", VERMILLION),
    "acoustic": ("acoustic", BLUE),
    "mixed": ("mixed encoder", PURPLE),
    "combined": ("combined rank", ORANGE),
    "internal": ("own encoder", GREEN),
    "projector": ("own projector", SKY),
}
"""Label and colour of each axis."""
RULES: dict[str, tuple[str, str]] = {
    "proximate": ("nearest to harm", "o"),
    "distant": ("farthest", "s"),
    "matched": ("random, matched", "^"),
    "random": ("random", "D"),
}
"""Label and marker of each rule."""
CELLS = {"both": VERMILLION, "lexical": ORANGE, "acoustic": BLUE, "neither": GREY, "harmful": BLACK}


def mean_point(
    axes: Axes, values: Sequence[float], at: float, colour: str, marker: str = "o", label: str | None = None, reach: float = 0.1
) -> None:  # fmt: skip
    """Units as faint dots, `reach` to each side, their mean with its interval beside them; nothing where there is no finite value."""
    kept = [value for value in values if math.isfinite(value)]
    if not kept:
        axes.annotate("not\nreached", (at, 0.02), ha="center", fontsize=6, color=colour)
        return
    found = t_interval(kept)
    spread = np.linspace(-reach, reach, len(kept)) if len(kept) > 1 else np.zeros(1)
    axes.plot(at + spread, kept, ".", color=colour, alpha=0.4, markersize=3, markeredgewidth=0)
    bar = [[found.value - found.low], [found.high - found.value]] if len(kept) > 1 else None
    axes.errorbar(
        at, found.value, yerr=bar, color=colour, marker=marker, capsize=2, linewidth=1, markersize=4.5, label=label
    )  # fmt: skip


def safety_bars(shares: pd.DataFrame, columns: Mapping[str, str]) -> Figure:
    """Harmful requests answered after each quarter, a panel a column of shares; dashed the aligned model, in brackets units.

    Args:
        shares: one row an arm (`rule`, `axis`) and unit, the aligned model among them. columns: panel title by column.
    """
    order = _arms(shares)
    with print_style():
        figure = new_figure(DOUBLE, 2.9)
        panels = np.atleast_1d(figure.subplots(1, len(columns), sharey=True))
        for axes, letter, (column, title) in zip(panels, "abcd", columns.items(), strict=False):
            aligned = shares.loc[shares["rule"] == "aligned", column]
            if len(aligned):
                axes.axhline(aligned.mean(), color=ALIGNED, linestyle="--", linewidth=0.9, label="aligned")
            for i, (rule, axis) in enumerate(order):
                mine = shares[(shares["rule"] == rule) & (shares["axis"] == axis)]
                colour = AXES[axis][1] if axis else BLACK
                mean_point(axes, mine[column].tolist(), i, colour, RULES[rule][1])
            axes.set_xticks(
                range(len(order)),
                [_arm_label(shares, rule, axis) for rule, axis in order],
                rotation=45,
                ha="right",
                rotation_mode="anchor",
                fontsize=6,
            )
            axes.set_xlim(-0.6, len(order) - 0.4)
            panel_letter(axes, letter, title)
        _percent(panels[0], "harmful requests answered")
        panels[0].legend(loc="upper right")
    return figure


def by_share(shares: pd.DataFrame, band: tuple[float, float], column: str = "jsr speech") -> Figure:
    """Harmful speech answered against the share of the pool that is trained on, a panel an axis; grey the band of random quarters."""
    axes_there = [axis for axis in AXES if axis in set(shares["axis"])]
    if not axes_there:
        raise ResultError("no axis to draw: the table has no proximate or distant subset")
    with print_style():
        figure = new_figure(DOUBLE, 2.4)
        panels = np.atleast_1d(figure.subplots(1, len(axes_there), sharey=True))
        for panel, letter, axis in zip(panels, "abcdef", axes_there, strict=False):
            if all(math.isfinite(edge) for edge in band):
                panel.axhspan(
                    *band, color=GREY, alpha=0.2, linewidth=0, label="means of random quarters, 95 %"
                )
            for shift, rule in zip((-0.012, 0, 0.012), ("proximate", "random", "distant"), strict=True):
                mine = shares[
                    (shares["rule"] == rule) & (shares["axis"] == ("" if rule == "random" else axis))
                ]
                mine = mine.assign(share=mine["share"] + shift)  # side by side, where they lie on each other
                colour = {"proximate": AXES[axis][1], "random": BLACK, "distant": GREY}[rule]
                _line(panel, mine, "share", column, colour, RULES[rule][1], RULES[rule][0])
            panel.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            panel.set_xlabel("share of the pool")
            panel_letter(panel, letter, AXES[axis][0])
        _percent(panels[0], "harmful speech answered")
        handles = {
            label: handle
            for panel in panels
            for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5)
    return figure


def distance_histograms(items: pd.DataFrame) -> Figure:
    """Distances of one pool's items to harmful speech by cell, a panel an axis. items: of `nearness.measure`."""
    there = [axis for axis in AXES if axis in items]
    with print_style():
        rows = math.ceil(len(there) / 3)
        figure = new_figure(DOUBLE, 1.7 * rows + 0.3)
        panels = figure.subplots(rows, 3, squeeze=False).ravel()
        for panel, letter, axis in zip(panels, "abcdef", there, strict=False):
            edges = np.histogram_bin_edges(items[axis], 30)
            for cell in (cell for cell in CELLS if cell in set(items["cell"])):
                panel.hist(
                    items.loc[items["cell"] == cell, axis],
                    edges,
                    histtype="step",
                    color=CELLS[cell],
                    label=cell,
                )
            panel.set_xlabel("mean rank" if axis == "combined" else "1 − cosine to the nearest")
            panel_letter(panel, letter, AXES[axis][0])
        for panel in panels[len(there) :]:
            panel.set_axis_off()
        panels[0].set_ylabel("items")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def embedding_planes(plane: pd.DataFrame) -> Figure:
    """One pool's items and the harmful ones in the two leading components of their embeddings, a panel an axis."""
    there = [axis for axis in AXES if axis in set(plane["axis"])]
    with print_style():
        rows = math.ceil(len(there) / 3)
        figure = new_figure(DOUBLE, 2.1 * rows + 0.3)
        panels = figure.subplots(rows, 3, squeeze=False).ravel()
        for panel, letter, axis in zip(panels, "abcdef", there, strict=False):
            for cell, colour in CELLS.items():
                mine = plane[(plane["axis"] == axis) & (plane["cell"] == cell)]
                panel.plot(mine["x"], mine["y"], ".", color=colour, markersize=2, alpha=0.5, label=cell)
            panel.set_xticks([])
            panel.set_yticks([])
            panel_letter(panel, letter, AXES[axis][0])
        for panel in panels[len(there) :]:
            panel.set_axis_off()
        figure.legend(
            *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, markerscale=3
        )
    return figure


def defence_bars(frame: pd.DataFrame, names: Mapping[str, str]) -> Figure:
    """Harmful speech answered (a), benign speech refused (b) and answered rightly (c) at matched utility, a point a defence."""
    known = [name for name in names if name in set(frame["method"])]
    if not known:
        raise ResultError("a table of defences without any of them cannot be drawn")
    with print_style():
        figure = new_figure(DOUBLE, 2.6)
        panels = figure.subplots(1, 3, sharey=True)
        titles = {
            "jsr": "harmful answered",
            "over_refusal": "benign refused",
            "retained": "benign answered",
        }
        for axes, letter, (column, title) in zip(panels, "abc", titles.items(), strict=True):
            for i, name in enumerate(known):
                colour = {"aligned": ALIGNED, "plain": GREY, "end": GREY}.get(name, VERMILLION)
                mean_point(axes, frame.loc[frame["method"] == name, column].tolist(), i, colour)
            axes.set_xticks(
                range(len(known)), [names[n] for n in known], rotation=40, ha="right", rotation_mode="anchor"
            )
            axes.set_xlim(-0.6, len(known) - 0.4)
            panel_letter(axes, letter, title)
        _percent(panels[0], "share of speech")
    return figure


def class_bars(classes: pd.DataFrame, arms: Mapping[str, str]) -> Figure:
    """Harmful speech answered by class of what is asked about (a) and how much of each subset speaks of the class (b); one colour an arm.

    Args:
        classes: one row an arm, unit and class with `answered`, `held` and `n`. arms: label of each arm shown, at most five.
    """
    there = [arm for arm in arms if arm in set(classes["arm"])]
    if not there:
        raise ResultError(f"none of the arms {', '.join(arms)} was asked by class")
    shown = classes[classes["class"] != "all"]
    order = shown.groupby("class")["n"].mean().sort_values(ascending=False)
    styles = ((ALIGNED, "*"), (BLACK, "D"), (VERMILLION, "o"), (ORANGE, "^"), (PURPLE, "v"))
    with print_style():
        figure = new_figure(DOUBLE, 4.2)
        panels = figure.subplots(2, 1, sharex=True)
        for axes, letter, column, title in zip(
            panels, "ab", ("answered", "held"), ("harmful speech answered", "of the subset"), strict=True
        ):
            for k, (arm, (colour, marker)) in enumerate(zip(there, styles[: len(there)], strict=True)):
                shift = (k - (len(there) - 1) / 2) * 0.15
                if column == "held" and not shown.loc[shown["arm"] == arm, column].any():
                    continue  # trained on nothing
                for i, name in enumerate(order.index):
                    mine = shown[(shown["arm"] == arm) & (shown["class"] == name)]
                    label = arms[arm] if i == 0 else None
                    mean_point(axes, mine[column].tolist(), i + shift, colour, marker, label, reach=0.05)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axes.set_ylabel(title)
            panel_letter(axes, letter)
        panels[0].set_ylim(-0.03, 1.03)
        panels[1].set_xticks(range(len(order)), [f"{name} ({n:.0f})" for name, n in order.items()])
        panels[1].set_xlabel("class of what is asked about (requests)")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def bridge_bars(effects: Sequence[tuple[str, Mapping[str, Interval]]]) -> Figure:
    """What the proximate quarter adds over the random one, by axis and bridge. effects: axis and intervals by bridge."""
    with print_style():
        figure = new_figure(SINGLE, 2.4)
        axes = figure.subplots()
        for i, (axis, by_bridge) in enumerate(effects):
            for k, (bridge, found) in enumerate(by_bridge.items()):
                at = i + (k - (len(by_bridge) - 1) / 2) * 0.25
                reach = (
                    [[found.value - found.low], [found.high - found.value]]
                    if math.isfinite(found.low)
                    else None
                )
                axes.errorbar(
                    at, found.value, yerr=reach, color=AXES[axis][1], marker="os^"[k % 3], capsize=2, label=bridge if i == 0 else None
                )  # fmt: skip
        axes.axhline(0, color=BLACK, linewidth=0.5)
        axes.set_xticks(range(len(effects)), [AXES[axis][0] for axis, _ in effects])
        axes.set_xlim(-0.6, len(effects) - 0.4)
        axes.set_ylabel("more harmful speech answered\nthan after a random quarter")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.legend(title="bridge")
    return figure


def _arm_label(shares: pd.DataFrame, rule: str, axis: str) -> str:
    """An arm in words, with the number of units it was trained on."""
    n = int(((shares["rule"] == rule) & (shares["axis"] == axis)).sum())
    return f"{AXES[axis][0] + ', ' if axis else ''}{RULES[rule][0]} ({n})"


def _arms(shares: pd.DataFrame) -> list[tuple[str, str]]:
    """Rules and axes in drawing order; raises ResultError for a table without any."""
    there = set(zip(shares["rule"], shares["axis"], strict=True))
    found = [(rule, axis) for axis in (*AXES, "") for rule in RULES if (rule, axis) in there]
    if not found:
        raise ResultError("a table of shares without a proximate, distant or random subset cannot be drawn")
    return found


def _line(axes: Axes, frame: pd.DataFrame, x: str, y: str, colour: str, marker: str, label: str) -> None:
    """Means with intervals from place to place."""
    places = sorted(frame[x].unique())
    if not places:
        return
    found = [t_interval(frame.loc[frame[x] == place, y].tolist()) for place in places]
    reach = np.array([[f.value - f.low, f.high - f.value] for f in found]).T
    # one value has no interval: matplotlib draws no bar for NaN, where zero would claim certainty
    axes.errorbar(places, [f.value for f in found], yerr=reach, color=colour, marker=marker, capsize=2, label=label)  # fmt: skip


def _percent(axes: Axes, label: str) -> None:
    axes.set_ylabel(label)
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
