"""What does a comparison of defences leave behind? Tables as CSV, figures as PNG and PDF, and a conclusion in words."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from interp.defence.compare import means
from interp.defence.conclusion import NAMES
from interp.defence.grid import IN_TRAINING
from interp.defence.study import GEOMETRY_TABLES, Comparison
from interp.report import defence_figures as draw
from interp.report.style import save_figure

OUTCOMES = ["at_jsr", "at_refused", "end_jsr", "end_refused", "end_utility", "end_over_refusal"]


def save_comparison(found: Comparison, directory: Path) -> None:
    """Write tables, figures and the conclusion into an existing directory."""
    benign = found.outcomes[found.outcomes["section"] == "benign"]
    tables = {
        "tuning": found.tuning,
        "outcomes": found.outcomes,
        "benign": means(benign, ["method"], OUTCOMES),
        "attacks": means(attacked(found), ["attack", "method"], ["complied-harmful", "refused"]),
        "bounds": bounds(found),
        "overhead": overhead(found),
        **{name: found.geometry[name] for name in GEOMETRY_TABLES},
    }  # fmt: skip
    for name, table in tables.items():
        table.to_csv(directory / f"{name}.csv", index=False)
    for name, figure in figures(found).items():
        save_figure(figure, directory, name)
    settings = "\n".join(
        f"- {NAMES[method]}: " + ", ".join(f"{key} {value}" for key, value in chosen.items())
        for method, chosen in found.settings.items()
    ).replace("_", " ")
    body = "\n".join(f"- {sentence}" for sentence in found.sentences)
    quick = "" if len(found.grid.seeds) > 1 else "**One seed: a look, no claim.**\n\n"
    (directory / "conclusion.md").write_text(
        f"# Defences compared\n\n{quick}{body}\n\nSettings, chosen on organisms {list(found.grid.tuning)}:\n\n{settings}\n",
        encoding="utf-8",
    )


def figures(found: Comparison) -> dict[str, Figure]:
    """All figures of the comparison by file name."""
    part = dict(iter(found.outcomes.groupby("section", sort=False)))
    curves = dict(iter(found.curves.groupby("section", sort=False)))
    drawn: dict[str, Figure] = {
        "pareto": draw.pareto(curves["benign"], part["benign"], found.grid.utility),
        "spectra": draw.spectra(found.geometry["spectra"], found.geometry["ranks"]),
        "conflict": draw.conflict_map(found.geometry["conflicts"]),
        "overlap": draw.overlap_by_layer(found.geometry["overlaps"]),
        "steps": draw.over_steps(found.steps[found.steps["section"] == "benign"]),
        "attacks": draw.attacks(attacked(found)),
        "drift": draw.drift_and_bound(bounds(found)),
    }
    if "untuned" in part:
        drawn["pareto_untuned"] = draw.pareto(curves["untuned"], part["untuned"], found.grid.utility)
    if "mixture" in part:
        both = pd.concat(
            [part["benign"][part["benign"]["method"].isin(found.grid.in_training)], part["mixture"]]
        )
        drawn["mixture"] = draw.by_setting(both, "harmful_fraction", "share of harmful examples")
    if "deep" in curves:
        drawn["deep"] = draw.deep(curves["deep"])
    for section, label in (
        ("k", "protected singular vectors k"),
        ("refresh", "steps between computations of g_s"),
    ):
        if section in part:
            drawn[section] = draw.by_setting(part[section], section, label, log=True)
    if "monitor" in curves:
        monitor = found.monitor[
            (found.monitor["section"] == "monitor") & (found.monitor["step"] <= found.grid.monitored)
        ]
        drawn["monitor"] = draw.monitor_curves(monitor, curves["monitor"])
    return drawn


def attacked(found: Comparison) -> pd.DataFrame:
    """Outcomes under each attack after benign fine-tuning, and of the organism itself as the method `aligned`."""
    rows = found.attacks[found.attacks["section"].isin(["benign", "aligned"])]
    return rows.assign(method=rows["method"].where(rows["section"] == "benign", "aligned"))


def bounds(found: Comparison) -> pd.DataFrame:
    """At each evaluated step of the benign trials: measured rise of the held-out safety loss, first-order sum, and its bound.

    The bound adds up `‖Δθ‖ · tail`, what an update that keeps out of the protected subspaces could do to the loss of the refusal they
    were found on, to first order (Cauchy–Schwarz); for a method without subspaces the tail is the whole of `‖g_s‖`.
    """
    rows = []
    benign = found.curves[(found.curves["section"] == "benign") & found.curves["method"].isin(IN_TRAINING)]
    for (method, seed), curve in benign.groupby(["method", "seed"], sort=False):
        steps = found.steps
        steps = steps[(steps["section"] == "benign") & (steps["method"] == method) & (steps["seed"] == seed)]
        steps = steps.sort_values("step")
        first, most = steps["drift"].cumsum(), (steps["update_norm"] * steps["tail"]).cumsum()
        start = curve["held_out_loss"].iloc[0]
        for step, loss in zip(curve["step"].tolist(), curve["held_out_loss"].tolist(), strict=True):
            if step:
                rows.append((method, seed, step, loss - start, first.iloc[step - 1], most.iloc[step - 1]))
    return pd.DataFrame(rows, columns=["method", "seed", "step", "measured", "first_order", "bound"])


def overhead(found: Comparison) -> pd.DataFrame:
    """Seconds of training of each method in the benign section, and their ratio to plain (which computes `g_s` for its log too)."""
    benign = found.outcomes[found.outcomes["section"] == "benign"]
    table = means(benign, ["method"], ["seconds"]).drop(columns=["column", "asked"])
    base = float(table.loc[table["method"] == "plain", "mean"].iloc[0])
    return table.assign(ratio=table["mean"] / base)
