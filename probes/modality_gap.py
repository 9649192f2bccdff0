"""How far apart does a model hold the same requests in two modalities, and does harm point the same way in both?

`interp probe modality_gap MODEL FIRST SECOND` or `python -m probes.modality_gap MODEL FIRST SECOND`. Two prompt files of the same requests,
paired row by row by id (or by group, or by a column): text and speech, text and image, or two wordings of text. The measures are in
interp/methods/modality_gap.py.
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
from interp.methods.modality_gap import ModalityGap, modality_gap, pair_prompts
from interp.models.activations import capture
from interp.models.checkpoint import Checkpoint
from interp.report.drift_figures import modality_curves
from interp.study.measured import keep


class Config(BaseModel):
    """Settings of the probe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    first: str
    second: str
    pair: str = "id"
    suffixes: tuple[str, str] = ("", "")
    dtype: str | None = None
    trust_remote_code: bool = False
    n_null: int = Field(20, ge=1)
    seed: int = 0


def prompts(config: Config) -> tuple[PromptSet, PromptSet]:
    """Both prompt sets, as they are in the files."""
    return read_prompts(config.first), read_prompts(config.second)


def run(config: Config, *, progress: bool = True) -> ModalityGap:
    """Measure the gap; raises UserError for bad files or checkpoints and for prompts without a partner."""
    sets = prompts(config)
    pairs = pair_prompts(*sets, by=config.pair, suffixes=config.suffixes)
    model = Checkpoint.parse(config.model).load(
        dtype=config.dtype, trust_remote_code=config.trust_remote_code
    )
    asked: tuple[list[Prompt], ...] = ([a for a, _ in pairs], [b for _, b in pairs])
    first, second = (capture(model, part, progress=progress) for part in asked)
    labels = [a.label for a, _ in pairs]
    harmful = [label == "harmful" for label in labels]
    # Directions need both kinds, and every label.
    known = None not in labels and any(harmful) and not all(harmful)
    return modality_gap(
        first,
        second,
        names=(sets[0].name, sets[1].name),
        harmful=harmful if known else None,
        groups=[a.group or a.id for a, _ in pairs],
        n_null=config.n_null,
        seed=config.seed,
    )


def draw(config: Config, found: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """The figure of the probe from its table."""
    return {
        "modality_gap": modality_curves(found["gap"], (Path(config.first).stem, Path(config.second).stem))
    }


def probe(
    model: Annotated[str, typer.Argument(help="Hub id, directory, base+adapter or organism:name.")],
    first: Annotated[str, typer.Argument(help="Requests in one modality: a file or datasets name.")],
    second: Annotated[str, typer.Argument(help="The same requests in the other.")],
    pair: Annotated[
        str, typer.Option(help="What partners share: id, group or a column of both files.")
    ] = "id",
    suffixes: Annotated[
        tuple[str, str], typer.Option(help="Endings of the ids of FIRST and SECOND that are not compared.")
    ] = ("", ""),
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with a checkpoint.")
    ] = False,
    n_null: Annotated[int, typer.Option(min=1, help="Draws of every null a site.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of folds and nulls.")] = 0,
    out: Annotated[Path, typer.Option(help="Where results are kept.")] = Path("results"),
) -> None:
    """Measure how far apart a model holds the same requests in two modalities, layer by layer."""
    config = Config(
        model=model,
        first=first,
        second=second,
        pair=pair,
        suffixes=suffixes,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        n_null=n_null,
        seed=seed,
    )
    found, directory = keep(
        "modality_gap", config, (model,), prompts(config), lambda: {"gap": run(config).to_frame()},
        lambda tables: draw(config, tables), sys.modules[__name__], out,
    )  # fmt: skip
    wide = found["gap"].pivot(index="layer", columns="measure", values="value")
    print(wide.to_string(float_format="{:.3f}".format))
    print(f"tables and figures: {directory}")


def main(argv: Sequence[str]) -> int:
    """Run the probe with a command line."""
    example = "interp probe modality_gap organism:text/aligned requests.jsonl retold.jsonl --pair request"
    return scripts.call(probe, argv, "interp probe modality_gap", example)


if __name__ == "__main__":
    raise SystemExit(cli.main(["probe", "modality_gap", *sys.argv[1:]]))
