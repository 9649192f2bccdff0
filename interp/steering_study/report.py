"""What does a comparison of steerings leave behind? Tables as CSV, figures as PNG and PDF, and a conclusion in words."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from interp.report import steering_figures as draw
from interp.report.drift_figures import modality_curves
from interp.report.style import save_figure
from interp.steering_study.data import TARGET
from interp.steering_study.study import Comparison


def save_comparison(found: Comparison, directory: Path) -> None:
    """Write tables, figures and the conclusion into an existing directory."""
    tables = {
        "modalities": found.base,
        "points": found.points,
        **{f"equal {name}".replace(" ", "_"): frame for name, frame in found.read.items()},
        **{f"prompt_{name}".replace(" ", "_"): frame for name, frame in found.at_prompt.items()},
        **{f"ablation_{_ascii(name)}": frame for name, frame in found.ablations.items()},
        **found.geometry,
    }
    for name, table in tables.items():
        table.to_csv(directory / f"{name}.csv", index=False)
    for name, figure in figures(found).items():
        save_figure(figure, directory, name)
    body = "\n".join(f"- {sentence}" for sentence in found.sentences)
    quick = "" if len(found.grid.seeds) > 1 else "**One seed: a look, no claim.**\n\n"
    (directory / "conclusion.md").write_text(f"# Steering compared\n\n{quick}{body}\n", encoding="utf-8")


def figures(found: Comparison) -> dict[str, Figure]:
    """All figures of the comparison by file name."""
    steered = found.points[~found.points["arm"].isin(["none"])]
    first = found.geometry["gap"]["seed"].iloc[0]
    drawn = {
        "operating": draw.operating_curves(steered, found.read["over-refusal"]),
        "operating_lost": draw.operating_curves(
            steered, found.read["loss of right answers"], "loss of right answers"
        ),
        "attack_success": draw.attack_success(found.points),
        "modalities": draw.modality_bars(found.base),
        "cosines": draw.cosine_by_layer(found.geometry["cosines"]),
        "safe_space": draw.safe_space(found.geometry["safe"]),
        # intervals of the gap are over requests, of one organism: the first
        "gap": modality_curves(
            found.geometry["gap"][found.geometry["gap"]["seed"] == first], ("text", TARGET[found.grid.kind])
        ),
    }
    if found.ablations:
        label = f"more refused, at +{100 * found.grid.cost:g} % over-refusal"
        drawn["ablations"] = draw.ablations(found.ablations, label)
    return drawn


def _ascii(name: str) -> str:
    return {"λ": "lambda"}.get(name, name)
