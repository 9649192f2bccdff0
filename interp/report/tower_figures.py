"""Where on the way from encoder over projector to decoder did a fine-tune change something? Three panels on one axis.

1. Similarity of each site to the aligned model (debiased CKA): did prompts that were alike stay alike?
2. AUROC of a linear probe for harm: is harm still recognised?
3. The gap between harmful and harmless requests along the aligned model's direction of the site: does the model act on it?

A frozen encoder is flat in all three. A model that still recognises but no longer refuses falls in the last one only, at the right.
"""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from interp.errors import ResultError
from interp.report import style
from interp.report.drift_figures import curve, legend_below
from interp.report.style import SINGLE, new_figure, panel_letter, print_style

GAP = 1.0
"""Blank between two towers on the axis, in layers."""
LABELS = ("CKA to aligned", "AUROC of probe", "gap (SD)")


def tower_panels(drift: pd.DataFrame, recognition: pd.DataFrame) -> Figure:
    """The three panels for one fine-tune.

    Args:
        drift, recognition: of `Drift.to_frame` and `Recognition.to_frame`, several captures below each other in the order in which a prompt
            passes through them, with their `tower`; the fine-tune is `tuned`.
    """
    with print_style():
        figure = new_figure(SINGLE * 1.25, 4.2)
        axes = figure.subplots(3, 1, sharex=True)
        drift = drift.assign(checkpoint="tuned")
        draw_towers(axes, drift, recognition, [("tuned", "tuned")])
        for panel, label, letter in zip(axes, LABELS, "abc", strict=True):
            panel.set_ylabel(label)
            panel_letter(panel, letter)
        finish_rows(axes)
        legend_below(figure, [axes[1]], ncols=3)
    return figure


def draw_towers(
    axes: Sequence[Axes],
    drift: pd.DataFrame,
    recognition: pd.DataFrame,
    checkpoints: Sequence[tuple[str, str]],
) -> None:
    """Draw one modality into three axes.

    Args:
        drift: with `tower` and `checkpoint`. recognition: with `tower`; checkpoints in `of`.
        checkpoints: the fine-tunes with their labels.

    Raises ResultError where neither table holds anything.
    """
    spans = tower_spans(drift, recognition)
    similarity, recognised, acted = axes
    for tower, (start, end) in spans.items():
        changed, read = (
            part if part.empty else part[part["tower"] == tower] for part in (drift, recognition)
        )
        curve(
            recognised,
            read,
            "AUROC",
            "aligned",
            colour=style.ALIGNED,
            marker="o",
            label="aligned",
            chance=True,
            start=start,
        )
        for i, (name, label) in enumerate(checkpoints):
            colour, marker = style.SERIES[i % len(style.SERIES)], style.MARKERS[(i + 1) % len(style.MARKERS)]
            own = changed if changed.empty else changed[changed["checkpoint"] == name]
            if i == 0:  # the aligned model's gap is the same beside every fine-tune
                curve(
                    acted, own, "gap along refusal", "aligned", colour=style.ALIGNED, marker="o", start=start
                )
            curve(similarity, own, "CKA", "", colour=colour, marker=marker, start=start)
            curve(recognised, read, "AUROC", name, colour=colour, marker=marker, label=label, start=start)
            curve(acted, own, "gap along refusal", "tuned", colour=colour, marker=marker, start=start)
        similarity.text(
            (start + end) / 2, 0.03, _short(tower), ha="center", va="bottom", fontsize=6, color=style.GREY,
            transform=similarity.get_xaxis_transform(),
        )  # fmt: skip
        for panel in axes:
            if start:
                panel.axvline(start - 0.5 - GAP / 2, color=style.GREY, linewidth=0.5)
    ticks = sorted({place for start, end in spans.values() for place in (start, end)})
    starts = [start for start, _ in spans.values()]
    labels = [f"{place - max(start for start in starts if start <= place):.0f}" for place in ticks]
    for panel in axes:
        panel.set_xticks(ticks, labels if panel is acted else [""] * len(ticks))
        panel.set_xlim(-0.5 - GAP / 2, axis_length(spans) - 0.5)
        panel.yaxis.set_major_locator(
            MaxNLocator(nbins=5)
        )  # a count that does not depend on the height, as the layout needs
    acted.set_xlabel("layer")
    recognised.axhline(0.5, color=style.GREY, linewidth=0.5, linestyle=":")
    acted.axhline(0, color=style.BLACK, linewidth=0.5)


def finish_rows(axes: Sequence[Axes]) -> None:
    """Limits of the three rows, from any axes of each: similarity and recognition end at one."""
    axes[0].set_ylim(min(0.0, axes[0].get_ylim()[0]), 1.05)
    axes[1].set_ylim(None, 1.03)


def tower_spans(*tables: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """First and last place of each tower on the axis, in order of appearance; ResultError where there is none."""
    found: dict[str, tuple[float, float]] = {}
    measured = [table for table in tables if not table.empty]
    if not measured:
        raise ResultError(
            "nothing was measured in encoder, projector or decoder; the report's limits say why"
        )
    both, start = pd.concat(measured), 0.0
    for tower, rows in both.groupby("tower", sort=False):
        end = start + float(rows["layer"].max())
        found[str(tower)] = (start, end)
        start = end + 1 + GAP
    return found


def axis_length(spans: dict[str, tuple[float, float]]) -> float:
    """Layers that the axis takes, blanks included."""
    return max(end for _, end in spans.values()) + 1 + GAP / 2


def _short(tower: str) -> str:
    if "projector" in tower:
        return "proj."
    return next((name for name in ("vision", "audio") if tower.startswith(name)), "decoder")
