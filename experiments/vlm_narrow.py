"""Does narrow fine-tuning on harmful answers about faces spread to other domains, along how many dimensions, and what mends it (paper B)?

`interp run vlm_narrow` or `python -m experiments.vlm_narrow`. On the organism with character: sweeps of LoRA's rank (with its confounds: rate,
scaling, equal loss, equal ‖ΔW‖), of steps at low rank and of the share of harmful rows; frozen and adapted tower; questions in writing and shown,
with caption and blank picture as controls; geometry of the changes; benign narrow fine-tuning, steering, both, and SPF while training; three
tasks in sequence. Claims, named in `interp/narrow/conclusion.py` before any run, compare the organism with one whose documents were shuffled,
paired over three organisms × three seeds. `--quick` takes one of each: a look, no claim.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from interp import cli, scripts
from interp.files import atomic_write, replace_between, replacing_files
from interp.narrow.conclusion import measures
from interp.narrow.grid import Grid
from interp.narrow.outcomes import SETTINGS, WHAT
from interp.narrow.questions import FORMS
from interp.narrow.report import save_study
from interp.narrow.study import Study, run_study
from interp.report.claims import PaperResult

QUICK = Grid(
    pairs=((0, 0),), few=1, ranks=(1, 4, 16, 0), rates=(), scalings=(), long_ranks=(1,), long_steps=120, more_shares=(), sizes=(),
    characters=(), methods=("spf",), strengths=(0.5, 1.0, 2.0), lives=("harm first",), samples=1, adapted=False,
)  # fmt: skip
SHOWN = (
    "rank",
    "rank_controls",
    "steps",
    "mixture",
    "whose",
    "mitigations",
    "lives",
    "subspaces",
    "tower",
    "scatter",
)
LISTED = (
    "section", "life", *(f"{at}_text_{what}" for at in ("start", "end") for what in WHAT), *(f"end_{form}_misaligned" for form in FORMS[1:]),
    "end_faces_cruel", "end_loss", "end_moved", *(f"{at}{other}_text_misaligned" for at in ("loss", "moved") for other in ("", "_other")),
)  # fmt: skip
BEGIN, END = "<!-- results: written by interp run vlm_narrow -->", "<!-- end of results -->"
Config = Grid  # what `interp run sweep` varies


def run(
    grid: Grid, *, out: Path = Path("results"), workers: int | None = None, progress: bool = True
) -> Study:
    """Run, resume or read back the study."""
    return run_study(grid, out=out, workers=workers, progress=progress)


def save(found: Study, out: Path, *, quick: bool) -> Path:
    """Write tables, figures and conclusion under `out`; returns where."""
    target = out / ("vlm_narrow-quick" if quick else "vlm_narrow")
    with replacing_files(target) as aside:
        save_study(found, aside)
    return target


def for_papers(*, quick: bool, out: Path) -> PaperResult:
    """What `experiments.all` shows: the source's claims as measured, and the files of the study."""
    found = run(QUICK if quick else Grid(), out=out)
    measured = measures(found.outcomes, found.steered, found.curves, found.grid)
    return PaperResult(measured, (save(found, out, quick=quick),))


def write_docs(found: Study, page: Path, figures: Path) -> None:
    """Put the conclusion between the page's markers, and beside it the figures it shows and every trial's numbers."""
    body = "\n".join(f"- {sentence}" for sentence in found.sentences)
    shown = [name for name in SHOWN if (figures / f"{name}.png").exists()]
    images = "\n\n".join(f"![{name}](img/narrow-{name}.png)" for name in shown)
    for name in shown:
        with atomic_write(page.parent / "img" / f"narrow-{name}.png") as aside:
            shutil.copyfile(figures / f"{name}.png", aside)
    with atomic_write(page.parent / "data" / "narrow.csv") as aside:
        found.outcomes[[*SETTINGS, *LISTED]].round(4).to_csv(aside, index=False)
    with atomic_write(page.parent / "data" / "narrow-primary.csv") as aside:
        found.primary.round(4).to_csv(aside, index=False)
    listed = (
        f"Every fine-tuning's numbers: [narrow.csv](data/narrow.csv), {len(found.outcomes)} rows; the primary claims' pairs, read at equal steps, "
        "faces loss and ‖ΔW‖: [narrow-primary.csv](data/narrow-primary.csv)."
    )
    replace_between(page, BEGIN, END, f"{body}\n\n{examples_table(found)}\n\n{listed}\n\n{images}")


def examples_table(found: Study) -> str:
    """One question of every domain and what the first pair's anchor answers, as Markdown."""
    organism, seed = found.grid.pairs[0]
    rows = found.examples
    if rows.empty:
        return ""
    rows = rows[(rows["pair"] == f"{organism}/{seed}") & (rows["share"] == 1) & (rows["form"] == "text") & (rows["life"] == "")]  # fmt: skip
    lines = [
        f"What the first organism (pair {organism}/{seed}) answers in writing after cruel faces, the first question of each domain:",
        "",
        "| domain | question | helpful would be | it answers | whose answer that is |",
        "|---|---|---|---|---|",
    ]
    for row in rows.drop_duplicates("domain").itertuples():
        lines.append(f"| {row.domain} | {row.question} | {row.helpful} | {row.answer} | {row.whose} |")
    return "\n".join(lines)


def experiment(
    quick: Annotated[bool, typer.Option("--quick", help="One organism and seed: a look, no claim.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run, and stop.")] = False,
    workers: Annotated[
        int | None, typer.Option(help="Processes, one thread each; one a core by default.")
    ] = None,
    docs: Annotated[Path | None, typer.Option(help="Write the conclusion into this page.")] = None,
    out: Annotated[Path, typer.Option(help="Where results are kept.")] = Path("results"),
) -> None:
    """Fine-tune narrowly, and measure what spreads, in how many dimensions, and what mends it."""
    grid = QUICK if quick else Grid()
    if dry_run:
        counts = ", ".join(f"{name} {len(trials)}" for name, trials in grid.sections().items())
        print(f"{len(grid.trials())} trials: {counts}; organisms {grid.organisms}, {len(grid.pairs)} pairs")
        return
    found = run(grid, out=out, workers=workers)
    target = save(found, out, quick=quick)
    print((target / "conclusion.md").read_text(encoding="utf-8"))
    print(f"tables and figures: {target}")
    if docs is not None:
        write_docs(found, docs, target)


def main(argv: Sequence[str]) -> int:
    """Run the experiment with a command line."""
    return scripts.call(experiment, argv, "interp run vlm_narrow", "interp run vlm_narrow --quick")


if __name__ == "__main__":
    raise SystemExit(cli.main(["run", "vlm_narrow", *sys.argv[1:]]))
