"""Which direction decides refusal in this model? Finds it, shows how it was chosen, saves it, exports the model without it.

`interp probe refusal_direction MODEL` or `python -m probes.refusal_direction MODEL`. The method is Arditi et al. 2024, in
interp/methods/refusal.py; its effect on behaviour, beside controls, is measured by `interp study`.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict

from interp import cli, scripts
from interp.evals.verdicts import Outcome
from interp.methods.orthogonalize import export_orthogonalized
from interp.methods.refusal import RefusalDirection, find_refusal_direction, keep_by_refusal, refusal_tokens
from interp.models.checkpoint import Checkpoint
from interp.models.generation import generate
from interp.models.model import Model
from interp.study import StudyConfig, make_judge, split_prompts

N_ANSWERS = 64  # prompts of each kind whose answers tell what a refusal opens with


class Config(BaseModel):
    """Settings of the probe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    harmful: str | None = None
    harmless: str | None = None
    dtype: str | None = None
    trust_remote_code: bool = False
    seed: int = 0
    max_new_tokens: int = 32
    complete: bool = False


@dataclass(frozen=True, eq=False)
class Result:
    """The direction, the model it was found in, and how many prompts it was fitted on."""

    found: RefusalDirection
    model: Model
    kept: dict[str, int]


def run(config: Config, *, progress: bool = True) -> Result:
    """Find the direction; raises UserError for bad prompts or checkpoints, SelectionError when there is none."""
    shared = config.model_dump(include={"harmful", "harmless", "dtype", "seed"})
    study = StudyConfig(aligned=config.model, tuned=(config.model,), **shared)
    model = Checkpoint.parse(config.model).load(
        dtype=config.dtype, trust_remote_code=config.trust_remote_code
    )
    parts = split_prompts(study)
    asked = [*parts["harmful_train"][:N_ANSWERS], *parts["harmless_train"][:N_ANSWERS]]
    answers = generate(model, asked, max_new_tokens=config.max_new_tokens, progress=progress)
    verdicts = make_judge(study, asked).judge(asked, answers)
    tokens = refusal_tokens(model, answers, [verdict.outcome is Outcome.REFUSED for verdict in verdicts])
    names = ("harmful_train", "harmless_train", "harmful_val", "harmless_val")
    kept = {
        name: keep_by_refusal(model, parts[name], tokens.ids, refused=name.startswith("harmful"))[0]
        for name in names
    }
    found = find_refusal_direction(
        model,
        kept["harmful_train"],
        kept["harmless_train"],
        kept["harmful_val"],
        kept["harmless_val"],
        tokens,
        complete=config.complete,
        progress=progress,
    )
    return Result(found, model, {name: len(part) for name, part in kept.items()})


def probe(
    model: Annotated[str, typer.Argument(help="Hub id, directory, base+adapter or organism:name.")],
    harmful: Annotated[str | None, typer.Option(help="Harmful prompts: a file or datasets name.")] = None,
    harmless: Annotated[str | None, typer.Option(help="Harmless prompts: a file or datasets name.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with a checkpoint.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
    complete: Annotated[
        bool, typer.Option("--complete", help="Score every candidate on everything.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Save the direction here (safetensors).")] = None,
    export: Annotated[Path | None, typer.Option(help="Save the model without the direction here.")] = None,
) -> None:
    """Find the direction that decides refusal, and show how it was chosen."""
    config = Config(
        model=model,
        harmful=harmful,
        harmless=harmless,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        seed=seed,
        complete=complete,
    )
    result = run(config)
    found = result.found
    print(f"{result.model}\n{found.tokens}\nprompts kept: {result.kept}\n{found!r}")
    if out is not None:
        found.direction.save(out)
        print(f"direction: {out}")
    if export is not None:
        prompts = split_prompts(
            StudyConfig(aligned=model, tuned=(model,), harmful=harmful, harmless=harmless)
        )
        error = export_orthogonalized(result.model, found.direction.vector, prompts["harmless_val"], export)
        print(f"exported: {export} (logits within {error:.1e} of the ablation)")


def main(argv: Sequence[str]) -> int:
    """Run the probe with a command line."""
    example = "interp probe refusal_direction organism:text/aligned --out direction.safetensors"
    return scripts.call(probe, argv, "interp probe refusal_direction", example)


if __name__ == "__main__":
    raise SystemExit(cli.main(["probe", "refusal_direction", *sys.argv[1:]]))
