"""What does steering change in this model's answers? Refusals gained, benign requests refused and answers lost, by strength.

`interp probe steer MODEL` or `python -m probes.steer MODEL`. Fits steering vectors (interp/methods/sarsteer.py) on some of the prompts
and asks the others at every strength, beside a random direction of equal norm. `--save` keeps what acts as safetensors and JSON,
`--export` as biases of an ordinary checkpoint, where that is exact.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import typer
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict, Field

from interp import cli, scripts
from interp.data.prompts import PromptSet
from interp.methods.sarsteer import RANK, REFUSAL, REMOVAL
from interp.methods.steering import Steering, steer
from interp.methods.steering_answers import answers, rates
from interp.methods.steering_arms import FittedArms, fit_arms
from interp.methods.steering_export import export_steered
from interp.models.checkpoint import Checkpoint
from interp.models.model import Model
from interp.report.steering_figures import safe_space, strength_curves
from interp.study import StudyConfig, make_judge, study_prompts
from interp.study.measured import keep
from interp.study.settings import KINDS

STRENGTHS = (0.05, 0.1, 0.2, 0.4)
Method = Literal["sarsteer", "conditional", "unablated", "plain"]
Where = Literal["answer", "last", "prompt", "generated", "all"]


class Config(BaseModel):
    """Settings of the probe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    method: Method = "sarsteer"
    strengths: tuple[float, ...] = Field(STRENGTHS, min_length=1)
    rank: int = Field(RANK, ge=1)
    removal: float = REMOVAL
    layer: int | None = Field(None, ge=0)
    positions: Where = "answer"
    refusal: str = REFUSAL
    instruction: str | None = None
    harmful: str | None = None
    harmless: str | None = None
    judge: str = "auto"
    dtype: str | None = None
    trust_remote_code: bool = False
    n_fit: int = Field(100, ge=2)
    n_test: int = Field(100, ge=1)
    max_new_tokens: int = Field(64, ge=1)
    seed: int = 0


def _study(config: Config) -> StudyConfig:
    shared = config.model_dump(include={"harmful", "harmless", "judge", "dtype"})
    return StudyConfig(aligned=config.model, tuned=(config.model,), **shared)


def prompts(config: Config) -> dict[str, PromptSet]:
    """`harmful_fit`, `harmful_test` and the same of `harmless`, disjoint."""
    sizes = {"fit": config.n_fit, "test": config.n_test}
    return {
        f"{kind}_{part}": chosen
        for kind, whole in zip(KINDS, study_prompts(_study(config)), strict=True)
        for part, chosen in whole.split(sizes, config.seed).items()
    }


def fit(config: Config, model: Model, *, progress: bool = True) -> FittedArms:
    """All arms, fitted on the first half of the prompts."""
    parts = prompts(config)
    return fit_arms(
        model, parts["harmful_fit"], parts["harmless_fit"], refusal=config.refusal, instruction=config.instruction,
        progress=progress,
    )  # fmt: skip


def steering(config: Config, arms: FittedArms, strength: float, *, random: bool = False) -> Steering:
    """The method at a strength, or a random direction with its norms and its condition."""
    own = arms.vectors(config.method, rank=config.rank, removal=config.removal)
    chosen = own if config.layer is None else own.at(config.layer)
    condition = arms.condition if config.method == "conditional" else None
    return steer(chosen.random(config.seed) if random else chosen, strength, config.positions, condition)


def run(config: Config, *, progress: bool = True) -> dict[str, pd.DataFrame]:
    """`points`: a row an arm and strength; `layers`: a row a layer. Raises UserError for bad prompts or checkpoints."""
    model = Checkpoint.parse(config.model).load(
        dtype=config.dtype, trust_remote_code=config.trust_remote_code
    )
    arms, parts = fit(config, model, progress=progress), prompts(config)
    asked = {"harmful": parts["harmful_test"], "benign": parts["harmless_test"]}
    judge = make_judge(_study(config), [prompt for part in asked.values() for prompt in part])
    points: list[tuple[str, float, Steering | None]] = [("none", 0.0, None)]
    points += [(config.method, s, steering(config, arms, s)) for s in config.strengths]
    points += [("random", s, steering(config, arms, s, random=True)) for s in config.strengths]
    rows = []
    for arm, strength, acting in points:
        table = answers(model, asked, judge, acting, max_new_tokens=config.max_new_tokens, progress=progress)
        rows.append({"arm": arm, "strength": strength, **rates(table)})
    return {"points": pd.DataFrame(rows), "layers": arms.sar.to_frame(config.rank)}


