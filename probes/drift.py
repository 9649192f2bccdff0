"""What did a fine-tune change, where in the network, and how much of it lies along the refusal direction?

`interp probe drift ALIGNED TUNED` or `python -m probes.drift ALIGNED TUNED`. The same held-out prompts go through both checkpoints; the
measures are in interp/methods/drift.py and weight_drift.py. What the change does to behaviour is measured by `interp study`.
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
from interp.methods.drift import GAP, SHIFT, Drift, activation_drift
from interp.methods.measures import one_row_each
from interp.methods.weight_drift import WeightDrift, merged_weights, weight_drift
from interp.models.activations import capture
from interp.models.checkpoint import Checkpoint
from interp.report.drift_figures import drift_panels
from interp.study import StudyConfig, study_prompts
from interp.study.measured import keep

KINDS = ("harmful", "harmless")


class Config(BaseModel):
    """Settings of the probe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    aligned: str
    tuned: str
    harmful: str | None = None
    harmless: str | None = None
    dtype: str | None = None
    trust_remote_code: bool = False
    n_fit: int = Field(128, ge=2)
    n_test: int = Field(200, ge=4)
    rank: int = Field(10, ge=1)
    spectra: bool = True
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Result:
    """What changed in the activations, and in the weights."""

    activations: Drift
    weights: WeightDrift


def prompts(config: Config) -> dict[str, PromptSet]:
    """`harmful_fit`, `harmless_fit` for the direction, `harmful_test`, `harmless_test` to measure on."""
    study = StudyConfig(
        aligned=config.aligned, tuned=(config.tuned,), harmful=config.harmful, harmless=config.harmless
    )
    sizes = {"fit": config.n_fit, "test": config.n_test}
    return {
        f"{kind}_{part}": chosen
        for kind, whole in zip(KINDS, study_prompts(study), strict=True)
        for part, chosen in whole.split(sizes, config.seed).items()
    }


def run(config: Config, *, progress: bool = True) -> Result:
    """Compare the two checkpoints; raises UserError for bad prompts or checkpoints."""
    parts = prompts(config)
    asked: list[Prompt] = [*parts["harmful_test"], *parts["harmless_test"]]
    aligned = Checkpoint.parse(config.aligned).load(
        dtype=config.dtype, trust_remote_code=config.trust_remote_code
    )
    before = capture(aligned, asked, progress=progress)
    fit = [one_row_each(capture(aligned, parts[f"{kind}_fit"], progress=progress)) for kind in KINDS]
    weights = merged_weights(aligned)
    del aligned
    tuned = Checkpoint.parse(config.tuned).load(
        dtype=config.dtype, trust_remote_code=config.trust_remote_code
    )
    after = capture(tuned, asked, progress=progress)
    drift = activation_drift(
        before,
        after,
        [True] * len(parts["harmful_test"]) + [False] * len(parts["harmless_test"]),
        [prompt.group or prompt.id for prompt in asked],
        fit=(fit[0], fit[1]),
        rank=config.rank,
        seed=config.seed,
    )
    return Result(drift, weight_drift(weights, merged_weights(tuned), spectra=config.spectra))


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """The result as tables by name."""
    return {"activations": result.activations.to_frame(), "weights": result.weights.to_frame()}


def draw(found: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """The figure of the probe from its tables."""
    return {"drift": drift_panels(found["activations"], found["weights"])}


def probe(
    aligned: Annotated[str, typer.Argument(help="Hub id, directory, base+adapter or organism:name.")],
    tuned: Annotated[str, typer.Argument(help="Its fine-tune.")],
    harmful: Annotated[str | None, typer.Option(help="Harmful prompts: a file or datasets name.")] = None,
    harmless: Annotated[str | None, typer.Option(help="Harmless prompts: a file or datasets name.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with a checkpoint.")
    ] = False,
    n_test: Annotated[int, typer.Option(min=4, help="Prompts of each kind to measure on.")] = 200,
    rank: Annotated[int, typer.Option(min=1, help="Principal components whose spans are compared.")] = 10,
    spectra: Annotated[
        bool, typer.Option(help="Decompose the change of every matrix (slow when large).")
    ] = True,
    seed: Annotated[int, typer.Option(help="Seed of the split and the nulls.")] = 0,
    out: Annotated[Path, typer.Option(help="Where results are kept.")] = Path("results"),
) -> None:
    """Measure what a fine-tune changed in activations and weights, layer by layer."""
    config = Config(
        aligned=aligned, tuned=tuned, harmful=harmful, harmless=harmless, dtype=dtype, trust_remote_code=trust_remote_code, n_test=n_test, rank=rank,
        spectra=spectra, seed=seed,
    )  # fmt: skip
    found, directory = keep(
        "drift", config, (aligned, tuned), list(prompts(config).values()), lambda: tables(run(config)), draw,
        sys.modules[__name__], out,
    )  # fmt: skip
    table = found["activations"]
    wide = table.assign(column=(table["measure"] + " " + table["of"]).str.strip())
    wide = wide[~wide["measure"].isin([GAP, SHIFT]) | (wide["of"] != "harmless")]
    print(wide.pivot(index="layer", columns="column", values="value").to_string(float_format="{:.3f}".format))
    matrices = found["weights"][found["weights"]["random_stable_rank"].notna()]
    shares = (
        matrices.assign(stack=matrices["stack"].replace("", "head"))
        .groupby("stack", sort=False)["relative"]
        .mean()
    )
    print(
        "matrices, mean relative change:", ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
    )
    print(f"tables and figures: {directory}")


def main(argv: Sequence[str]) -> int:
    """Run the probe with a command line."""
    example = "interp probe drift organism:text/aligned organism:text/benign"
    return scripts.call(probe, argv, "interp probe drift", example)


if __name__ == "__main__":
    raise SystemExit(cli.main(["probe", "drift", *sys.argv[1:]]))
