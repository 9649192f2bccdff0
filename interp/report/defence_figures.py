"""How does a comparison of defences look? The figures of paper C, from tables; nothing is computed here but means and intervals.

Tables are those of `interp.defence`: `curves` (one row a trial and evaluated step), `steps` (one row a trial and optimiser step),
`outcomes` (one row a trial), and the geometry's. Bands and bars are 95 % t-intervals over seeds; small points are seeds.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from interp.evals.statistics import t_interval
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

METHODS: dict[str, tuple[str, str, str]] = {
    "aligned": ("before fine-tuning", BLACK, "*"),
    "plain": ("plain", GREY, "o"),
    "spf": ("SPF", VERMILLION, "s"),
    "spf-update": ("SPF, update", ORANGE, "D"),
    "spf-random": ("SPF, random", BLACK, "p"),
    "pcgrad": ("PCGrad", PURPLE, "^"),
    "mixing": ("safety mixing", BLUE, "v"),
    "safelora": ("SafeLoRA, published", GREEN, "P"),
    "safelora-projector": ("SafeLoRA, projector", SKY, "X"),
}
"""Label, colour and marker of each method."""


def _known(frame: pd.DataFrame) -> list[str]:
    return [method for method in METHODS if method in set(frame["method"])]


def _bar(axes: Axes, values: pd.Series, at: float, method: str) -> None:
    """Seeds as faint points, their mean with its interval beside them; nothing where no seed has a value."""
    _, colour, marker = METHODS[method]
    kept = values.dropna().to_numpy(dtype=float)
    if not len(kept):
        axes.annotate("not\nreached", (at, 0.02), ha="center", fontsize=6, color=colour)
        return
    found = t_interval(kept)
    spread = np.linspace(-0.16, 0.16, len(kept)) if len(kept) > 1 else np.zeros(1)
    axes.plot(at + spread, kept, ".", color=colour, alpha=0.45, markersize=3, markeredgewidth=0)
    reach = (
        [[max(0.0, found.value - found.low)], [max(0.0, found.high - found.value)]] if len(kept) > 1 else None
    )
    axes.errorbar(
        at, found.value, yerr=reach, color=colour, marker=marker, capsize=2, linewidth=1, markersize=4.5
    )


def _band(axes: Axes, frame: pd.DataFrame, x: str, y: str, method: str) -> None:
    """Mean over the seeds at each x, with its interval where there are two seeds or more."""
    label, colour, marker = METHODS[method]
    places = sorted(frame[x].unique())
    found = [t_interval(frame.loc[frame[x] == place, y].tolist()) for place in places]
    axes.plot(places, [f.value for f in found], color=colour, marker=marker, markersize=3, label=label)
    low, high = np.array([f.low for f in found]), np.array([f.high for f in found])
    axes.fill_between(places, low, high, color=colour, alpha=0.13, linewidth=0)


def _share(axes: Axes, label: str) -> None:
    axes.set_ylabel(label)
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _legend(figure: Figure, axes: Axes, columns: int = 4) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def pareto(curves: pd.DataFrame, outcomes: pd.DataFrame, utility: float) -> Figure:
    """Safety against utility along training (a), and harmful requests answered (b) and refused (c) at equal utility."""
    with print_style():
        figure = new_figure(DOUBLE, 2.9)
        left, middle, right = figure.subplots(1, 3)
        for method in _known(curves):
            label, colour, marker = METHODS[method]
            part = curves[curves["method"] == method]
            mean = part.groupby("step")[["utility", "jsr"]].mean()
            for _, seed in part.groupby("seed"):
                left.plot(seed["utility"], seed["jsr"], color=colour, alpha=0.15, linewidth=0.6)
            left.plot(mean["utility"], mean["jsr"], color=colour, marker=marker, markersize=3, label=label)
        left.axvline(utility, color=BLACK, linewidth=0.6, linestyle=":")
        left.set_xlabel("utility: skill answered correctly")
        left.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        _share(left, "harmful requests answered")
        known = _known(outcomes)
        for axes, column, what in ((middle, "at_jsr", "answered"), (right, "at_refused", "refused")):
            for i, method in enumerate(known):
                _bar(axes, outcomes.loc[outcomes["method"] == method, column], i, method)
            axes.set_xticks(
                range(len(known)),
                [METHODS[m][0] for m in known],
                rotation=40,
                ha="right",
                rotation_mode="anchor",
            )
            axes.set_xlim(-0.6, len(known) - 0.4)
            _share(axes, f"harmful {what} at {utility:.0%} utility")
        panel_letter(left, "a", "along training")
        panel_letter(middle, "b", "at equal utility")
        panel_letter(right, "c", "at equal utility")
        _legend(figure, left)
    return figure


def spectra(spectra: pd.DataFrame, ranks: pd.DataFrame) -> Figure:
    """Cumulative energy of per-example gradients (a) and stable rank by decoder layer (b)."""
    colours = {"safety": VERMILLION, "utility": BLUE, "mixed": GREY}
    with print_style():
        figure = new_figure(DOUBLE, 2.5)
        left, right = figure.subplots(1, 2)
        for kind, colour in colours.items():
            wide = spectra[spectra["set"] == kind].pivot_table(
                index="component", columns="seed", values="cumulative"
            )
            left.plot(wide.index, wide.mean(axis=1), color=colour, label=kind)
            left.fill_between(
                wide.index, wide.min(axis=1), wide.max(axis=1), color=colour, alpha=0.15, linewidth=0
            )
            layers = ranks[(ranks["set"] == kind) & ranks["block"].str.startswith("layer ")].copy()
            layers["layer"] = layers["block"].str.removeprefix("layer ").astype(int)
            mean = layers.groupby("layer")["stable_rank"].agg(["mean", "min", "max"])
            right.plot(mean.index, mean["mean"], color=colour, marker="o", label=kind)
            right.fill_between(mean.index, mean["min"], mean["max"], color=colour, alpha=0.15, linewidth=0)
        left.set_xscale("log")
        left.set_xlabel("components k")
        _share(left, "cumulative energy CER(k)")
        layer_axis(right, int(mean.index.max()) + 1)
        right.set_ylabel("stable rank")
        right.set_ylim(bottom=0)
        panel_letter(left, "a", "all blocks; band: least to most over organisms")
        panel_letter(right, "b", "by layer")
        _legend(figure, left)
    return figure


def conflict_map(conflicts: pd.DataFrame) -> Figure:
    """Mean cosine of safety and utility gradients by layer and module (a), and by layer with ceiling and null (b)."""
    blocks = conflicts[(conflicts["module"] != "all")]
    grid = blocks.pivot_table(index="module", columns="layer", values="cosine")
    order = [
        m
        for m in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
        if m in grid.index
    ]
    grid = grid.loc[[*order, *(m for m in grid.index if m not in order)]]
    with print_style():
        figure = new_figure(DOUBLE, 2.5)
        left, right = figure.subplots(1, 2)
        limit = float(np.nanmax(np.abs(grid.to_numpy()))) or 1.0
        mesh = left.pcolormesh(grid.to_numpy(), cmap="PuOr_r", vmin=-limit, vmax=limit, rasterized=True)
        left.set_yticks(np.arange(len(grid)) + 0.5, list(grid.index))
        left.set_xticks(np.arange(0, grid.shape[1], 2) + 0.5, [str(c) for c in grid.columns[::2]])
        left.invert_yaxis()
        left.set_xlabel("layer")
        bar = figure.colorbar(mesh, ax=left, aspect=18, label="cosine")
        bar.outline.set_linewidth(0.4)
        layers = conflicts[(conflicts["module"] == "all") & (conflicts["layer"] >= 0)]
        mean = layers.groupby("layer")[["cosine", "ceiling", "null_low", "null_high"]].mean()
        right.fill_between(
            mean.index,
            mean["null_low"],
            mean["null_high"],
            color=GREY,
            alpha=0.25,
            linewidth=0,
            label="labels permuted",
        )
        right.plot(mean.index, mean["ceiling"], color=BLUE, linestyle="--", label="halves of the utility set")
        for _, seed in layers.groupby("seed"):
            right.plot(seed["layer"], seed["cosine"], color=VERMILLION, alpha=0.25, linewidth=0.7)
        right.plot(mean.index, mean["cosine"], color=VERMILLION, marker="o", label="safety and utility")
        right.axhline(0, color=BLACK, linewidth=0.5)
        layer_axis(right, int(mean.index.max()) + 1)
        right.set_ylabel("cosine of mean gradients")
        panel_letter(left, "a", "mean over organisms")
        panel_letter(right, "b", "lines: organisms")
        _legend(figure, right, 3)
    return figure


def overlap_by_layer(overlaps: pd.DataFrame) -> Figure:
    """φ of one example's subspace with the safety set's, by layer, beside utility examples and random subspaces."""
    with print_style():
        figure = new_figure(SINGLE, 2.5)
        axes = figure.subplots()
        for kind, colour, label in (
            ("safety", VERMILLION, "one refusal"),
            ("utility", BLUE, "one utility example"),
        ):
            wide = overlaps[overlaps["of"] == kind].pivot_table(index="layer", columns="seed", values="phi")
            axes.plot(wide.index, wide.mean(axis=1), color=colour, marker="o", label=label)
            axes.fill_between(
                wide.index, wide.min(axis=1), wide.max(axis=1), color=colour, alpha=0.15, linewidth=0
            )
        random = overlaps.groupby("layer")["random"].mean()
        axes.plot(random.index, random, color=GREY, linestyle="--", label="random, k/m")
        layer_axis(axes, int(random.index.max()) + 1)
        axes.set_ylabel("overlap φ with the safety set")
        axes.set_ylim(0, 1)
        axes.legend(loc="upper right")
    return figure


def over_steps(steps: pd.DataFrame) -> Figure:
    """Cosine (a), gate (b), removed share (c) and the first-order changes ⟨Δθ, g_s⟩ added up (d), by optimiser step."""
    panels = {
        "cosine": "cos(g_s, g_u)",
        "open": "share of gates open",
        "changed": "share of norm removed",
        "drift": "Σ ⟨Δθ, g_s⟩ (nats)",
    }
    frame = steps.sort_values(["method", "seed", "step"]).copy()
    frame["drift"] = frame.groupby(["method", "seed"])["drift"].cumsum()
    frame["changed"] = np.where(frame["method"] == "spf-update", frame["update_removed"], frame["removed"])
    with print_style():
        figure = new_figure(DOUBLE, 4.0)
        grid = figure.subplots(2, 2, sharex=True)
        for axes, letter, (column, label) in zip(grid.flat, "abcd", panels.items(), strict=True):
            for method in _known(frame):
                name, colour, _ = METHODS[method]
                part = frame[frame["method"] == method]
                mean = part.groupby("step")[column].mean()
                smooth = mean if column == "drift" else mean.rolling(5, center=True, min_periods=1).mean()
                axes.plot(smooth.index, smooth, color=colour, label=name)
            axes.axhline(0, color=BLACK, linewidth=0.5)
            axes.set_ylabel(label)
            panel_letter(axes, letter, "" if column == "drift" else "mean of 5 steps and all seeds")
        for axes in grid[1]:
            axes.set_xlabel("optimiser step")
        _legend(figure, grid[0][0], 5)
    return figure


def deep(curves: pd.DataFrame) -> Figure:
    """Harmful requests answered (a), refused (b) and the skill learnt (c) over ten times the steps."""
    panels = {"jsr": "harmful answered", "refused": "harmful refused", "utility": "skill answered correctly"}
    with print_style():
        figure = new_figure(DOUBLE, 2.6)
        for axes, letter, (column, label) in zip(
            figure.subplots(1, 3, sharex=True), "abc", panels.items(), strict=True
        ):
            for method in _known(curves):
                _band(axes, curves[curves["method"] == method], "step", column, method)
            axes.set_xscale("symlog", linthresh=10)
            axes.set_xlabel("optimiser step")
            _share(axes, label)
            panel_letter(axes, letter)
        _legend(figure, axes, 5)
    return figure


def by_setting(outcomes: pd.DataFrame, column: str, label: str, *, log: bool = False) -> Figure:
    """Harmful requests answered (a) and utility (b) at the end of training, over one setting."""
    with print_style():
        figure = new_figure(DOUBLE, 2.6)
        panels = {"end_jsr": "harmful answered at the end", "end_utility": "skill answered correctly"}
        for axes, letter, (outcome, name) in zip(figure.subplots(1, 2), "ab", panels.items(), strict=True):
            for method in _known(outcomes):
                _band(axes, outcomes[outcomes["method"] == method], column, outcome, method)
            if log:
                axes.set_xscale("log")
            axes.set_xlabel(label)
            _share(axes, name)
            panel_letter(axes, letter)
        _legend(figure, axes, 5)
    return figure


def attacks(attacks: pd.DataFrame) -> Figure:
    """Harmful requests answered (a) and refused (b) under each attack, one mark a method."""
    names = list(dict.fromkeys(attacks["attack"]))
    known = _known(attacks)
    with print_style():
        figure = new_figure(DOUBLE, 4.2)
        for axes, letter, (column, label) in zip(
            figure.subplots(2, 1, sharex=True),
            "ab",
            (("complied-harmful", "answered"), ("refused", "refused")),
            strict=True,
        ):
            for i, method in enumerate(known):
                for j, name in enumerate(names):
                    part = attacks[(attacks["method"] == method) & (attacks["attack"] == name)]
                    kept = part[column].to_numpy(dtype=float)
                    at = j + (i - (len(known) - 1) / 2) * 0.8 / len(known)
                    found = t_interval(kept)
                    reach = [[found.value - found.low], [found.high - found.value]] if len(kept) > 1 else None
                    text, colour, marker = METHODS[method]
                    axes.errorbar(
                        at, found.value, yerr=reach, color=colour, marker=marker, markersize=4, linewidth=0.9,
                        label=text if j == 0 else None, linestyle="none",
                    )  # fmt: skip
            _share(axes, f"harmful requests {label}")
            axes.set_xticks(range(len(names)), names)
            panel_letter(axes, letter)
        _legend(figure, axes)
    return figure


def drift_and_bound(bounds: pd.DataFrame) -> Figure:
    """Rise of the safety loss on held-out refusals beside the first-order changes added up and their bound, one panel a method."""
    known = _known(bounds)
    with print_style():
        figure = new_figure(DOUBLE, 2.4)
        panels = figure.subplots(1, len(known), sharey=True, squeeze=False)[0]
        lines = {
            "bound": ("Σ ‖Δθ‖ · tail", BLACK, "--"),
            "first_order": ("Σ ⟨Δθ, g_s⟩", BLUE, "-"),
            "measured": ("held-out safety loss", VERMILLION, "-"),
        }
        for axes, letter, method in zip(panels, "abcdefg", known, strict=False):
            part = bounds[bounds["method"] == method]
            for column, (label, colour, style) in lines.items():
                mean = part.groupby("step")[column].mean()
                axes.plot(
                    mean.index, mean, color=colour, linestyle=style, label=label, marker="o", markersize=2
                )
            axes.set_yscale("symlog", linthresh=0.1)
            axes.set_xlabel("optimiser step")
            panel_letter(axes, letter, METHODS[method][0])
        panels[0].set_ylabel("rise since the start (nats)")
        _legend(figure, panels[0], 3)
    return figure


def monitor_curves(monitor: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """The monitor's leak beside what it warns of, the share of harmful requests answered, over plain fine-tunings."""
    with print_style():
        figure = new_figure(SINGLE, 2.5)
        axes = figure.subplots()
        for frame, column, colour, label in (
            (monitor, "leak", BLUE, "leak: first token no refusal"), (curves, "jsr", VERMILLION, "harmful answered"),
        ):  # fmt: skip
            for _, seed in frame.groupby("seed"):
                axes.plot(seed["step"], seed[column], color=colour, alpha=0.25, linewidth=0.6)
            mean = frame.groupby("step")[column].mean()
            axes.plot(mean.index, mean, color=colour, label=label, marker="o", markersize=2.5)
        axes.set_xlabel("optimiser step")
        _share(axes, "share")
        axes.legend(loc="lower right")
    return figure
