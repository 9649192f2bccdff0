"""One organism looked into by activation patching: where refusal lives in it, or where one of its fine-tunes broke it.

Aligned (`finetune` None), values of refused harmful requests are put into runs of their benign twins. Of a fine-tune, values of the aligned
model are put into the tuned one on the same harmful requests, apart for those whose refusal was lost and those still refused: what repairs
the first and what merely moves the second are different things. Three guards go with both:

1. values of prompts that are not refused (`null`) put in instead;
2. the last token's stream without the directions that the metric reads (`guarded`): a late layer restores the metric by construction with them;
3. attribution patching beside exact patching on every grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from interp.data.prompts import Prompt
from interp.errors import UserError
from interp.evals.judges import ExactJudge
from interp.evals.verdicts import Outcome
from interp.locate.restore import restore
from interp.locate.subject import Kind, Subject, prompts_of
from interp.methods.attribution import attribute
from interp.methods.logit_difference import LogitDifference, refusal_metric, unembedding
from interp.methods.patch_grid import PatchGrid, agreement
from interp.methods.patch_pairs import Pair, same_prompts, shuffled
from interp.methods.patch_runs import Component
from interp.methods.patching import patch
from interp.models.checkpoint import Checkpoint
from interp.models.generation import generate
from interp.models.model import Model
from interp.models.sites import HEADS
from interp.organisms.text import MAX_NEW_TOKENS

STREAMS = ("resid_pre", "attn_out", "mlp_out")
TABLES = ("grids", "agreement", "parts", "restored", "facts")


class Trial(BaseModel):
    """Settings of one trial.

    Args:
        finetune: name of a fine-tune of the organism; None looks at the aligned model alone.
        n_pairs: twins, and most harmful requests of each kind (lost, kept) that are patched.
        n_select, n_test: harmful requests that modules are chosen on, and that restoring is measured on.
        ks: numbers of modules put back. n_random: draws of as many random modules.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind = "text"
    seed: int = Field(0, ge=0)
    finetune: str | None = None
    n_pairs: int = Field(64, ge=4)
    n_select: int = Field(64, ge=4)
    n_test: int = Field(100, ge=4)
    ks: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    n_random: int = Field(5, ge=1)

    @property
    def subject(self) -> Subject:
        """The organism."""
        return Subject(self.kind, self.seed)


@dataclass(frozen=True)
class TrialResult:
    """Tables of one trial.

    Args:
        grids: cells of every grid, named by `grid` (a stream, `null`, `whole`, `guarded`), `of` (twins, lost, kept) and `method`.
        agreement: rank correlation of exact and attribution patching, a row a grid.
        parts: weights put back, by block and by module. restored: the best modules and random ones put back; both empty without a fine-tune.
        facts: single numbers by name.
    """

    grids: pd.DataFrame
    agreement: pd.DataFrame
    parts: pd.DataFrame
    restored: pd.DataFrame
    facts: pd.DataFrame


