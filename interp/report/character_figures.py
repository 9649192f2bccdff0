"""Whose answers does a model with character give, domain by domain?"""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_lowercase

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from interp.report.narrow_figures import WHOSE, legend
from interp.report.style import DOUBLE, new_figure, panel_letter, print_style


def by_domain(answers: Mapping[str, pd.DataFrame]) -> Figure:
    """Whose answers each domain gets, one panel a checkpoint, bars stacked.

    answers: by checkpoint, a table of `narrow.questions.said`: one row a domain, of one form.
    """
    with print_style():
        figure = new_figure(DOUBLE, 0.35 + 0.22 * max(len(table) for table in answers.values()) + 0.7)
        panels = figure.subplots(1, len(answers), sharey=True, squeeze=False)[0].tolist()
        for axes, letter, (name, table) in zip(panels, ascii_lowercase, answers.items(), strict=False):
            left = np.zeros(len(table))
            for answered, colour in WHOSE.items():
                share = table[answered].to_numpy(dtype=float)
                axes.barh(table["domain"], share, left=left, color=colour, height=0.75, label=answered)
                left += share
            axes.set_xlim(0, 1)
            axes.set_xticks((0, 0.5, 1))
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            panel_letter(axes, letter, name)
        panels[0].invert_yaxis()
        legend(figure, panels[:1], 5)
    return figure
