"""How much is refused in each modality, by the share of alignment that held pictures or speech?"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from interp.report.style import BLACK, DOUBLE, MARKERS, SERIES, new_figure, panel_letter, print_style


def refused_by_share(shares: pd.DataFrame, modalities: Sequence[str], title: str) -> Figure:
    """Requests refused by modality, harmful (a) and benign (b), one line a share: means over seeds, and every seed as a point.

    Args:
        shares: a row a seed and share, with the columns `share` (0 to 1) and `harmful M` and `benign M` (shares refused) for each modality.
        modalities: in the order drawn.
        title: what the share is of.
    """
    with print_style():
        made = new_figure(DOUBLE, 2.5)
        panels = made.subplots(1, 2)
        styles = zip(sorted(shares["share"].unique()), (BLACK, *SERIES), MARKERS, strict=False)
        for share, colour, marker in styles:
            part = shares[shares["share"] == share]
            for axes, label in zip(panels, ("harmful", "benign"), strict=True):
                columns = [f"{label} {modality}" for modality in modalities]
                for values in part[columns].to_numpy():
                    axes.plot(values, ".", color=colour, alpha=0.45, markersize=3, markeredgewidth=0)
                axes.plot(part[columns].mean().to_numpy(), color=colour, marker=marker, label=f"{share:.0%}")
        for axes, letter, label in zip(panels, "ab", ("harmful", "benign"), strict=True):
            axes.set_xticks(range(len(modalities)), [name.replace(" ", "\n") for name in modalities])
            axes.set_ylim(-0.02, 1.02)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            panel_letter(axes, letter, f"{label} requests refused")
        handles, labels = panels[0].get_legend_handles_labels()
        made.legend(handles, labels, loc="outside lower center", ncols=len(labels), title=title)
    return made
