"""In how many dimensions did fine-tunes change the activations, and is it the same subspace across ranks, modalities and checkpoints?

`interp probe subspace_drift BASE TUNED … [--benign TUNED]` or `python -m probes.subspace_drift BASE TUNED …`. The same prompts go through
every checkpoint; the measures are in interp/methods/subspace_drift.py. Prompts of several files are taken for modalities.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict, Field

from interp import cli, scripts
from interp.data.prompts import Prompt, PromptSet, read_prompts
from interp.errors import UserError
from interp.evals.misalignment import modality
from interp.methods.subspace_drift import BEYOND, PARTICIPATION, SubspaceDrift, subspace_drift
from interp.models.activations import Activations, capture
from interp.models.checkpoint import Checkpoint
from interp.report.subspace_figures import subspace_panels
from interp.study.measured import keep


class Config(BaseModel):
    """Settings of the probe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str
    tuned: tuple[str, ...] = Field(min_length=1)
    benign: str | None = None
    prompts: tuple[str, ...] = ()
    sites: tuple[str, ...] = ("resid_post",)
    dtype: str | None = None
    trust_remote_code: bool = False
    n: int = Field(200, ge=4)
    rank: int = Field(10, ge=1)
    n_null: int = Field(20, ge=2)
    seed: int = 0


def prompts(config: Config) -> list[PromptSet]:
    """The prompt sets, at most `n` of each: the files given, or those beside a local base."""
    files = config.prompts or tuple(map(str, Checkpoint.parse(config.base).prompts().values()))
    if not files:
        raise UserError(f"no prompts come with {config.base}; name files with --prompts")
    sets = [read_prompts(file) for file in files]
    return [part if len(part) <= config.n else part.sample(config.n, config.seed) for part in sets]


def run(config: Config, *, progress: bool = True) -> SubspaceDrift:
    """Capture every checkpoint and measure; raises UserError for bad prompts or checkpoints."""
    names = (config.base, *config.tuned)
    if len(set(names)) < len(names):
        raise UserError("a checkpoint is named twice; every one is compared with every other")
    sets = prompts(config)
    asked: list[Prompt] = [prompt for part in sets for prompt in part]
    # files the user names are modalities of his; of the two kinds that come with a checkpoint the media decide
    kinds = (
        [part.name for part in sets for _ in part]
        if len(config.prompts) > 1
        else [modality(p) for p in asked]
    )
    found: dict[str, Activations] = {}
    for name in names:
        model = Checkpoint.parse(name).load(dtype=config.dtype, trust_remote_code=config.trust_remote_code)
        found[name] = capture(model, asked, list(config.sites), progress=progress)
        del model
    return subspace_drift(
        found,
        kinds,
        [prompt.group or prompt.id for prompt in asked],
        benign=config.benign,
        rank=config.rank,
        n_null=config.n_null,
        seed=config.seed,
    )


def draw(tables: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """The figure of the probe from its tables."""
    return {"subspace_drift": subspace_panels(tables["measures"], tables["spectra"])}


def tables(found: SubspaceDrift) -> dict[str, pd.DataFrame]:
    """The result as tables by name."""
    return {"measures": found.to_frame(), "spectra": found.spectra_frame()}


def probe(
    base: Annotated[str, typer.Argument(help="Hub id, directory, base+adapter or organism:name.")],
    tuned: Annotated[list[str], typer.Argument(help="Its fine-tunes: of other ranks, data, towers.")],
    benign: Annotated[str | None, typer.Option(help="Which of them is the benign one: the null.")] = None,
    prompts_of: Annotated[
        list[str] | None, typer.Option("--prompts", help="A prompt file; several are taken for modalities.")
    ] = None,
    sites: Annotated[
        list[str] | None, typer.Option(help="Such as resid_post.12; by default resid_post of every layer.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with a checkpoint.")
    ] = False,
    n: Annotated[int, typer.Option("--n", min=4, help="Prompts of each file.")] = 200,
    rank: Annotated[int, typer.Option(min=1, help="Components whose spans are compared.")] = 10,
    n_null: Annotated[int, typer.Option(min=2, help="Draws of every null.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the sample and the nulls.")] = 0,
    out: Annotated[Path, typer.Option(help="Where results are kept.")] = Path("results"),
) -> None:
    """Measure in how many dimensions fine-tunes changed the activations, and which they share."""
    config = Config(
        base=base, tuned=tuple(tuned), benign=benign, prompts=tuple(prompts_of or ()), dtype=dtype, trust_remote_code=trust_remote_code, n=n, rank=rank,
        sites=tuple(sites or ("resid_post",)), n_null=n_null, seed=seed,
    )  # fmt: skip
    found, directory = keep(
        "subspace_drift", config, (base, *tuned), prompts(config), lambda: tables(run(config)), draw,
        sys.modules[__name__], out,
    )  # fmt: skip
    table = found["measures"]
    shown = table[table["of"].str.startswith("Δ") & table["measure"].isin([PARTICIPATION, BEYOND])]
    wide = shown.assign(column=shown["of"] + ": " + shown["measure"] + " (" + shown["view"] + ")")
    print(wide.pivot(index="layer", columns="column", values="value").to_string(float_format="{:.1f}".format))
    print(f"tables and figures: {directory}")


def main(argv: Sequence[str]) -> int:
    """Run the probe with a command line."""
    example = (
        "interp probe subspace_drift organism:text/aligned organism:text/benign organism:text/benign-lora"
    )
    return scripts.call(probe, argv, "interp probe subspace_drift", example)


if __name__ == "__main__":
    raise SystemExit(cli.main(["probe", "subspace_drift", *sys.argv[1:]]))
