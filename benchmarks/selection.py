"""How fast is a refusal direction selected, beside the procedure as published?

On the text organism, from the same candidates and validation prompts: our scoring and selection, and the reference
(Arditi et al. 2024, METHODS §0): for every candidate three full forward passes with full logits, all validation prompts
in one batch, hooks written as in the authors' code. Both must select the same candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from benchmarks.harness import Run, interleave, machine, paired_ratio, seconds, seconds_note, target, verdicts
from interp.data.prompts import Prompt, PromptSet, read_prompts
from interp.evals.judges import ExactJudge
from interp.evals.verdicts import Outcome
from interp.files import load_arrays, save_arrays
from interp.methods.refusal import (
    CandidateScores,
    candidate_directions,
    keep_by_refusal,
    refusal_score,
    refusal_tokens,
    score_candidates,
    select,
)
from interp.models.checkpoint import Checkpoint
from interp.models.generation import generate
from interp.models.model import Model
from interp.organisms import text

TARGET, TOLERANCE = 4.0, 1e-4
SCORES = ("induce", "kl", "bypass")
LABELS = {"ours": "`score_candidates`, `select`", "reference": "three full passes a candidate"}


class Config(BaseModel):
    """The checkpoint, which ships its prompts, and the size of the sets (METHODS §0)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    checkpoint: str = "organism:text/aligned"
    n_train: int = 128
    n_val: int = 32
    seed: int = 0


class Task:
    """What both engines start from: the candidates, the validation prompts and the refusal tokens."""

    def __init__(self, config: Config) -> None:
        checkpoint = Checkpoint.parse(config.checkpoint)
        self.model: Model = checkpoint.load(device_map="cpu")
        train, val = [], []
        for kind in ("harmful", "harmless"):
            prompts = read_prompts(str(checkpoint.prompts()[kind]))
            split = prompts.split({"train": config.n_train, "val": config.n_val}, seed=config.seed)
            train.append(split["train"])
            val.append(split["val"])
        asked = PromptSet([*train[0], *train[1]], name="asked")
        answers = generate(self.model, asked, max_new_tokens=24, progress=False)
        verdicts = ExactJudge().judge(asked, answers)
        refused = [verdict.outcome is Outcome.REFUSED for verdict in verdicts]
        self.ids = refusal_tokens(self.model, answers, refused).ids
        sets = [
            keep_by_refusal(self.model, prompts, self.ids, refused=i % 2 == 0)[0]
            for i, prompts in enumerate([*train, *val])
        ]
        self.harmful, self.harmless = sets[2], sets[3]
        self.candidates = candidate_directions(self.model, sets[0], sets[1], progress=False)


def ours(config: Config) -> Run:
    """The library's scoring: cheapest filter first, survivors only, many candidates in one batch."""
    task = Task(config)

    def run(out: Path) -> dict[str, Any]:
        scores = score_candidates(
            task.model, task.candidates, task.harmful, task.harmless, task.ids, progress=False
        )
        return _finish(out, scores)

    score_candidates(
        task.model, task.candidates[:, :2], task.harmful, task.harmless, task.ids, progress=False
    )
    return run


def reference(config: Config) -> Run:
    """Every candidate scored on everything."""
    task = Task(config)

    def run(out: Path) -> dict[str, Any]:
        return _finish(
            out, reference_scores(task.model, task.candidates, task.harmful, task.harmless, task.ids)
        )

    reference_scores(task.model, task.candidates[:1, :2], task.harmful, task.harmless, task.ids)
    return run


ENGINES: dict[str, Callable[[Config], Run]] = {"ours": ours, "reference": reference}


def _finish(out: Path, scores: CandidateScores) -> dict[str, Any]:
    chosen = select(scores)
    save_arrays(out / "scores.safetensors", {name: getattr(scores, name) for name in SCORES})
    return {"position": chosen.position, "layer": chosen.layer, "counts": chosen.counts}


@torch.no_grad()
def reference_scores(
    model: Model,
    candidates: Tensor,
    harmful: Sequence[Prompt],
    harmless: Sequence[Prompt],
    ids: Sequence[int],
) -> CandidateScores:
    """The three scores of every candidate, one after another; a zero candidate ablates and adds nothing."""
    n_pos, n_layers, _ = candidates.shape
    scores = {name: torch.zeros(n_pos, n_layers, dtype=torch.float64) for name in SCORES}
    bad, good = model.encode(harmful).inputs(), model.encode(harmless).inputs()

    def last(inputs: dict[str, Tensor]) -> Tensor:
        return model.module(**inputs).logits[:, -1]

    plain = last(good).double().softmax(-1)
    for position in range(n_pos):
        for layer in range(n_layers):
            vector = candidates[position, layer].float()
            with _hooks(model, ablate=vector):
                scores["bypass"][position, layer] = refusal_score(last(bad), ids).mean()
                ablated = last(good).double().softmax(-1)
            terms = plain * (torch.log(plain + 1e-6) - torch.log(ablated + 1e-6))
            scores["kl"][position, layer] = terms.sum(-1).mean()
            with _hooks(model, add=vector, layer=layer):
                scores["induce"][position, layer] = refusal_score(last(good), ids).mean()
    return CandidateScores(**scores)


