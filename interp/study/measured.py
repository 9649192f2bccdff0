"""How does a probe keep what it measured? Tables and figures in one result directory, computed once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from pydantic import BaseModel

from interp.data.prompts import PromptSet
from interp.files import writing
from interp.models.checkpoint import Checkpoint
from interp.report.style import save_figure
from interp.store import open_run, slugify

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PARTS = ("study", "models", "geometry", "methods", "evals", "report")


def keep(
    name: str,
    config: BaseModel,
    checkpoints: Sequence[str],
    prompts: Sequence[PromptSet],
    compute: Callable[[], Mapping[str, pd.DataFrame]],
    draw: Callable[[Mapping[str, pd.DataFrame]], Mapping[str, Figure]],
    script: ModuleType,
    out: Path | str = Path("results"),
) -> tuple[dict[str, pd.DataFrame], Path]:
    """Compute the tables of a probe, or read back those of the same config, weights, prompts and code; return them with their directory.

    Args:
        name: of the probe, the directory under `out`.
        compute: the tables by name, kept as Parquet and CSV. draw: the figures by name, from the tables.
        script: the probe's own module, part of what identifies the result.

    Raises ResultError when `out` cannot be written, and whatever `compute` raises.
    """
    inputs: dict[str, Path | str] = {
        f"weights of {text}": Checkpoint.parse(text).fingerprint() for text in checkpoints
    }
    inputs |= {f"prompts {i} {part.name}": part.sha256 for i, part in enumerate(prompts)}
    here = Path(__file__).parents[1]
    code = [path for part in PARTS for path in sorted((here / part).glob("[!_]*.py"))]
    slug = slugify("-".join(Checkpoint.parse(text).short_name for text in checkpoints))
    with open_run(out, name, slug, config, inputs, [script, *code]) as run:
        if not run.finished:
            tables = compute()
            figures = run.file("figures/x").parent
            for key, table in tables.items():
                run.save_table(f"{key}.parquet", table)
                with writing(run.path):
                    table.to_csv(run.path / f"{key}.csv", index=False)
            with writing(run.path):
                for key, figure in draw(tables).items():
                    save_figure(figure, figures, key)
        run.finish()
        names = sorted(path.stem for path in run.path.glob("*.parquet"))
        return {key: run.load_table(f"{key}.parquet") for key in names}, run.path
