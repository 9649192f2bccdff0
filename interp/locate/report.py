"""What does the experiment leave behind? Tables as CSV, figures as PNG and PDF, and a conclusion in words."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from interp.locate.compare import CELL, LAST, cells, mean_grid, over_seeds
from interp.locate.conclusion import conclude, finetunes
from interp.locate.study import Located
from interp.report import patching_figures as draw
from interp.report.style import save_figure

MAPS = ("resid_pre", "attn_out", "mlp_out")


def save_located(found: Located, directory: Path) -> list[str]:
    """Write tables, figures and the conclusion into an existing directory; returns the sentences."""
    for name, table in found.tables.items():
        table.to_csv(directory / f"{name}.csv", index=False)
    for name, figure in figures(found).items():
        save_figure(figure, directory, name)
    sentences = conclude(found)
    quick = "" if found.tables["grids"]["seed"].nunique() > 1 else "**One seed: a look, no claim.**\n\n"
    body = "\n".join(f"- {sentence}" for sentence in sentences)
    (directory / "conclusion.md").write_text(f"# Where refusal lives\n\n{quick}{body}\n", encoding="utf-8")
    return sentences


def figures(found: Located) -> dict[str, Figure]:
    """All figures by file name."""
    drawn: dict[str, Figure] = {}
    for kind in dict.fromkeys(found.tables["grids"]["kind"]):
        grids = found.tables["grids"]
        grids = grids[grids["kind"] == kind]
        for finetune, of in (("", "twins"), *((name, "lost") for name in finetunes(grids))):
            stem = f"{kind}-{finetune or 'aligned'}"
            drawn |= {
                f"{stem}-{name}": figure for name, figure in _of_trial(grids, kind, finetune, of).items()
            }
            if finetune:
                drawn |= {
                    f"{stem}-{name}": figure for name, figure in _of_weights(found, kind, finetune).items()
                }
    return drawn


def _of_trial(grids: pd.DataFrame, kind: str, finetune: str, of: str) -> dict[str, Figure]:
    """Maps, heads, agreement, and the last token's stream with its guards, averaged over seeds."""

    def mean(name: str, of: str = of) -> pd.DataFrame:
        return mean_grid(grids, name, of=of, kind=kind, finetune=finetune)

    exact = {name: mean(name) for name in (*MAPS, "z")}
    estimate = {name: mean(f"{name}, attribution") for name in exact}
    shown = {
        "whole stream": exact["resid_pre"],
        "without what the metric reads": mean("resid_pre, guarded"),
        "whole stream, still refused": mean("resid_pre", "kept") if of == "lost" else pd.DataFrame(),
    }
    null = mean("resid_pre, null")
    raw = [_raw(cells(grids, n, of=of, kind=kind, finetune=finetune)) for n in exact]
    raw_estimate = [
        _raw(cells(grids, f"{n}, attribution", of=of, kind=kind, finetune=finetune)) for n in exact
    ]
    return {
        "maps": draw.patch_maps([exact[name] for name in MAPS]),
        "heads": draw.patch_maps([exact["z"], estimate["z"]]),
        "agreement": draw.agreement_scatter(
            [table.assign(stream=name) for table, name in zip(raw, exact, strict=True)], raw_estimate
        ),
        "last": draw.layer_curves(
            {name: table for name, table in shown.items() if len(table)},
            column=LAST,
            null=null if len(null) else None,
        ),
    }


def _raw(table: pd.DataFrame) -> pd.DataFrame:
    return over_seeds(table, CELL, "raw_value").rename(columns={"value": "raw_value"})


def _of_weights(found: Located, kind: str, finetune: str) -> dict[str, Figure]:
    parts = found.tables["parts"]
    parts = parts[(parts["kind"] == kind) & (parts["finetune"] == finetune)] if len(parts) else parts
    if parts.empty:
        return {}
    blocks = parts[parts["part"] == "blocks"]
    by_measure: dict[str, pd.DataFrame] = {
        str(name): over_seeds(own, CELL, "value" if name == "log-odds" else "raw_value")
        for name, own in blocks.groupby("measure", sort=False)
    }
    modules = over_seeds(parts[parts["part"] == "module"], CELL).assign(
        stream="weights", method="exact", axis="module"
    )
    restored = found.tables["restored"]
    restored = restored[(restored["kind"] == kind) & (restored["finetune"] == finetune)]
    return {
        "blocks": draw.block_curves({"log-odds, share of the gap": by_measure.pop("log-odds")}),
        "blocks_answers": draw.block_curves(by_measure, "change of the share of answers"),
        "modules": draw.patch_maps([modules], ["weights put back, module by module"]),
        "restored": draw.restored_curves(restored),
    }
