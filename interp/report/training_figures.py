"""How did one fine-tuning go? Curves of surgery and of the safety monitor, from the tables that they leave."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from interp.report.style import (
    BLACK,
    BLUE,
    DOUBLE,
    GREY,
    SINGLE,
    VERMILLION,
    new_figure,
    panel_letter,
    print_style,
)

PANELS = {
    "cosine": "cos(g_s, g_u)",
    "open": "share of gates open",
    "removed": "share of norm removed",
    "drift": "⟨Δθ, g_s⟩ (nats)",
    "safety_loss": "safety loss (nats)",
}


def surgery_curves(table: pd.DataFrame, *, window: int = 10) -> Figure:
    """What surgery saw and did at every step, faint, with its mean over `window` steps; held-out safety loss beside that of the safety set.

    Args:
        table: `surgery_table`, or the parquet file of a run read back.
    """
    with print_style():
        figure = new_figure(DOUBLE, 4.2)
        grid = figure.subplots(2, 3, sharex=True)
        for axes, letter, (column, label) in zip(grid.flat, "abcde", PANELS.items(), strict=False):
            axes.plot(table["step"], table[column], color=GREY, alpha=0.35, linewidth=0.6)
            smooth = table[column].rolling(window, center=True, min_periods=1).mean()
            axes.plot(table["step"], smooth, color=VERMILLION, label=f"mean of {window} steps")
            axes.axhline(0, color=BLACK, linewidth=0.5)
            axes.set_ylabel(label)
            panel_letter(axes, letter)
        if "held_out_loss" in table and table["held_out_loss"].notna().any():
            held_out = table.dropna(subset=["held_out_loss"])
            grid[1][1].plot(
                held_out["step"], held_out["held_out_loss"], color=BLUE, marker="o", label="held-out refusals"
            )
        grid[1][2].set_visible(False)
        for axes in grid[1]:
            axes.set_xlabel("optimiser step")
        grid[0][2].tick_params(labelbottom=True)
        figure.legend(*grid[1][1].get_legend_handles_labels(), loc="outside lower right")
    return figure


def safety_curve(table: pd.DataFrame, *, alarm: float = 0.05) -> Figure:
    """The monitor's refusal score (a) and its leak (b) with the threshold of the alarm.

    Args:
        table: `SafetyMonitor.to_frame()`, or its parquet file read back.
        alarm: the monitor's `alarm`.
    """
    with print_style():
        figure = new_figure(SINGLE, 3.4)
        top, bottom = figure.subplots(2, 1, sharex=True)
        top.plot(table["step"], table["refusal_score"], color=BLUE, marker="o")
        top.axhline(0, color=BLACK, linewidth=0.5)
        top.set_ylabel("refusal score (log-odds)")
        bottom.plot(table["step"], table["leak"], color=VERMILLION, marker="o", label="leak")
        bottom.plot(
            table["step"], table["kl"], color=GREY, marker="s", label="KL from the aligned model (nats)"
        )
        bottom.axhline(
            table["leak"].iloc[0] + alarm, color=BLACK, linestyle="--", linewidth=0.8, label="alarm"
        )
        bottom.set_ylim(bottom=0)
        bottom.set_xlabel("optimiser step")
        bottom.legend(loc="best")
        panel_letter(top, "a")
        panel_letter(bottom, "b")
    return figure