def draw(found: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """The figures of the probe from its tables."""
    return {"strength": strength_curves(found["points"]), "safe_space": safe_space(found["layers"])}


def probe(
    model: Annotated[str, typer.Argument(help="Hub id, directory, base+adapter or organism:name.")],
    method: Annotated[Method, typer.Option(help="How to steer.")] = "sarsteer",
    strengths: Annotated[
        list[float] | None, typer.Option("--strength", help="α; give several by repeating it.")
    ] = None,
    rank: Annotated[int, typer.Option(min=1, help="k, dimensions of the safe space.")] = RANK,
    removal: Annotated[float, typer.Option(help="λ, share of the safe component removed.")] = REMOVAL,
    layer: Annotated[int | None, typer.Option(min=0, help="Steer at this layer only.")] = None,
    positions: Annotated[Where, typer.Option(help="Tokens that are steered.")] = "answer",
    refusal: Annotated[str, typer.Option(help="Sentence of refusal put behind harmful prompts.")] = REFUSAL,
    instruction: Annotated[str | None, typer.Option(help="Text for prompts with images or audio.")] = None,
    harmful: Annotated[str | None, typer.Option(help="Harmful prompts: a file or datasets name.")] = None,
    harmless: Annotated[str | None, typer.Option(help="Harmless prompts: a file or datasets name.")] = None,
    judge: Annotated[str, typer.Option(help="auto, exact, phrases or TEMPLATE=MODEL.")] = "auto",
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with a checkpoint.")
    ] = False,
    n_fit: Annotated[int, typer.Option(min=2, help="Prompts of each kind to fit on.")] = 100,
    n_test: Annotated[int, typer.Option(min=1, help="Prompts of each kind to ask.")] = 100,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of split and random control.")] = 0,
    save: Annotated[Path | None, typer.Option(help="Save the steering at the first strength here.")] = None,
    export: Annotated[
        Path | None, typer.Option(help="Save a checkpoint so steered; takes --positions all.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where results are kept.")] = Path("results"),
) -> None:
    """Steer a model towards refusal and measure what that buys and costs."""
    config = Config(
        model=model, method=method, strengths=tuple(strengths or STRENGTHS), rank=rank, removal=removal, layer=layer, positions=positions,
        refusal=refusal, instruction=instruction, harmful=harmful, harmless=harmless, judge=judge, dtype=dtype, trust_remote_code=trust_remote_code, n_fit=n_fit,
        n_test=n_test, max_new_tokens=max_new_tokens, seed=seed,
    )  # fmt: skip
    parts = prompts(config)
    found, directory = keep(
        "steer", config, (model,), list(parts.values()), lambda: run(config), draw, sys.modules[__name__], out
    )
    columns = ["arm", "strength", "refused", "jsr", "incoherent", "over_refusal", "correct"]
    print(found["points"][columns].to_string(index=False, float_format="{:.2f}".format))
    print(f"tables and figures: {directory}")
    if save is not None or export is not None:
        loaded = Checkpoint.parse(model).load(dtype=dtype, trust_remote_code=trust_remote_code)
        acting = steering(config, fit(config, loaded), config.strengths[0])
        if save is not None:
            acting.save(save)
            print(f"steering: {save}")
        if export is not None:
            error = export_steered(loaded, acting, parts["harmless_test"][:32], export)
            print(f"exported: {export} (logits within {error:.1e} of the steered model)")


def main(argv: Sequence[str]) -> int:
    """Run the probe with a command line."""
    example = "interp probe steer organism:text/aligned --refusal 'i cannot help with that.' --strength 0.1 --strength 0.4"
    return scripts.call(probe, argv, "interp probe steer", example)


if __name__ == "__main__":
    raise SystemExit(cli.main(["probe", "steer", *sys.argv[1:]]))
