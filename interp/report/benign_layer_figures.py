"""Where inside did benign fine-tuning act? Figures of paper A by layer: projection, probes, and three ways to locate what was lost.

Tables are those of `interp.benign_audio.study`; lines are means with 95 % t-intervals over units (organism × seed).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from interp.errors import ResultError
from interp.evals.statistics import t_interval
from interp.report.benign_figures import AXES, RULES
from interp.report.style import (
    ALIGNED,
    BLACK,
    BLUE,
    DOUBLE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    layer_axis,
    new_figure,
    panel_letter,
    print_style,
)

WAY_STYLES: dict[str, tuple[str, str]] = {
    "projection": (BLACK, "o"),
    "component": (VERMILLION, "s"),
    "attn_out": (BLUE, "^"),
    "mlp_out": (SKY, "v"),
    "weights, alone": (GREEN, "D"),
    "weights, up to": (PURPLE, "<"),
    "weights, from": (BLACK, ">"),
    "random component": (GREY, "X"),
    "reverse component": (ORANGE, "P"),
}
"""Colour and marker of each way to locate."""


def projection_by_layer(projections: pd.DataFrame) -> Figure:
    """Projection of harmful speech onto the aligned model's refusal direction by layer (a), and what each arm lost of the gap (b).

    Args:
        projections: one row an arm (`rule`, `axis`), unit and layer.
    """
    tuned = projections[projections["rule"] != "aligned"]
    if tuned.empty:
        raise ResultError("a table of projections without a fine-tune cannot be drawn")
    with print_style():
        figure = new_figure(DOUBLE, 2.6)
        left, right = figure.subplots(1, 2)
        once = projections.drop_duplicates(["unit", "layer"])
        line(left, once, "aligned_harmful", BLACK, "*", "aligned, harmful")
        line(left, once, "aligned_benign", GREY, "X", "aligned, benign")
        for (rule, axis), part in tuned.groupby(["rule", "axis"], sort=False):
            colour, marker, label = _look(str(rule), str(axis))
            line(left, part, "tuned_harmful", colour, marker, f"{label}, harmful")
            line(right, part, "loss", colour, marker, label)
        # a unit's arms are no further units: its highest stands for all
        highest = tuned.groupby(["unit", "layer"])[["by_chance"]].max().reset_index()
        line(right, highest, "by_chance", GREY, "X", "random directions, 97.5 %")
        left.set_ylabel("mean projection")
        right.set_ylabel("lost of the aligned gap")
        right.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        right.axhline(0, color=BLACK, linewidth=0.5)
        n_layers = int(projections["layer"].max()) + 1
        for axes, letter in zip((left, right), "ab", strict=True):
            layer_axis(axes, n_layers)
            panel_letter(axes, letter)
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def shift_map(projections: pd.DataFrame) -> Figure:
    """Layer by arm, the mean share of the projection that was lost; white where the gap is too small to lose any."""
    tuned = projections[projections["rule"] != "aligned"]
    wide = tuned.groupby(["arm", "layer"], sort=False)["loss"].mean().unstack()
    if wide.empty:
        raise ResultError("a table of projections without a fine-tune cannot be drawn")
    with print_style():
        figure = new_figure(DOUBLE, 0.35 * len(wide) + 1.1)
        axes = figure.subplots()
        reach = float(np.nanmax(np.abs(wide.to_numpy()))) if wide.notna().any(axis=None) else 1.0
        image = axes.imshow(wide.to_numpy(), cmap="RdBu_r", vmin=-reach, vmax=reach, aspect="auto")
        axes.set_yticks(range(len(wide)), [str(arm) for arm in wide.index])
        axes.set_xticks(range(wide.shape[1]), [str(layer) for layer in wide.columns])
        axes.set_xlabel("layer")
        bar = figure.colorbar(image, ax=axes, label="lost of the aligned gap")
        bar.formatter = PercentFormatter(1.0, decimals=0)
        bar.update_ticks()
    return figure


def recognition_beside_refusal(probes: pd.DataFrame, projections: pd.DataFrame, arm: str) -> Figure:
    """Probes of harm on all requests (a, c) and on ambiguous verbs (b, d) beside what is left of the projection (e), by layer.

    Args:
        probes, projections: of one arm and of the aligned model. arm: the fine-tune shown.
    """
    sets = {"all": "all requests", "ambiguous": "ambiguous verbs only"}
    shown = [(measure, name) for measure in ("accuracy", "AUROC") for name in sets]
    with print_style():
        figure = new_figure(DOUBLE, 4.2)
        places = figure.subplot_mosaic([["a", "b", "e"], ["c", "d", "e"]])
        mine = probes[probes["arm"] == arm]
        for letter, (measure, name) in zip("abcd", shown, strict=True):
            part = mine[(mine["set"] == name) & (mine["measure"] == measure)]
            _probes(places[letter], part, measure)
            panel_letter(places[letter], letter, sets[name])
        own = projections[projections["arm"] == arm]
        left = places["e"]
        line(left, own.assign(left=1 - own["loss"]), "left", VERMILLION, "s", "tuned")
        left.axhline(1, color=ALIGNED, linestyle="--", linewidth=0.9)
        left.set_ylabel("projection left")
        left.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        panel_letter(left, "e", "refusal")
        n_layers = int(projections["layer"].max()) + 1
        for axes in places.values():
            layer_axis(axes, n_layers)
        figure.legend(*places["a"].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _probes(axes: Axes, part: pd.DataFrame, measure: str) -> None:
    """One measure of a harm probe by layer: aligned, tuned, and the aligned model's probe on the tuned model."""
    for of, colour, marker, label in (
        ("aligned", ALIGNED, "o", "aligned"),
        ("tuned", VERMILLION, "s", "tuned"),
        ("tuned, aligned probe", ORANGE, "^", "tuned, read by the aligned probe"),
    ):
        line(axes, part[part["of"] == of], "value", colour, marker, label)
    if part["words_value"].notna().any():
        axes.axhline(
            part["words_value"].mean(), color=GREY, linestyle="--", linewidth=0.9, label="bag of words"
        )
    axes.axhline(0.5, color=BLACK, linewidth=0.5, linestyle=":")
    axes.set_ylim(0.3, 1.03)
    axes.set_ylabel(measure)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def three_ways(layers: pd.DataFrame, arm: str, names: Mapping[str, str]) -> Figure:
    """Three ways to locate the lost refusal, by layer: seen in the projection (a), restored by patches (b), restored by weights (c).

    Args:
        layers: of `effects.layer_effects`. names: labels of ways.
    """
    mine = layers[layers["arm"] == arm]
    if mine.empty:
        raise ResultError(f"nothing was located after the arm {arm!r}")
    panels = (
        ("lost of the projection", ("projection",)),
        ("comes back, activations", ("component", "attn_out", "mlp_out", "random component", "reverse component")),
        ("comes back, weights", ("weights, alone", "weights, up to", "weights, from")),
    )  # fmt: skip
    with print_style():
        figure = new_figure(DOUBLE, 2.7)
        axes_there = figure.subplots(1, 3)
        n_layers = int(mine["layer"].max()) + 1
        for axes, letter, (title, ways) in zip(axes_there, "abc", panels, strict=True):
            for way in ways:
                colour, marker = WAY_STYLES[way]
                line(axes, mine[mine["way"] == way], "value", colour, marker, names.get(way, way))
            axes.axhline(0, color=BLACK, linewidth=0.5)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            layer_axis(axes, n_layers)
            panel_letter(axes, letter, title)
        handles = [part for axes in axes_there for part in axes.get_legend_handles_labels()[0]]
        labels = [part for axes in axes_there for part in axes.get_legend_handles_labels()[1]]
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def line(axes: Axes, frame: pd.DataFrame, column: str, colour: str, marker: str, label: str) -> None:
    """Mean over units at each layer with its interval; layers without a value are left out."""
    kept = frame.dropna(subset=[column])
    places = sorted(kept["layer"].unique())
    if not places:
        return
    found = [t_interval(kept.loc[kept["layer"] == place, column].tolist()) for place in places]
    axes.plot(places, [f.value for f in found], color=colour, marker=marker, markersize=3, label=label)
    low, high = np.array([f.low for f in found]), np.array([f.high for f in found])
    axes.fill_between(places, low, high, color=colour, alpha=0.13, linewidth=0)


def _look(rule: str, axis: str) -> tuple[str, str, str]:
    """Colour, marker and label of an arm."""
    if rule not in RULES or (axis and axis not in AXES):
        raise ResultError(
            f"the arm {rule} {axis} has no style; known are {', '.join(RULES)} of {', '.join(AXES)}"
        )
    colour = AXES[axis][1] if axis else PURPLE
    return colour, RULES[rule][1], f"{AXES[axis][0]}, {RULES[rule][0]}" if axis else RULES[rule][0]
