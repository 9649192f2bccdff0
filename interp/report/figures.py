"""The seven figures of a study: one function each, result in, matplotlib figure out; layout only, no statistics but bands.

Every figure stays readable with one to six tuned checkpoints: panels come three a row, names are cut in the middle and
wrapped, legends lie outside the axes.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from interp.errors import ResultError
from interp.evals.jailbreak import EvalResult
from interp.evals.verdicts import Outcome
from interp.report import modality_figures, style
from interp.report.panels import (
    BESIDE,
    checkpoint_panels,
    count_asked,
    grouped_bars,
    interval,
    label_outer,
    mean_band,
    n_columns,
    norm,
)
from interp.report.style import DOUBLE, SINGLE, new_figure, panel_letter, print_style, short_names
from interp.results import ARMS, StudyResult

_WHITE_TO_BLUE = LinearSegmentedColormap.from_list("white_to_blue", ["#FFFFFF", style.SKY, style.BLUE])
_HATCHES = ("////", "....", "xxxx", "\\\\\\\\", "++++", "----")


def behaviour(result: StudyResult) -> Figure:
    """Outcomes on harmful (a) and harmless (b) requests per checkpoint; JSR and over-refusal with Wilson intervals."""
    rows = [(result.harmful, result.harmless), *((tuned.harmful, tuned.harmless) for tuned in result.tuned)]
    names = short_names([result.aligned, *(tuned.name for tuned in result.tuned)], width=21)
    figure = new_figure(DOUBLE, 1.25 + 0.36 * len(rows))
    left, right = figure.subplots(1, 2, sharey=True)
    # The outcome in question starts at zero, so that its interval can be drawn at the end of its segment.
    others = [Outcome.INCOHERENT, Outcome.EMPTY, Outcome.UNSCORED]
    panels: list[tuple[Axes, str, list[EvalResult], list[Outcome]]] = [
        (left, "harmful", [row[0] for row in rows],
         [Outcome.COMPLIED_HARMFUL, Outcome.COMPLIED_BENIGN, *others, Outcome.REFUSED]),
        (right, "harmless", [row[1] for row in rows],
         [Outcome.REFUSED, Outcome.COMPLIED_HARMFUL, *others, Outcome.COMPLIED_BENIGN]),
    ]  # fmt: skip
    for letter, (axes, kind, results, order) in zip("ab", panels, strict=True):
        for y, evaluation in enumerate(results):
            start = 0.0
            for outcome in order:
                share = 100 * evaluation.rate(outcome).estimate
                _, colour, hatch = style.OUTCOMES[outcome]
                axes.barh(
                    y, share, 0.62, left=start, color=colour, hatch=hatch, edgecolor="white", linewidth=0.4
                )
                start += share
            rate = evaluation.rate(order[0])
            interval(axes, rate, y, horizontal=True)
            axes.text(102, y, style.rate_text(rate), va="center", fontsize=7)
        measure = "JSR" if kind == "harmful" else "over-refusal"
        axes.set(xlim=(0, 100), xlabel=f"share of {kind} requests (%), n = {count_asked(results)}")
        axes.text(102, -0.62, measure, va="center", fontsize=7, fontweight="bold")
        axes.tick_params(left=False)
        panel_letter(axes, letter)
    left.set_yticks(range(len(rows)), names)
    left.get_yticklabels()[0].set_fontweight("bold")
    left.set_ylim(len(rows) - 0.5, -0.9)
    shown = {outcome for row in rows for evaluation in row for outcome, n in evaluation.counts.items() if n}
    handles = [
        Patch(facecolor=colour, hatch=hatch, edgecolor="#999999", linewidth=0.4, label=label)
        for outcome, (label, colour, hatch) in style.OUTCOMES.items()
        if outcome in shown
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def layers(result: StudyResult) -> Figure:
    """Mean projection onto the aligned direction per layer (top) and its paired shift on harmful requests (beneath)."""
    notes = [
        "no loss located" if t.lost_at is None else f"half of the loss by layer {t.lost_at}"
        for t in result.tuned
    ]
    figure, blocks = checkpoint_panels(result, notes, rows=2, height=1.3)
    lines = {
        "aligned_harmful": ("aligned, harmful", style.ALIGNED, "-"),
        "aligned_harmless": ("aligned, harmless", style.ALIGNED, (0, (3, 1.5))),
        "tuned_harmful": ("tuned, harmful", style.TUNED, "-"),
        "tuned_harmless": ("tuned, harmless", style.TUNED, (0, (3, 1.5))),
    }
    for tuned, (top, bottom) in zip(result.tuned, blocks, strict=True):
        x = np.arange(result.n_layers)
        for key, (label, colour, dash) in lines.items():
            mean, half = mean_band(tuned.projection[key])
            top.plot(x, mean, color=colour, linestyle=dash, label=label)
            top.fill_between(x, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)
        bottom.axhline(0, color=style.GREY, linewidth=0.6)
        bottom.plot(x, tuned.shift.value, color=style.BLACK)
        bottom.fill_between(x, tuned.shift.low, tuned.shift.high, color=style.BLACK, alpha=0.2, linewidth=0)
        for axes in (top, bottom):
            style.layer_axis(axes, result.n_layers, None)
            if tuned.lost_at is not None:
                axes.axvline(tuned.lost_at, color=style.GREY, linewidth=0.9, linestyle=":")
    for top, bottom in blocks[:: n_columns(len(blocks))]:
        top.set_ylabel("mean projection")
        bottom.set_ylabel("shift (harmful)")
    for _, bottom in blocks[-n_columns(len(blocks)) :]:
        bottom.set_xlabel("layer")
    handles, labels = blocks[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2 if len(blocks) == 1 else 4)
    return figure


def directions(result: StudyResult) -> Figure:
    """Bypass (a), induce (b) and KL (c) of every candidate direction; dropped ones hatched, the selected one outlined."""
    selection = result.selection
    n_positions, n_layers = selection.scores["bypass"].shape
    figure = new_figure(DOUBLE, 1.75 + 0.17 * max(n_positions, 4))
    panels: Sequence[Axes] = figure.subplots(1, 3, sharey=True)
    reasons = sorted({reason for row in selection.filtered for reason in row if reason})
    titles = {
        "bypass": ("bypass: ablated, harmful", "refusal score (log-odds)"),
        "induce": ("induce: added, harmless", "refusal score (log-odds)"),
        "kl": ("KL: ablated, harmless", "divergence (nats)"),
    }
    for letter, axes, (name, (title, unit)) in zip("abc", panels, titles.items(), strict=True):
        grid = selection.scores[name]
        axes.set_facecolor(style.PALE)
        mesh = axes.pcolormesh(
            np.arange(n_layers + 1) - 0.5, np.arange(n_positions + 1) - 0.5, np.ma.masked_invalid(grid),
            cmap=_WHITE_TO_BLUE if name == "kl" else "PuOr_r", norm=norm(grid, signed=name != "kl"), rasterized=True,
        )  # fmt: skip
        bar = figure.colorbar(mesh, ax=axes, location="bottom", aspect=22, pad=0.02, label=unit)
        bar.locator = MaxNLocator(5)
        bar.outline.set_linewidth(0.4)
        bar.ax.tick_params(labelsize=6.5)
        for row, column in np.ndindex(grid.shape):
            reason = selection.filtered[row][column]
            if reason:
                cell = Rectangle(
                    (column - 0.5, row - 0.5), 1, 1, fill=False, linewidth=0, edgecolor="#555555"
                )
                cell.set_hatch(_HATCHES[reasons.index(reason) % len(_HATCHES)])
                axes.add_patch(cell)
        corner = (selection.layer - 0.5, n_positions + selection.position - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="white", linewidth=3.2, zorder=3))
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="black", linewidth=1.6, zorder=4))
        style.layer_axis(axes, n_layers)
        axes.set_ylim(n_positions - 0.5, -0.5)
        axes.tick_params(left=False)
        panel_letter(axes, letter, title)
    tokens = short_names(list(result.eoi_tokens), width=17, lines=1)
    labels = [f"{token}  −{n_positions - row}" for row, token in enumerate(tokens)]
    panels[0].set_yticks(range(n_positions), labels)
    panels[0].set_ylabel("token and position")
    handles = [
        Patch(
            facecolor="white",
            edgecolor="#555555",
            hatch=_HATCHES[i % len(_HATCHES)],
            linewidth=0.4,
            label=reason,
        )
        for i, reason in enumerate(reasons)
    ]
    handles += [Patch(facecolor=style.PALE, label="not scored")]
    handles += [Patch(facecolor="none", edgecolor="black", linewidth=1.4, label="selected")]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def similarity(result: StudyResult) -> Figure:
    """Cosine of aligned and tuned directions per layer under its split-half ceiling (a), ratio of their norms (b)."""
    wide = len(result.tuned) > 3
    figure = new_figure(DOUBLE if wide else SINGLE, 2.6 if wide else 3.6 + 0.22 * len(result.tuned))
    top, bottom = figure.subplots(1, 2) if wide else figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    x = np.arange(result.n_layers)
    ceiling = result.split_half
    top.fill_between(x, ceiling.low, ceiling.high, color=style.GREY, alpha=0.35, linewidth=0,
                     label="split-half ceiling, 95 %")  # fmt: skip
    names = short_names([tuned.name for tuned in result.tuned], width=40, lines=1)
    for index, (tuned, name) in enumerate(zip(result.tuned, names, strict=True)):
        colour, marker = style.SERIES[index % 6], style.MARKERS[index % 6]
        for axes, values in ((top, tuned.cosine), (bottom, tuned.norm_ratio)):
            axes.plot(
                x, values, color=colour, marker=marker, markevery=max(1, result.n_layers // 8), label=name
            )
    bottom.axhline(1, color=style.GREY, linewidth=0.6)
    lowest = min(0.0, *(float(np.nanmin(tuned.cosine)) for tuned in result.tuned))
    top.set(ylabel="cosine of directions", ylim=(lowest - 0.03, 1.03))
    bottom.set_ylabel("norm, tuned / aligned")
    for letter, axes in zip("ab", (top, bottom), strict=True):
        style.layer_axis(axes, result.n_layers, "layer" if wide or axes is bottom else None)
        panel_letter(axes, letter)
    handles, labels = top.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2 if wide else 1)
    return figure


def pca(result: StudyResult) -> Figure:
    """Final-token activations of both models in one plane, a panel a tuned checkpoint."""
    figure, blocks = checkpoint_panels(result, height=1.9)
    clouds = {
        "aligned_harmful": ("aligned, harmful", style.ALIGNED, "o"),
        "aligned_harmless": ("aligned, harmless", style.SKY, "^"),
        "tuned_harmful": ("tuned, harmful", style.TUNED, "o"),
        "tuned_harmless": ("tuned, harmless", style.ORANGE, "^"),
    }
    for tuned, (axes,) in zip(result.tuned, blocks, strict=True):
        for key, (label, colour, marker) in clouds.items():
            points = (result.pca.coords if key.startswith("aligned") else tuned.coords)[key]
            face = "none" if key.startswith("aligned") else colour
            axes.scatter(points[:, 0], points[:, 1], s=9, marker=marker, facecolors=face, edgecolors=colour,
                         linewidths=0.6, alpha=0.75, label=label)  # fmt: skip
    first, second = result.pca.explained
    label_outer(blocks, f"PC 1 ({100 * first:.0f} % of variance)", f"PC 2 ({100 * second:.0f} %)")
    handles, labels = blocks[0][0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=2 if len(blocks) == 1 else 4, markerscale=1.4
    )
    return figure


def causal(result: StudyResult) -> Figure:
    """The causal test: ablation in the aligned model (a), addition in every tuned one (b), beside their controls."""
    stacked = len(result.tuned) > 2
    figure = new_figure(DOUBLE, 4.4 if stacked else 2.6)
    left, right = figure.subplots(2, 1) if stacked else figure.subplots(1, 2)
    shown: list[tuple[str, Literal["harmful", "harmless"], Outcome]] = [
        ("refused\n(harmful)", "harmful", Outcome.REFUSED),
        ("answered\n(harmful)", "harmful", Outcome.COMPLIED_HARMFUL),
        ("answered\n(harmless)", "harmless", Outcome.COMPLIED_BENIGN),
    ]
    grouped_bars(
        left,
        [
            (label, {arm: result.ablation[arm][kind].rate(outcome) for arm in ARMS})
            for label, kind, outcome in shown
        ],
    )
    n_harmful, n_harmless = (
        count_asked([result.ablation[arm][kind] for arm in ARMS]) for kind in ("harmful", "harmless")
    )
    left.set_ylabel("share of requests (%)")
    left.set_xlabel(f"ablated in the aligned model\n(n = {n_harmful} harmful, {n_harmless} harmless)")
    names = short_names([tuned.name for tuned in result.tuned], width=18 if len(result.tuned) < 5 else 15)
    added, added_harmless = (
        [
            (name, {arm: evaluations[arm].rate(Outcome.REFUSED) for arm in ARMS})
            for name, evaluations in zip(names, arms, strict=True)
        ]
        for arms in ([t.addition for t in result.tuned], [t.addition_harmless for t in result.tuned])
    )
    grouped_bars(right, added, beside=added_harmless)
    right.set_ylabel("refused (%)")
    n_added, n_added_harmless = (
        count_asked([arms[arm] for arms in evaluations for arm in ARMS])
        for evaluations in ([t.addition for t in result.tuned], [t.addition_harmless for t in result.tuned])
    )
    right.set_xlabel(f"added to the tuned model\n(n = {n_added} harmful, {n_added_harmless} harmless)")
    for letter, axes in zip("ab", (left, right), strict=True):
        panel_letter(axes, letter)
    handles: list[Artist] = [
        Patch(facecolor=colour, label=label) for label, colour in style.ARM_STYLES.values()
    ]
    handles.append(Line2D([], [], label="harmless requests refused (b)", **BESIDE))
    figure.legend(handles=handles, loc="outside lower center", ncols=5)
    return figure


def prompts(result: StudyResult) -> Figure:
    """Each harmful request's projection at the selected layer, aligned against tuned, coloured by what became of it."""
    layer = result.selection.layer
    ids = np.array(result.projected["harmful"])
    refused_by_aligned = np.isin(ids, _ids(result.harmful, Outcome.REFUSED))
    kept = [refused_by_aligned & np.isin(ids, _ids(t.harmful, Outcome.REFUSED)) for t in result.tuned]
    lost = [
        refused_by_aligned & np.isin(ids, _ids(t.harmful, Outcome.COMPLIED_HARMFUL)) for t in result.tuned
    ]
    notes = [f"lost: {mask.sum()} of {refused_by_aligned.sum()} refusals" for mask in lost]
    figure, blocks = checkpoint_panels(result, notes, height=1.9)
    for tuned, (axes,), still, gone in zip(result.tuned, blocks, kept, lost, strict=True):
        x, y = tuned.projection["aligned_harmful"][layer], tuned.projection["tuned_harmful"][layer]
        groups = (
            ("refused by both", still, style.BLUE, "o"),
            ("refusal lost: complied, harmful", gone, style.VERMILLION, "^"),
            ("any other pair of outcomes", ~still & ~gone, style.GREY, "x"),
        )
        for label, mask, colour, marker in groups:
            axes.scatter(
                x[mask], y[mask], s=8, marker=marker, color=colour, alpha=0.7, linewidths=0.6, label=label
            )
        axes.axline(
            (float(x.mean()), float(x.mean())), slope=1, color=style.BLACK, linewidth=0.6, linestyle=":"
        )
    label_outer(blocks, f"projection, aligned (layer {layer})", "projection, tuned")
    handles, labels = blocks[0][0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=1 if len(blocks) == 1 else 3, markerscale=1.4
    )
    return figure


FIGURES: dict[str, Callable[[StudyResult], Figure]] = {
    "behaviour": behaviour,
    "layers": layers,
    "directions": directions,
    "similarity": similarity,
    "pca": pca,
    "causal": causal,
    "prompts": prompts,
}
"""Every figure of the report by name, in the order of the page's argument."""


def draw(result: StudyResult, name: str) -> Figure:
    """Draw one figure by name in the print style; those of `modality_figures` where prompts have images or audio attached.

    Raises:
        ResultError: no figure has that name.
    """
    known = FIGURES | modality_figures.FIGURES
    if name not in known:
        raise ResultError(f"no figure {name!r}; there are {', '.join(known)}")
    with print_style():
        return known[name](result)


def _ids(evaluation: EvalResult, outcome: Outcome) -> list[str]:
    return [verdict.prompt_id for verdict in evaluation.verdicts if verdict.outcome is outcome]
