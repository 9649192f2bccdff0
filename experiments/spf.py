"""Which way of fine-tuning keeps safety at equal utility, and do gradients look as SPF (paper C) says? On the text organism.

`interp run spf` or `python -m experiments.spf`. Fine-tunes organisms on a benign skill, on mixtures with harmful answers and for ten
times the steps, by plain training, SPF, SPF on the update, PCGrad, safety mixing and SafeLoRA; every method's settings are tuned
with the same budget on other organisms. Claims, named in `interp/defence/conclusion.py` before any run, are paired differences
at equal utility over eight organisms. `--quick` takes one organism and no tuning: a look, no claim.

`--recipe FILE` runs the source's setting on real checkpoints instead, `--dry-run` says what that takes.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from interp import cli, scripts
from interp.defence.compare import difference
from interp.defence.conclusion import insight_intervals
from interp.defence.grid import IN_TRAINING, Grid
from interp.defence.recipe import load_recipe, plan_recipe, run_recipe
from interp.defence.report import save_comparison
from interp.defence.study import Comparison, run_comparison
from interp.files import atomic_write, replace_between, replacing_files
from interp.report.claims import PaperResult

QUICK = Grid(
    seeds=(0,), tuning=(), methods=IN_TRAINING, fractions=(0.2,), deep=0, ks=(5,), refreshes=(10,), monitored=10,
    n_ablation=1, n_test=100,
)  # fmt: skip
SHOWN = ("pareto", "pareto_untuned", "attacks", "spectra", "conflict", "deep")
BEGIN, END = "<!-- results: written by interp run spf -->", "<!-- end of results -->"
Config = Grid  # what `interp run sweep` varies


def run(
    grid: Grid, *, out: Path = Path("results"), workers: int | None = None, progress: bool = True
) -> Comparison:
    """Run, resume or read back the comparison."""
    return run_comparison(grid, out=out, workers=workers, progress=progress)


def save(found: Comparison, out: Path, *, quick: bool) -> Path:
    """Write tables, figures and conclusion under `out`; returns where."""
    target = out / ("spf-quick" if quick else "spf")
    with replacing_files(target) as aside:
        save_comparison(found, aside)
    return target


def for_papers(*, quick: bool, out: Path) -> PaperResult:
    """What `experiments.all` shows: differences on the benign task, the three insights, and the files of the comparison."""
    found = run(QUICK if quick else Grid(), out=out)
    benign = found.outcomes[found.outcomes["section"] == "benign"]
    measured = {
        "spf_minus_plain_jsr": difference(benign, "spf", "plain", "at_jsr").interval,
        "spf_minus_mixing_jsr": difference(benign, "spf", "mixing", "at_jsr").interval,
        "spf_minus_plain_utility": difference(benign, "spf", "plain", "end_utility").interval,
    }
    insights = insight_intervals(*(found.geometry[name] for name in ("ranks", "conflicts", "overlaps")))
    return PaperResult(
        measured | {f"insight_{name}": value for name, value in insights.items()},
        (save(found, out, quick=quick),),
    )


def write_docs(found: Comparison, page: Path, figures: Path) -> None:
    """Put the conclusion between the page's markers, and the figures it shows beside it."""
    replace_between(page, BEGIN, END, "\n".join(f"- {sentence}" for sentence in found.sentences))
    for name in (name for name in SHOWN if (figures / f"{name}.png").exists()):
        with atomic_write(page.parent / "img" / f"spf-{name}.png") as aside:
            shutil.copyfile(figures / f"{name}.png", aside)


def experiment(
    quick: Annotated[
        bool, typer.Option("--quick", help="One organism, no tuning: a look, no claim.")
    ] = False,
    recipe: Annotated[Path | None, typer.Option(help="Run this recipe on real checkpoints instead.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run, and stop.")] = False,
    workers: Annotated[
        int | None, typer.Option(help="Processes, one thread each; one a core by default.")
    ] = None,
    docs: Annotated[Path | None, typer.Option(help="Write the conclusion into this page.")] = None,
    out: Annotated[Path, typer.Option(help="Where results are kept.")] = Path("results"),
) -> None:
    """Compare ways of fine-tuning that keep safety, or run a recipe on real checkpoints."""
    if recipe is not None:
        chosen = load_recipe(recipe)
        print(plan_recipe(chosen) if dry_run else run_recipe(chosen, out=out).to_string(index=False))
        return
    grid = QUICK if quick else Grid()
    if dry_run:
        sections = grid.sections({method: {} for method in grid.methods})
        counts = ", ".join(f"{name} {len(trials)}" for name, trials in sections.items())
        print(
            f"{len(grid.tuning_trials())} trials of tuning; {counts}; organisms {sorted({*grid.seeds, *grid.tuning})}"
        )
        return
    found = run(grid, out=out, workers=workers)
    target = save(found, out, quick=quick)
    print((target / "conclusion.md").read_text(encoding="utf-8"))
    print(f"tables and figures: {target}")
    if docs is not None:
        write_docs(found, docs, target)


def main(argv: Sequence[str]) -> int:
    """Run the experiment with a command line."""
    return scripts.call(experiment, argv, "interp run spf", "interp run spf --quick")


if __name__ == "__main__":
    raise SystemExit(cli.main(["run", "spf", *sys.argv[1:]]))
