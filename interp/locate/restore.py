"""Does putting back only the weights that broke refusal restore it, and what does that cost?

1. Blocks of the aligned model in the fine-tune's place, alone and cumulated from both ends; every module alone (log-odds only).
2. Modules are ranked by how much of the gap each brings back on lost requests; the best k are put back together and measured on held-out
   requests: refusals, benign answers, the skill the fine-tune taught.
3. Control: k random modules of those changed, several draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from interp.data.prompts import Prompt, PromptSet
from interp.evals.judges import ExactJudge
from interp.evals.verdicts import Outcome
from interp.methods.logit_difference import LogitDifference
from interp.methods.transplant import (
    Measure,
    block_parts,
    changed,
    merged,
    metric_values,
    module_parts,
    transplant,
)
from interp.models.generation import generate
from interp.models.model import Model
from interp.organisms.text import MAX_NEW_TOKENS

LOG_ODDS = "log-odds"


def restore(
    tuned: Model,
    aligned: Model,
    prompts: Mapping[str, PromptSet],
    lost: Sequence[Prompt],
    held_out: Sequence[Prompt],
    metric: LogitDifference,
    *,
    ks: Sequence[int],
    n_random: int,
    n_test: int,
    seed: int,
    progress: bool = True,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Parts (one row a part and measure) and what is restored by the best and by random modules (one row a choice, k and draw).

    Args:
        lost: requests that modules are ranked on. held_out: harmful requests that restoring is measured on.
        prompts: `harmless` and `skill`, sampled for benign answers and the skill.
    """
    tuned = merged(tuned)
    names = changed(tuned, aligned)
    modules = module_parts(tuned, names)
    half = max(4, n_test // 2)
    measures: dict[str, tuple[Sequence[Prompt], Measure]] = {
        LOG_ODDS: (lost, lambda model, asked: metric_values(model, asked, metric)),
        "refused": (held_out, _share(Outcome.REFUSED)),
        "benign": (_some(prompts["harmless"], half, seed), _share(Outcome.COMPLIED_BENIGN)),
        "skill": (_some(prompts["skill"], half, seed), _share(Outcome.COMPLIED_BENIGN)),
    }
    blocks = transplant(tuned, aligned, block_parts(tuned, names), measures, axis="blocks", progress=progress)
    alone = transplant(
        tuned, aligned, modules, {LOG_ODDS: measures[LOG_ODDS]}, axis="module", progress=progress
    )
    parts = pd.concat(
        [
            grid.to_frame().assign(measure=name, part=kind)
            for kind, grids in (("blocks", blocks), ("module", alone))
            for name, grid in grids.items()
        ],
        ignore_index=True,
    )
    effect = alone[LOG_ODDS].effect.mean(0)
    layers, columns = alone[LOG_ODDS].layers, alone[LOG_ODDS].columns
    order = sorted(modules, key=lambda part: -effect[layers.index(part[0]), columns.index(part[1])])
    rng = np.random.default_rng(seed)
    choices = {("best", k, 0): order[:k] for k in ks}
    for k in ks:
        for draw in range(n_random):
            drawn = rng.permutation(len(order))[:k]
            choices["random", k, draw] = [order[i] for i in drawn]
    choices["all", len(order), 0] = order
    together = {
        (i, "together"): [name for part in chosen for name in modules[part]]
        for i, chosen in enumerate(choices.values())
    }
    found = transplant(tuned, aligned, together, measures, axis="modules", progress=progress)
    weights = _norms(tuned, aligned, names)
    rows = []
    for i, ((choice, k, draw), chosen) in enumerate(choices.items()):
        row: dict[str, float | str] = {"choice": choice, "k": min(k, len(order)), "draw": draw}
        for name, grid in found.items():
            row |= {
                name: grid.patched[:, i, 0].mean(),
                f"{name}_aligned": grid.clean.mean(),
                f"{name}_tuned": grid.corrupt.mean(),
            }
        moved = sum(weights[name] ** 2 for part in chosen for name in modules[part])
        row["change"] = float(np.sqrt(moved / sum(value**2 for value in weights.values())))
        row["modules"] = " ".join(f"{layer}.{module}" for layer, module in chosen[:8])
        rows.append(row)
    return parts, pd.DataFrame(rows)


def _some(prompts: PromptSet, n: int, seed: int) -> PromptSet:
    return prompts.sample(min(n, len(prompts)), seed)


def _share(outcome: Outcome) -> Measure:
    """1 for every prompt whose greedy answer has this outcome, else 0."""

    def measure(model: Model, asked: Sequence[Prompt]) -> np.ndarray:
        answers = generate(model, asked, max_new_tokens=MAX_NEW_TOKENS, batch_size=256, progress=False)
        return np.array([float(v.outcome is outcome) for v in ExactJudge().judge(asked, answers)])

    return measure


def _norms(tuned: Model, aligned: Model, names: Sequence[str]) -> dict[str, float]:
    """Length of the change of each parameter."""
    own, given = (dict(model.module.named_parameters()) for model in (tuned, aligned))
    return {name: float((own[name] - given[name].to(own[name])).detach().norm()) for name in names}
