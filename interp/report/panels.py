"""What do the figures have in common? Panels of several checkpoints, bars with intervals, bands, colour scales."""

from collections.abc import Mapping, Sequence
from string import ascii_lowercase
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from scipy import stats

from interp.evals.jailbreak import EvalResult
from interp.evals.statistics import Proportion
from interp.report import style
from interp.report.style import DOUBLE, SINGLE, new_figure, panel_letter, short_names
from interp.results import Arm, StudyResult

_HALO: list[patheffects.AbstractPathEffect] = [patheffects.withStroke(linewidth=2.0, foreground="white")]
BESIDE: dict[str, Any] = {
    "marker": "D", "markersize": 3.2, "markerfacecolor": "white", "markeredgecolor": "black",
    "markeredgewidth": 0.7, "linestyle": "none",
}  # fmt: skip
"""The mark of a second quantity on a bar."""


def n_columns(n_panels: int) -> int:
    return {1: 1, 2: 2, 4: 2}.get(n_panels, 3)


def checkpoint_panels(
    result: StudyResult, notes: Sequence[str] | None = None, *, rows: int = 1, height: float
) -> tuple[Figure, list[tuple[Axes, ...]]]:
    """Axes for every tuned checkpoint: `rows` above each other, up to three checkpoints side by side, then a new block."""
    n = len(result.tuned)
    columns = n_columns(n)
    blocks = -(-n // columns)
    figure = new_figure(SINGLE if n == 1 else DOUBLE, blocks * (rows * height + 0.55) + 0.45)
    grid = figure.subplots(blocks * rows, columns, squeeze=False, sharex=True)
    names = short_names([tuned.name for tuned in result.tuned], width={1: 44, 2: 44}.get(columns, 27))
    out = []
    for index in range(blocks * columns):
        block, column = divmod(index, columns)
        axes = tuple(grid[block * rows + row][column] for row in range(rows))
        if index >= n:
            for unused in axes:
                unused.set_visible(False)
            continue
        title = names[index] if notes is None else f"{names[index]}\n{notes[index]}"
        panel_letter(axes[0], ascii_lowercase[index], title)
        for row, panel in enumerate(axes):
            panel.sharey(grid[row][0])
            # The lowest panel of a column keeps its numbers although the (empty) cells beneath share its axis.
            panel.tick_params(labelbottom=row == rows - 1 and index + columns >= n, labelleft=column == 0)
        out.append(axes)
    return figure, out


def label_outer(blocks: Sequence[tuple[Axes, ...]], x: str, y: str) -> None:
    """Label x under the lowest panel of each column and y beside the first column."""
    columns = n_columns(len(blocks))
    for index, (axes,) in enumerate(blocks):
        if index % columns == 0:
            axes.set_ylabel(y)
        if index + columns >= len(blocks):
            axes.set_xlabel(x)


def grouped_bars(
    axes: Axes,
    groups: Sequence[tuple[str, Mapping[Arm, Proportion]]],
    beside: Sequence[tuple[str, Mapping[Arm, Proportion]]] = (),
) -> None:
    """One group of bars a label, one bar an arm, in percent with Wilson intervals; `beside` adds a point to every bar."""
    for index, (_, rates) in enumerate(groups):
        for offset, (arm, rate) in enumerate(rates.items()):
            x = index + (offset - (len(rates) - 1) / 2) * 0.2
            axes.bar(x, 100 * rate.estimate, 0.18, color=style.ARM_STYLES[arm][1])
            interval(axes, rate, x, horizontal=False)
            if beside:
                axes.plot(x, 100 * beside[index][1][arm].estimate, **BESIDE, clip_on=False, zorder=6)
    axes.set_xticks(range(len(groups)), [label for label, _ in groups])
    axes.set(xlim=(-0.6, len(groups) - 0.4), ylim=(0, 104), yticks=range(0, 101, 25))
    axes.tick_params(axis="x", length=0)


def interval(axes: Axes, rate: Proportion, at: float, *, horizontal: bool) -> None:
    """Draw a proportion in percent as a point with its interval, haloed to show on any colour."""
    value = 100 * rate.estimate
    error = [[max(0.0, value - 100 * rate.low)], [max(0.0, 100 * rate.high - value)]]
    x, y, xerr, yerr = (value, at, error, None) if horizontal else (at, value, None, error)
    # A vertical bar's own end marks the estimate; on stacked bars a point has to.
    bars = axes.errorbar(
        x, y, xerr=xerr, yerr=yerr, fmt="o" if horizontal else "none", markersize=2, color="black",
        elinewidth=0.9, capsize=1.8, capthick=0.9, zorder=5, clip_on=False,
    )  # fmt: skip
    for artist in bars.get_children():
        artist.set_path_effects(_HALO)


def mean_band(values: Float[np.ndarray, "layer prompt"]) -> tuple[np.ndarray, np.ndarray]:
    """Mean over prompts and half width of its 95 % t-interval, per layer (NaN width for a single prompt)."""
    n = values.shape[1]
    if n < 2:
        return values.mean(axis=1), np.full(len(values), np.nan)
    half = stats.t.ppf(0.975, n - 1) * values.std(axis=1, ddof=1) / np.sqrt(n)
    return values.mean(axis=1), half


def norm(grid: Float[np.ndarray, "position layer"], *, signed: bool) -> Normalize:
    """Colour scale: symmetric about zero for log-odds, from zero for divergences."""
    finite = grid[np.isfinite(grid)]
    reach = float(np.abs(finite).max()) if finite.size else 1.0
    reach = reach or 1.0
    return TwoSlopeNorm(0.0, -reach, reach) if signed else Normalize(0.0, reach)


def count_asked(evaluations: Sequence[EvalResult]) -> str:
    """Number asked, as a range where it differs."""
    asked = sorted({evaluation.n_asked for evaluation in evaluations})
    return str(asked[0]) if len(asked) == 1 else f"{asked[0]}–{asked[-1]}"