@contextmanager
def _hooks(
    model: Model, *, ablate: Tensor | None = None, add: Tensor | None = None, layer: int = 0
) -> Iterator[None]:
    """The edits as in the authors' `hook_utils.py`, at every block input, attention output and MLP output."""
    handles = []
    blocks = model.tower.blocks

    if ablate is not None:
        unit = ablate / (ablate.norm() + 1e-8)

        def without(value: Tensor) -> Tensor:
            return value - (value @ unit)[..., None] * unit

        def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (without(args[0]), *args[1:])

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            return (without(output[0]), *output[1:]) if isinstance(output, tuple) else without(output)

        for block in blocks:
            handles.append(block.register_forward_pre_hook(before))
            handles.append(block.get_submodule(model.tower.paths.attn_out).register_forward_hook(after))
            handles.append(block.get_submodule(model.tower.paths.mlp_out).register_forward_hook(after))
    if add is not None:
        handles.append(
            blocks[layer].register_forward_pre_hook(lambda module, args: (args[0] + add, *args[1:]))
        )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run(config: Config, *, threads: int, repeats: int) -> dict[str, Any]:
    """Time both; raises RuntimeError when another candidate is selected or a survivor's scores differ."""
    if config.checkpoint.startswith("organism:text/"):
        text.build(seed=0)

    def check(places: dict[str, Path]) -> dict[str, Any]:
        fast, full = (load_arrays(places[engine] / "scores.safetensors") for engine in ENGINES)
        errors = {}
        for name in SCORES:
            scored = ~torch.isnan(fast[name])
            errors[name] = float((fast[name] - full[name])[scored].abs().max())
            if not errors[name] <= TOLERANCE:
                raise RuntimeError(f"{name} differs from the reference procedure by {errors[name]:.2g}")
        return {
            "errors": errors,
            "scored": {name: int((~torch.isnan(fast[name])).sum()) for name in SCORES},
            "candidates": fast["kl"].numel(),
        }

    result = interleave(
        "benchmarks.selection",
        list(ENGINES),
        config,
        threads=threads,
        repeats=repeats,
        memory=False,
        check=check,
    )
    chosen = [
        (found["position"], found["layer"]) for found in (e["found"] for e in result["engines"].values())
    ]
    if len(set(chosen)) > 1:
        raise RuntimeError(f"ours selected (position, layer) {chosen[0]}, the reference {chosen[1]}")
    faster = paired_ratio(result["engines"], "reference", "ours")
    return result | {
        "config": config.model_dump(),
        "selected": {"position": chosen[0][0], "layer": chosen[0][1]},
        "faster": faster,
        "cpu_faster": paired_ratio(result["engines"], "reference", "ours", "cpu_seconds"),
        "targets": [target("at least 4 × faster", f"{faster:.2f} ×", faster >= TARGET)],
        "machine": machine(),
    }


def tables(result: dict[str, Any]) -> str:
    """The timings as Markdown, what was scored, and the target with met or missed."""
    rows = ["| engine | seconds, median (min to max) | times ours | in processor time |", "|---|---|---|---|"]
    for engine, label in LABELS.items():
        wall, cpu = (1.0, 1.0) if engine == "ours" else (result["faster"], result["cpu_faster"])
        rows.append(f"| {label} | {seconds(result['engines'][engine])} | {wall:.2f} | {cpu:.2f} |")
    agreement, selected = result["agreement"], result["selected"]
    n, scored = agreement["candidates"], agreement["scored"]
    shares = ", ".join(f"{name} {count} ({count / n:.0%})" for name, count in scored.items())
    note = (
        f"{seconds_note(result)} Scored by ours, of {n} candidates: {shares}; the rest is filtered before. Both select "
        f"position {selected['position']}, layer {selected['layer']}; scores differ by at most "
        f"{max(agreement['errors'].values()):.0e}."
    )
    return "\n".join([*rows, "", note, "", verdicts(result["targets"])])