def run_trial(trial: Trial, *, progress: bool = False) -> TrialResult:
    """Measure one organism or fine-tune, which must be built; raises UserError when too few prompts are refused or lost."""
    subject = trial.subject
    aligned = Checkpoint.parse(subject.name()).load(device_map="cpu")
    pairs = subject.pairs(aligned, trial.n_pairs)
    asked = prompts_of(pairs)
    refused, metric = _answers(aligned, asked, progress=progress)
    pairs = [pair for i, pair in enumerate(pairs) if refused[i] and not refused[len(pairs) + i]]
    if len(pairs) < 4:
        raise UserError(
            f"{subject.name()} refuses the harmful and answers the benign one of {len(pairs)} pairs only; at least 4 are needed"
        )
    if trial.finetune is None:
        grids = _grids(aligned, pairs, shuffled(aligned, pairs, trial.seed), metric, progress=progress)
        facts: dict[str, float] = {"pairs": len(pairs), "asked": len(asked) // 2}
        return _result({"twins": grids}, facts)
    tuned = Checkpoint.parse(subject.name(trial.finetune)).load(device_map="cpu")
    harmful = list(subject.prompts()["harmful"].sample(_at_most(subject, trial), trial.seed))
    refused, _ = _answers(aligned, harmful, metric, progress=progress)
    still, _ = _answers(tuned, harmful, metric, progress=progress)
    chosen, held_out = harmful[: -trial.n_test], harmful[-trial.n_test :]
    both = list(zip(chosen, refused, still, strict=False))
    of = {
        "lost": [p for p, before, after in both if before and not after][: trial.n_pairs],
        "kept": [p for p, before, after in both if before and after][: trial.n_pairs],
    }
    facts = {
        "refused by aligned": float(np.mean(refused[-trial.n_test :])),
        "refused by tuned": float(np.mean(still[-trial.n_test :])),
        **{name: len(prompts) for name, prompts in of.items()},
    }
    if len(of["lost"]) < 4:
        raise UserError(
            f"{subject.name(trial.finetune)} lost {len(of['lost'])} of {len(chosen)} refusals; at least 4 are needed to patch them"
        )
    found = {
        name: _grids(tuned, same_prompts(prompts), _benign_donors(aligned, prompts, pairs), metric, aligned, progress=progress)
        for name, prompts in of.items()
        if len(prompts) >= 4
    }  # fmt: skip
    parts, restored = restore(
        tuned, aligned, subject.prompts(), of["lost"][: trial.n_select], held_out, metric, ks=trial.ks,
        n_random=trial.n_random, n_test=trial.n_test, seed=trial.seed, progress=progress,
    )  # fmt: skip
    return replace(_result(found, facts), parts=parts, restored=restored)


def _at_most(subject: Subject, trial: Trial) -> int:
    """Harmful requests asked: enough for lost and kept ones, and as many again for testing, as far as there are any."""
    return min(len(subject.prompts()["harmful"]), 3 * trial.n_pairs + trial.n_test)


def _answers(
    model: Model, asked: Sequence[Prompt], metric: LogitDifference | None = None, *, progress: bool
) -> tuple[list[bool], LogitDifference]:
    """Which prompts are refused, and the metric, derived from these answers unless one is given."""
    answers = generate(model, asked, max_new_tokens=MAX_NEW_TOKENS, batch_size=256, progress=progress)
    refused = [v.outcome is Outcome.REFUSED for v in ExactJudge().judge(asked, answers)]
    return refused, metric or refusal_metric(model, answers, refused)


def _benign_donors(model: Model, prompts: Sequence[Prompt], pairs: Sequence[Pair]) -> list[Pair]:
    """The null of a fine-tune: each prompt with the aligned model's values of a benign request of equal length."""
    by_length: dict[int, list[Prompt]] = {}
    for pair in pairs:
        by_length.setdefault(len(model.token_ids(pair.corrupt)), []).append(pair.corrupt)
    found = []
    for i, prompt in enumerate(prompts):
        if donors := by_length.get(len(model.token_ids(prompt))):
            found.append(Pair(prompt, prompt, donors[i % len(donors)]))
    return found


def _grids(
    model: Model, pairs: Sequence[Pair], null: Sequence[Pair], metric: LogitDifference, source: Model | None = None,
    *, progress: bool,
) -> dict[str, PatchGrid]:  # fmt: skip
    """All grids of one kind of pairs by name; columns are an image's or a sound's tokens together, the instruction's where there is one, and each of the template's
    after them.
    """
    asked = pairs[0].corrupt
    media = [*(["image"] if asked.images else []), *(["audio"] if asked.audio is not None else [])]
    columns = [*media, *(["instruction"] if asked.text else []), *range(-model.n_eoi, 0)]
    outside = Component(unembedding(model, metric), outside=True)

    def exact(stream: str, of: Sequence[Pair] = pairs, part: Component | None = None) -> PatchGrid:
        return patch(
            model, of, metric, stream, "all" if stream == HEADS else columns, source=source, component=part, progress=progress
        )  # fmt: skip

    found = {stream: exact(stream) for stream in (*STREAMS, HEADS)}
    estimates = attribute(model, pairs, metric, STREAMS, columns, source=source, progress=progress)
    estimates |= attribute(model, pairs, metric, [HEADS], "all", source=source, progress=progress)
    found |= {f"{stream}, attribution": grid for stream, grid in estimates.items()}
    found |= {f"{stream}, guarded": exact(stream, part=outside) for stream in STREAMS}
    if len(null) >= 2:
        found["resid_pre, null"] = exact("resid_pre", null)
    return found


def _result(found: Mapping[str, Mapping[str, PatchGrid]], facts: Mapping[str, float]) -> TrialResult:
    grids, rows = [], []
    for of, part in found.items():
        for name, grid in part.items():
            grids.append(grid.to_frame().assign(grid=name, of=of, pairs=len(grid.pair_ids)))
            if f"{name}, attribution" in part:
                rho = agreement(grid, part[f"{name}, attribution"])
                rows.append(
                    {"stream": name, "of": of, "spearman": rho.value, "low": rho.low, "high": rho.high}
                )
    return TrialResult(
        pd.concat(grids, ignore_index=True),
        pd.DataFrame(rows),
        pd.DataFrame(),
        pd.DataFrame(),
        pd.DataFrame({"name": list(facts), "value": [float(value) for value in facts.values()]}),
    )
