"""Does SARSteer (paper D) make a model refuse harmful speech without refusing benign speech? On the audio organism, beside its baselines.

`interp run sarsteer` or `python -m experiments.sarsteer`. Operating curves of every arm (defence prompt, text direction, direction of
the asked modality, SARSteer with and without ablation, conditional, random) on held-out requests and voices, read at equal over-refusal
and at equal loss of right answers; ablations of λ, k, n and the layer; modality gap, safe space and cosines by layer. Claims, named in
`interp/steering_study/conclusion.py` before any run, are paired over calibration draws × organisms. `--quick` takes one of each: a look,
no claim. Audio organisms learnt to refuse in writing only, so that speech leaves something to gain; `--stage aligned` takes those whose
alignment held speech. `--kind text` asks fiction in place of speech, on text organisms.

`--recipe FILE` runs the source's setting on real checkpoints instead, `--dry-run` says what that takes.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from interp import cli, scripts
from interp.files import atomic_write, replace_between, replacing_files
from interp.report.claims import PaperResult
from interp.steering_study.conclusion import measures
from interp.steering_study.data import TARGET, Kind
from interp.steering_study.grid import AUDIO_SEEDS, TEXT_SEEDS, Grid
from interp.steering_study.recipe import load_recipe, plan_recipe, run_recipe
from interp.steering_study.report import save_comparison
from interp.steering_study.study import Comparison, run_comparison

STAGE: dict[Kind, str] = {"audio": "aligned-text", "text": "aligned"}
SHOWN = ("operating", "operating_lost", "modalities", "cosines", "safe_space", "ablations")
Config = Grid  # what `interp run sweep` varies


def grid(kind: Kind, stage: str, quick: bool) -> Grid:
    """The points of a full comparison, or of a look at one organism."""
    if not quick:
        return Grid(kind=kind, stage=stage, seeds=TEXT_SEEDS if kind == "text" else AUDIO_SEEDS)
    return Grid(
        kind=kind, stage=stage, seeds=((0, 0),), strengths=(0.0125, 0.05, 0.2), ablation_strengths=(0.05,), removals=(0.0, 1.0), ranks=(5, 20),
        sizes=(50, 100), layers=(3, 6, 9), variants=(), n_test=100,
    )  # fmt: skip


def run(
    chosen: Grid, *, out: Path = Path("results"), workers: int | None = None, progress: bool = True
) -> Comparison:
    """Run, resume or read back a comparison."""
    return run_comparison(chosen, out=out, workers=workers, progress=progress)


def save(found: Comparison, out: Path, *, quick: bool) -> Path:
    """Write tables, figures and the conclusion; returns their directory."""
    target = out / f"sarsteer-{found.grid.kind}-{found.grid.stage}{'-quick' if quick else ''}"
    with replacing_files(target) as aside:
        save_comparison(found, aside)
    return target


def for_papers(*, quick: bool, out: Path) -> PaperResult:
    """What `experiments.all` shows: the claims as measured on organisms that hear, and the files of the comparison."""
    found = run(grid("audio", STAGE["audio"], quick), out=out)
    measured = measures(found.base, found.read["over-refusal"], TARGET["audio"], found.grid.cost)
    return PaperResult(measured, (save(found, out, quick=quick),))


def markers(kind: Kind) -> tuple[str, str]:
    """Between which lines of the page the results of a kind of organism stand."""
    return (
        f"<!-- results: written by interp run sarsteer --kind {kind} -->",
        f"<!-- end of results, {kind} -->",
    )


def write_docs(found: Comparison, page: Path, figures: Path) -> None:
    """Put the conclusion between the page's markers, and the figures it shows beside it."""
    kind = found.grid.kind
    body = "\n".join(f"- {sentence}" for sentence in found.sentences)
    shown = [name for name in SHOWN if (figures / f"{name}.png").exists()]
    images = "\n\n".join(f"![{name}, {kind}](img/sarsteer-{kind}-{name}.png)" for name in shown)
    for name in shown:
        with atomic_write(page.parent / "img" / f"sarsteer-{kind}-{name}.png") as aside:
            shutil.copyfile(figures / f"{name}.png", aside)
    replace_between(page, *markers(kind), f"{body}\n\n{images}")


def experiment(
    kind: Annotated[
        Kind, typer.Option(help="Speech on audio organisms, or fiction on text organisms.")
    ] = "audio",
    stage: Annotated[
        str | None,
        typer.Option(help=f"Of the organism; otherwise {STAGE['audio']} (audio) or {STAGE['text']} (text)."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One organism and draw: a look, no claim.")] = False,
    recipe: Annotated[Path | None, typer.Option(help="Run this recipe on a real checkpoint instead.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run, and stop.")] = False,
    workers: Annotated[
        int | None, typer.Option(help="Processes, one thread each; one a core by default.")
    ] = None,
    docs: Annotated[Path | None, typer.Option(help="Write the conclusion into this page.")] = None,
    out: Annotated[Path, typer.Option(help="Where results are kept.")] = Path("results"),
) -> None:
    """Compare ways of steering towards refusal at equal over-refusal, or run a recipe on a real checkpoint."""
    if recipe is not None:
        settings = load_recipe(recipe)
        print(plan_recipe(settings) if dry_run else run_recipe(settings, out=out).to_string(index=False))
        return
    chosen = grid(kind, stage or STAGE[kind], quick)
    if dry_run:
        counts = {name: len(part) for name, part in chosen.ablations().items()}
        print(
            f"{len(chosen.trials())} points: {len(chosen.operating())} of operating curves, ablations {counts}; "
            f"organisms {sorted({organism for organism, _ in chosen.seeds})}, {len(chosen.seeds)} seeds"
        )
        return
    found = run(chosen, out=out, workers=workers)
    target = save(found, out, quick=quick)
    print((target / "conclusion.md").read_text(encoding="utf-8"))
    print(f"tables and figures: {target}")
    if docs is not None:
        write_docs(found, docs, target)


def main(argv: Sequence[str]) -> int:
    """Run the experiment with a command line."""
    return scripts.call(experiment, argv, "interp run sarsteer", "interp run sarsteer --kind text --quick")


if __name__ == "__main__":
    raise SystemExit(cli.main(["run", "sarsteer", *sys.argv[1:]]))
