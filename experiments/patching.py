"""Where does refusal live, where did a fine-tune break it, and does putting only that back restore it? On model organisms.

`interp run patching` or `python -m experiments.patching`. Activation patching between harmful requests and their benign twins, and between
aligned and tuned checkpoints; transplants of weights by module and by block, and of the best modules beside random ones, with what they cost in
benign answers and in the skill learnt. Claims, named in `interp/locate/conclusion.py` before any run, are paired differences over eight
organisms of text and three each of vision and audio, which are built and fine-tuned where they are missing. `--quick` takes one: a look, no claim.
"""

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from interp import cli, scripts
from interp.errors import UserError
from interp.files import atomic_write, replace_between, replacing_files
from interp.locate.report import save_located
from interp.locate.study import Located, Plan, describe, run_study

QUICK = {
    "kinds": ("text",),
    "seeds": (0,),
    "n_pairs": 24,
    "n_select": 24,
    "n_test": 40,
    "ks": (1, 8, 32),
    "n_random": 2,
}
SHOWN = (
    "text-aligned-maps",
    "text-aligned-last",
    "text-benign-last",
    "text-benign-blocks",
    "text-benign-restored",
    "vision-aligned-maps",
    "vision-benign-restored",
    "audio-aligned-maps",
    "audio-benign-restored",
)
BEGIN, END = "<!-- results: written by interp run patching -->", "<!-- end of results -->"
Config = Plan  # what `interp run sweep` varies


def run(
    plan: Plan, *, out: Path = Path("results"), workers: int | None = None, progress: bool = True
) -> Located:
    """Run, resume or read back the experiment."""
    return run_study(plan, out=out, workers=workers, progress=progress)


def write_docs(sentences: Sequence[str], page: Path, figures: Path) -> None:
    """Put the conclusion between the page's markers, and the figures it shows beside it."""
    shown = [name for name in SHOWN if (figures / f"{name}.png").exists()]
    body = "\n".join(f"- {sentence}" for sentence in sentences)
    images = "\n\n".join(f"![{name}](img/patching-{name}.png)" for name in shown)
    replace_between(page, BEGIN, END, f"{body}\n\n{images}")
    for name in shown:
        with atomic_write(page.parent / "img" / f"patching-{name}.png") as aside:
            shutil.copyfile(figures / f"{name}.png", aside)


def experiment(
    quick: Annotated[bool, typer.Option("--quick", help="One organism: a look, no claim.")] = False,
    kind: Annotated[
        list[str] | None,
        typer.Option(help="text, vision or audio, several times for several; otherwise all."),
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Organisms, instead of the planned ones.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run, and stop.")] = False,
    workers: Annotated[
        int | None, typer.Option(help="Processes, one thread each; one a core by default.")
    ] = None,
    docs: Annotated[Path | None, typer.Option(help="Write the conclusion into this page.")] = None,
    out: Annotated[Path, typer.Option(help="Where results are kept.")] = Path("results"),
) -> None:
    """Find where refusal lives and where fine-tuning broke it, over several organisms."""
    settings: dict[str, object] = dict(QUICK) if quick else {}
    if kind:
        if odd := set(kind) - {"text", "vision", "audio"}:
            raise UserError(f"unknown kind of organism {min(odd)!r}; use text, vision or audio")
        settings["kinds"] = tuple(kind)
    if seed:
        settings["seeds"] = tuple(seed)
    plan = Plan.model_validate(settings)
    if dry_run:
        print("\n".join(describe(trial) for trial in plan.trials()))
        return
    found = run(plan, out=out, workers=workers)
    target = out / ("patching-quick" if quick else "patching")
    with replacing_files(target) as aside:
        sentences = save_located(found, aside)
    print((target / "conclusion.md").read_text(encoding="utf-8"))
    print(f"tables and figures: {target}")
    if docs is not None:
        write_docs(sentences, docs, target)


def main(argv: Sequence[str]) -> int:
    """Run the experiment with a command line."""
    return scripts.call(experiment, argv, "interp run patching", "interp run patching --quick")


if __name__ == "__main__":
    raise SystemExit(cli.main(["run", "patching", *sys.argv[1:]]))
