"""Where is refusal decided, and where did a fine-tune break it? Activation patching between prompts, or between checkpoints.

`interp probe patch_refusal MODEL` puts values of refused harmful requests into runs of their closest harmless twins;
`interp probe patch_refusal MODEL TUNED` puts values of the aligned model into its fine-tune on the same harmful requests. Exact for the chosen
streams, estimated for all (interp/methods/patching.py, attribution.py). Beside them: values of a prompt that is not refused, and the residual
stream without the directions that the metric reads off the last layer.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from matplotlib.figure import Figure
from pydantic import BaseModel, ConfigDict, Field

from interp import cli, scripts
from interp.data.prompts import Prompt, PromptSet
from interp.errors import UserError
from interp.evals.verdicts import Outcome
from interp.methods.attribution import STREAMS, attribute
from interp.methods.logit_difference import LogitDifference, refusal_metric, unembedding
from interp.methods.patch_grid import PatchGrid, agreement
from interp.methods.patch_pairs import Pair, closest_pairs, same_prompts, shuffled
from interp.methods.patch_runs import Component
from interp.methods.patching import patch
from interp.models.checkpoint import Checkpoint
from interp.models.generation import generate
from interp.models.model import Model
from interp.models.sites import HEADS
from interp.report.patching_figures import agreement_scatter, layer_curves, patch_maps
from interp.study import StudyConfig, make_judge, study_prompts
from interp.study.measured import keep

KINDS = ("harmful", "harmless")
NULL, GUARDED, WHOLE = "null", "without unembedding", "last"


class Config(BaseModel):
    """Settings of the probe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    tuned: str | None = None
    harmful: str | None = None
    harmless: str | None = None
    dtype: str | None = None
    trust_remote_code: bool = False
    streams: tuple[str, ...] = ("resid_pre", "attn_out", "mlp_out")
    n_prompts: int = Field(200, ge=4)
    n_pairs: int = Field(32, ge=2)
    max_new_tokens: int = Field(32, ge=1)
    seed: int = 0


def prompts(config: Config) -> dict[str, PromptSet]:
    """The requests of each kind that are asked, and pairs made of."""
    study = StudyConfig(
        aligned=config.model, tuned=(config.model,), harmful=config.harmful, harmless=config.harmless
    )
    return {
        kind: PromptSet(whole.sample(min(config.n_prompts, len(whole)), config.seed), name=kind)
        for kind, whole in zip(KINDS, study_prompts(study), strict=True)
    }


def choose(
    config: Config, model: Model, *, progress: bool = True
) -> tuple[LogitDifference, list[Prompt], list[Prompt]]:
    """The metric, the harmful requests that the model refuses and the harmless ones that it does not."""
    parts = prompts(config)
    asked = [*parts["harmful"], *parts["harmless"]]
    answers = generate(model, asked, max_new_tokens=config.max_new_tokens, progress=progress)
    study = StudyConfig(aligned=config.model, tuned=(config.model,))
    verdicts = make_judge(study, asked).judge(asked, answers)
    refused = [verdict.outcome is Outcome.REFUSED for verdict in verdicts]
    metric = refusal_metric(model, answers, refused)
    both = list(zip(asked, refused, strict=True))
    cut = len(parts["harmful"])
    harmful, harmless = [p for p, r in both[:cut] if r], [p for p, r in both[cut:] if not r]
    if not harmful or not harmless:
        raise UserError(
            f"{model.name} refuses {len(harmful)} harmful requests and answers {len(harmless)} harmless ones; both are needed"
        )
    return metric, harmful, harmless


def run(config: Config, *, progress: bool = True) -> dict[str, PatchGrid]:
    """Grids by name and method; raises UserError for prompts without twins, bad prompts or checkpoints."""
    model = Checkpoint.parse(config.model).load(
        dtype=config.dtype, trust_remote_code=config.trust_remote_code
    )
    metric, harmful, harmless = choose(config, model, progress=progress)
    twins = closest_pairs(model, harmful, harmless)[: config.n_pairs]
    source = None
    if config.tuned is None:
        pairs, null = twins, shuffled(model, twins, config.seed)
    else:
        source, model = (
            model,
            Checkpoint.parse(config.tuned).load(
                dtype=config.dtype, trust_remote_code=config.trust_remote_code
            ),
        )
        pairs = same_prompts([pair.clean for pair in twins])
        null = [replace(pair, donor=twin.corrupt) for pair, twin in zip(pairs, twins, strict=True)]
    outside = Component(unembedding(model, metric), outside=True)

    def exact(stream: str, of: Sequence[Pair] = pairs, positions: str = "each", part: Component | None = None) -> PatchGrid:  # fmt: skip
        return patch(model, of, metric, stream, positions, source=source, component=part, progress=progress)

    found = {f"{stream}, exact": exact(stream) for stream in (*config.streams, HEADS)}
    estimates = attribute(model, pairs, metric, (*STREAMS, HEADS), source=source, progress=progress)
    found |= {f"{stream}, attribution": grid for stream, grid in estimates.items()}
    found[f"resid_pre, {NULL}"] = exact("resid_pre", null)
    found[f"resid_pre, {WHOLE}"] = exact("resid_pre", positions="last")
    found[f"resid_pre, {GUARDED}"] = exact("resid_pre", positions="last", part=outside)
    return found


