"""Does benign spoken fine-tuning break refusal, does nearness to harm decide it, and where? (paper A) On the audio organism.

`interp run audio_benign` or `python -m experiments.audio_benign`. Fine-tunes audio organisms on the quarter of benign speech nearest to
harmful speech, farthest from it, or random, on every axis (words, voices, a mixed encoder, a combined rank, the model's own encoder and
projector), as speech and as text; asks harmful speech and text; looks inside by layer; compares defences at matched utility and two
bridges into the decoder. Claims, named in `interp/benign_audio/effects.py` and `experiments/published.yaml` before any run, are paired over
organisms × seeds. `--quick` takes one of each: a look, no claim.

Budget: 261 fine-tunes of 24 s of a core, 40 more where one looks inside and 15 to locate: three hours of a core, beside building three
organisms (17 min of a core each) and their twins with the other bridge (7 min). `--quick` takes nine small ones, four and a half minutes on a built
organism. Each is kept by itself: a run that was cut off goes on.

`--recipe FILE` runs the source's setting on a real checkpoint instead, `--dry-run` says what that takes.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from interp import cli, scripts
from interp.benign_audio.effects import measured
from interp.benign_audio.grid import Dose, Grid
from interp.benign_audio.recipe import load_recipe, plan_recipe, run_recipe
from interp.benign_audio.report import save_study
from interp.benign_audio.study import Study, run_study
from interp.files import atomic_write, replace_between, replacing_files
from interp.report.claims import PaperResult

QUICK = Grid(
    organisms=(0,), seeds=(0,), tuning=(), axes=("semantic", "acoustic"), shares=(), n_null=0, text=False, unplanted=False, taught_too=False, by_class=False,
    defences=("plain",), bridged=(), evaluate_at=(20, 40), strengths=(0.05,), n_items=400, n_harmful=100, n_test=60, n_probe=60,
    n_fit=60, n_pairs=12,
)  # fmt: skip
SHOWN = ("safety", "classes", "by_share", "projection", "recognition", "ways", "defences", "bridges")
BEGIN, END = "<!-- results: written by interp run audio_benign -->", "<!-- end of results -->"
Config = Grid  # what `interp run sweep` varies


def run(
    grid: Grid, *, out: Path = Path("results"), workers: int | None = None, progress: bool = True
) -> Study:
    """Run, resume or read back the study."""
    return run_study(grid, out=out, workers=workers, progress=progress)


def save(found: Study, out: Path, *, quick: bool) -> Path:
    """Write tables, figures and conclusion under `out`; returns where."""
    target = out / ("audio-benign-quick" if quick else "audio-benign")
    with replacing_files(target) as aside:
        save_study(found, aside)
    return target


def for_papers(*, quick: bool, out: Path) -> PaperResult:
    """What `experiments.all` shows: the intervals that the claims ask for, and the files of the study."""
    found = run(QUICK if quick else Grid(), out=out)
    return PaperResult(measured(found), (save(found, out, quick=quick),))


def write_docs(found: Study, page: Path, target: Path) -> None:
    """Put the conclusion between the page's markers, and beside it the figures it shows and every fine-tune's numbers."""
    said = (target / "conclusion.md").read_text(encoding="utf-8").split("\n\n", 1)[1].strip()
    shown = [name for name in SHOWN if (target / f"{name}.png").exists()]
    images = "\n\n".join(f"![{name}](img/audio-benign-{name}.png)" for name in shown)
    for name in shown:
        with atomic_write(page.parent / "img" / f"audio-benign-{name}.png") as aside:
            shutil.copyfile(target / f"{name}.png", aside)
    with atomic_write(page.parent / "data" / "audio-benign.csv") as aside:
        found.shares.round(4).to_csv(aside, index=False)
    listed = (
        f"Numbers of every fine-tune and of the aligned models, a row a section that counts it: [audio-benign.csv](data/audio-benign.csv), "
        f"{len(found.shares)} rows."
    )
    replace_between(page, BEGIN, END, f"{said}\n\n{listed}\n\n{images}".strip())


def experiment(
    quick: Annotated[bool, typer.Option("--quick", help="One organism and seed: a look, no claim.")] = False,
    recipe: Annotated[Path | None, typer.Option(help="Run this recipe on a real checkpoint instead.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run, and stop.")] = False,
    workers: Annotated[
        int | None, typer.Option(help="Processes, one thread each; one a core by default.")
    ] = None,
    docs: Annotated[Path | None, typer.Option(help="Write the conclusion into this page.")] = None,
    out: Annotated[Path, typer.Option(help="Where results are kept.")] = Path("results"),
) -> None:
    """Fine-tune on benign speech near to harm and far from it, or run a recipe on a real checkpoint."""
    if recipe is not None:
        chosen = load_recipe(recipe)
        print(plan_recipe(chosen) if dry_run else run_recipe(chosen, out=out).to_string(index=False))
        return
    grid = QUICK if quick else Grid()
    if dry_run:
        sections = grid.sections(Dose(half=grid.rates[0], taught=grid.rates[-1]))
        counts = ", ".join(f"{name} {len(trials)}" for name, trials in sections.items())
        controls = 2 * len(grid.units) if grid.by_class else 0
        trials = {*grid.tuning_trials(), *(t for part in sections.values() for t in part)}
        total = sum(t.rule != "aligned" for t in trials) + controls
        print(
            f"{total} fine-tunes: {len(grid.tuning_trials())} of tuning; {counts}, controls of classes {controls}; organisms {grid.built}, "
            f"{len(grid.units)} units"
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
    return scripts.call(experiment, argv, "interp run audio_benign", "interp run audio_benign --quick")


if __name__ == "__main__":
    raise SystemExit(cli.main(["run", "audio_benign", *sys.argv[1:]]))
