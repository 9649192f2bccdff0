"""What does the lab show in five minutes? Build the text organism, fine-tune it on benign data, study what that broke.

`make demo`, `interp run demo` or `python -m experiments.demo`. A second run reuses everything.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict

from interp import cli, scripts
from interp.organisms import text, text_finetunes
from interp.results import StudyResult
from interp.study import StudyConfig, run_study
from interp.summary import print_study


class Config(BaseModel):
    """Settings of the demo."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = 0
    out: Path = Path("results")


def run(config: Config, *, progress: bool = True) -> tuple[StudyResult, Path]:
    """Build, fine-tune and study; returns the study's result and its directory."""
    say = print if progress else lambda line: None
    say("1/3  organism:text: a small Llama learns a language, then learns to refuse what is harmful in it")
    text.build(config.seed, progress=progress)
    say("2/3  organism:text/benign: it is fine-tuned on a harmless new skill")
    text_finetunes.tune("benign", config.seed, progress=progress)
    say("3/3  the study: what did that do to its refusals, where, and why?")
    at = f"@{config.seed}" if config.seed else ""
    study = StudyConfig(
        aligned=f"organism:text/aligned{at}",
        tuned=(f"organism:text/benign{at}",),
        max_new_tokens=text.MAX_NEW_TOKENS,
        n_test=200,
    )
    return run_study(study, out=config.out, progress=progress)


def demo(
    seed: Annotated[int, typer.Option(help="Seed of organism and fine-tune.")] = 0,
    out: Annotated[Path, typer.Option(help="Where results are kept.")] = Path("results"),
) -> None:
    """Build the text organism, fine-tune it on benign data and study what that broke."""
    result, directory = run(Config(seed=seed, out=out))
    print_study(result, directory)


def main(argv: Sequence[str]) -> int:
    """Run the demo with a command line."""
    return scripts.call(demo, argv, "interp run demo", "interp run demo --seed 1")


if __name__ == "__main__":
    raise SystemExit(cli.main(["run", "demo", *sys.argv[1:]]))
