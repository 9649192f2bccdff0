"""Is harmfulness still read off the activations after fine-tuning, and does the model still act on it?

`interp probe harm_recognition ALIGNED TUNED …` or `python -m probes.harm_recognition ALIGNED TUNED …`. Linear probes by layer with a
shuffled-label null and a baseline of word counts (interp/methods/recognition.py), beside the gap between harmful and harmless prompts
along the aligned model's refusal direction.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict, Field

from interp import cli, scripts
from interp.data.prompts import Prompt, PromptSet
from interp.methods.drift import refusal_gap
from interp.methods.measures import Measure, frame, one_row_each
from interp.methods.recognition import ACCURACY, AUROC, Recognition, recognise
from interp.models.activations import capture
from interp.models.checkpoint import Checkpoint
from interp.report.drift_figures import recognition_curves
from interp.study import StudyConfig, study_prompts
from interp.study.measured import keep

KINDS = ("harmful", "harmless")


class Config(BaseModel):
    """Settings of the probe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    aligned: str
    tuned: tuple[str, ...] = ()
    harmful: str | None = None
    harmless: str | None = None
    dtype: str | None = None
    trust_remote_code: bool = False
    n_fit: int = Field(128, ge=2)
    n_test: int = Field(200, ge=10)
    n_null: int = Field(20, ge=1)
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Result:
    """What the probes read, and the gap along the refusal direction, in every checkpoint."""

    recognition: Recognition
    gaps: tuple[Measure, ...]


def prompts(config: Config) -> dict[str, PromptSet]:
    """`harmful_fit`, `harmless_fit` for the direction, `harmful_test`, `harmless_test` to probe."""
    compared = config.tuned or (config.aligned,)
    study = StudyConfig(
        aligned=config.aligned, tuned=compared, harmful=config.harmful, harmless=config.harmless
    )
    sizes = {"fit": config.n_fit, "test": config.n_test}
    return {
        f"{kind}_{part}": chosen
        for kind, whole in zip(KINDS, study_prompts(study), strict=True)
        for part, chosen in whole.split(sizes, config.seed).items()
    }


def run(config: Config, *, progress: bool = True) -> Result:
    """Probe every checkpoint; raises UserError for bad prompts or checkpoints."""
    parts = prompts(config)
    asked: list[Prompt] = [*parts["harmful_test"], *parts["harmless_test"]]
    model = Checkpoint.parse(config.aligned).load(
        dtype=config.dtype, trust_remote_code=config.trust_remote_code
    )
    aligned = capture(model, asked, progress=progress)
    fit = [one_row_each(capture(model, parts[f"{kind}_fit"], progress=progress)) for kind in KINDS]
    tuned = {}
    for name in config.tuned:
        model = Checkpoint.parse(name).load(dtype=config.dtype, trust_remote_code=config.trust_remote_code)
        tuned[name] = capture(model, asked, progress=progress)
    harmful = [True] * len(parts["harmful_test"]) + [False] * len(parts["harmless_test"])
    groups = [prompt.group or prompt.id for prompt in asked]
    texts = [prompt.text for prompt in asked]
    recognition = recognise(
        aligned, tuned, harmful, groups, texts=texts, n_null=config.n_null, seed=config.seed
    )
    return Result(
        recognition, refusal_gap(aligned, tuned, harmful, groups, fit=(fit[0], fit[1]), seed=config.seed)
    )


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """The result as one table."""
    return {"recognition": pd.concat([result.recognition.to_frame(), frame(result.gaps)], ignore_index=True)}


def draw(found: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """The figure of the probe from its table."""
    return {"recognition": recognition_curves(found["recognition"])}


def probe(
    aligned: Annotated[str, typer.Argument(help="Hub id, directory, base+adapter or organism:name.")],
    tuned: Annotated[list[str] | None, typer.Argument(help="Its fine-tunes.")] = None,
    harmful: Annotated[str | None, typer.Option(help="Harmful prompts: a file or datasets name.")] = None,
    harmless: Annotated[str | None, typer.Option(help="Harmless prompts: a file or datasets name.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with a checkpoint.")
    ] = False,
    n_test: Annotated[int, typer.Option(min=10, help="Prompts of each kind to probe.")] = 200,
    n_null: Annotated[int, typer.Option(min=1, help="Shuffles of the labels a site.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of split, folds and shuffles.")] = 0,
    out: Annotated[Path, typer.Option(help="Where results are kept.")] = Path("results"),
) -> None:
    """Probe by layer whether harmful and harmless prompts can still be told apart after fine-tuning."""
    config = Config(
        aligned=aligned, tuned=tuple(tuned or ()), harmful=harmful, harmless=harmless, dtype=dtype, trust_remote_code=trust_remote_code, n_test=n_test,
        n_null=n_null, seed=seed,
    )  # fmt: skip
    found, directory = keep(
        "harm_recognition", config, (aligned, *config.tuned), list(prompts(config).values()),
        lambda: tables(run(config)), draw, sys.modules[__name__], out,
    )  # fmt: skip
    table = found["recognition"]
    for measure in (ACCURACY, AUROC):
        rows = table[table["measure"] == measure]
        words = f" (counts of words: {rows['words_value'].iloc[0]:.3f})" if "words_value" in rows else ""
        print(f"{measure}{words}")
        print(rows.pivot(index="layer", columns="of", values="value").to_string(float_format="{:.3f}".format))
    print(f"tables and figures: {directory}")


def main(argv: Sequence[str]) -> int:
    """Run the probe with a command line."""
    example = "interp probe harm_recognition organism:text/aligned organism:text/benign"
    return scripts.call(probe, argv, "interp probe harm_recognition", example)


if __name__ == "__main__":
    raise SystemExit(cli.main(["probe", "harm_recognition", *sys.argv[1:]]))