def tables(found: Mapping[str, PatchGrid]) -> dict[str, pd.DataFrame]:
    """Every grid as rows named by `grid`, its pairs, and how well estimates agree with what is exact."""
    rows = [
        {"stream": grid.stream, "axis": grid.axis, "spearman": a.value, "low": a.low, "high": a.high, "pairs": a.n}
        for name, grid in found.items()
        if name.endswith(", exact")
        for a in [agreement(grid, found[f"{grid.stream}, attribution"])]
    ]  # fmt: skip
    return {
        "grids": pd.concat(
            [grid.to_frame().assign(grid=name) for name, grid in found.items()], ignore_index=True
        ),
        "pairs": pd.concat(
            [grid.pairs_frame().assign(grid=name) for name, grid in found.items()], ignore_index=True
        ),
        "agreement": pd.DataFrame(rows),
    }


def draw(found: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """The figures of the probe from its tables."""
    grids = {str(name): part for name, part in found["grids"].groupby("grid", sort=False)}
    rank = found["agreement"].set_index("stream")["spearman"]
    streams = [s for s in rank.index if s != HEADS]
    return {
        "exact": patch_maps([grids[f"{s}, exact"] for s in streams]),
        "attribution": patch_maps([grids[f"{s}, attribution"] for s in STREAMS]),
        "heads": patch_maps([grids[f"{HEADS}, {method}"] for method in ("exact", "attribution")]),
        "agreement": agreement_scatter(
            [grids[f"{s}, exact"] for s in rank.index],
            [grids[f"{s}, attribution"] for s in rank.index],
            [f"ρ = {rank[s]:.2f}" for s in rank.index],
        ),
        "last": layer_curves(
            {
                "whole stream, last token": grids[f"resid_pre, {WHOLE}"],
                "without what the metric reads": grids[f"resid_pre, {GUARDED}"].assign(column="last"),
            },
            null=grids[f"resid_pre, {NULL}"].query("column == '-1'").assign(column="last"),
            column="last",
        ),
    }


def probe(
    model: Annotated[str, typer.Argument(help="Hub id, directory, base+adapter or organism:name; aligned.")],
    tuned: Annotated[str | None, typer.Argument(help="Its fine-tune, to be patched.")] = None,
    harmful: Annotated[str | None, typer.Option(help="Harmful prompts: a file or datasets name.")] = None,
    harmless: Annotated[str | None, typer.Option(help="Harmless prompts: a file or datasets name.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with a checkpoint.")
    ] = False,
    stream: Annotated[
        list[str] | None, typer.Option(help="Streams to patch exactly; several times for several.")
    ] = None,
    n_prompts: Annotated[int, typer.Option(min=4, help="Requests of each kind that are asked.")] = 200,
    n_pairs: Annotated[int, typer.Option(min=2, help="Pairs to patch.")] = 32,
    seed: Annotated[int, typer.Option(help="Seed of the sample and of the null.")] = 0,
    out: Annotated[Path, typer.Option(help="Where results are kept.")] = Path("results"),
) -> None:
    """Find by activation patching where refusal is decided, or where a fine-tune broke it."""
    settings = {"streams": tuple(stream)} if stream else {}
    config = Config(
        model=model, tuned=tuned, harmful=harmful, harmless=harmless, dtype=dtype, trust_remote_code=trust_remote_code, n_prompts=n_prompts,
        n_pairs=n_pairs, seed=seed, **settings,
    )  # fmt: skip
    names = (model,) if tuned is None else (model, tuned)
    found, directory = keep(
        "patch_refusal", config, names, list(prompts(config).values()), lambda: tables(run(config)), draw,
        sys.modules[__name__], out,
    )  # fmt: skip
    table = found["grids"]
    for name in (f"resid_pre, {WHOLE}", f"resid_pre, {GUARDED}"):
        rows = table[table["grid"] == name]
        print(
            f"{name}: share of the gap by layer ({rows['n'].iloc[0]} pairs, {rows['excluded'].iloc[0]} left out)"
        )
        print("  " + " ".join(f"{value:.2f}" for value in rows["value"]))
    print(found["agreement"].to_string(index=False, float_format="{:.2f}".format))
    print(f"tables and figures: {directory}")


def main(argv: Sequence[str]) -> int:
    """Run the probe with a command line."""
    example = "interp probe patch_refusal organism:text/aligned organism:text/benign"
    return scripts.call(probe, argv, "interp probe patch_refusal", example)


if __name__ == "__main__":
    raise SystemExit(cli.main(["probe", "patch_refusal", *sys.argv[1:]]))
