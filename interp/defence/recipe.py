"""Does SPF keep a real checkpoint safe? The source's setting, from a recipe file: several arms, one table.

1. The aligned model answers harmful and harmless requests, once; the first tokens of its refusals are derived from its answers.
2. Each arm fine-tunes it on the same task examples with its own surgery on the gradient; a monitor watches requests of the
   evaluation. `plain` is surgery with k = 0, which changes nothing and logs the same table.
3. What was saved is loaded again and answers the same requests: safety before and after, gate rate, cosine, seconds.

Every arm is a result directory of its own: a finished one is read back, and a killed one goes on from the Trainer's last checkpoint
where `finetune.save_every` is set. `recipe_settings.py` reads the recipe, `recipe_plan.py` counts memory and time beforehand.
Source: SPF (2026, arXiv 2601.10141), METHODS §C; `experiments/recipes/spf.yaml` says which of its numbers are the source's.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from interp.data.prompts import PromptSet
from interp.defence.recipe_plan import plan_recipe
from interp.defence.recipe_settings import Arm, Recipe, load_recipe, read_data, training_config
from interp.errors import SelectionError, UserError
from interp.evals.jailbreak import EvalResult, evaluate
from interp.evals.judges import named_judge
from interp.evals.verdicts import Outcome
from interp.files import atomic_write, load_json, load_table, remove, save_json
from interp.methods.refusal import refusal_tokens
from interp.methods.safety_monitor import SafetyMonitor
from interp.methods.spf import GradientSurgery
from interp.methods.surgery_trainer import RefusalLoss, SurgeryTrainer
from interp.models.checkpoint import Checkpoint
from interp.models.finetune import FinetuneConfig, save_checkpoint, train
from interp.models.generation import Completion, generate
from interp.models.model import Model
from interp.store import Run, open_run

__all__ = ["Arm", "Recipe", "load_recipe", "plan_recipe", "read_data", "run_recipe"]

STUDY = "spf-recipe"
PROBES = 32  # requests that the monitor watches
MEASURES = {
    "jsr": ("harmful", Outcome.COMPLIED_HARMFUL),
    "refused": ("harmful", Outcome.REFUSED),
    "unscored": ("harmful", Outcome.UNSCORED),
    "over_refusal": ("harmless", Outcome.REFUSED),
}
HERE = Path(__file__).parents[1]
# what decides an arm's numbers beside weights, data and settings
SOURCES = [
    HERE / name
    for name in (
        "defence/recipe.py", "defence/recipe_settings.py", "data/prompts.py", "methods/refusal.py",
        "methods/safety_monitor.py", "methods/spf.py", "methods/surgery_trainer.py", "models/checkpoint.py",
        "models/finetune.py", "models/generation.py", "models/model.py", "evals/jailbreak.py", "evals/judges.py",
        "evals/phrases.json", "evals/templates.py",
    )
]  # fmt: skip


def run_recipe(
    recipe: Recipe,
    out: Path | str = Path("results"),
    arms: Sequence[str] | None = None,
    max_steps: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Run, resume or read back the arms; one row an arm.

    Args:
        out: directory of all results; the arms lie under `spf-recipe`.
        arms: names of the arms to run, all by default.
        max_steps: train no longer than this, for a first try.

    Returns for each arm the shares `jsr`, `refused`, `unscored` (of `n_harmful` requests) and `over_refusal` (of `n_harmless`), each
    before and after with its Wilson interval; `gate_rate` (mean share of blocks whose gate was open), `mean_cosine` of g_s and g_u;
    `seconds` of training, of the last session where it was resumed; and `directory`. Raises UserError for unknown arms, missing or
    overlapping data, and a model without refusals when the recipe states no `refusal_tokens`.
    """
    chosen = _chosen(recipe, arms)
    checkpoint = Checkpoint.parse(recipe.model)
    if checkpoint.adapter is not None:
        raise UserError(f"{recipe.model} carries an adapter; merge it first, then fine-tune the merged model")
    data = read_data(recipe)
    hashes = {"weights": checkpoint.fingerprint()} | {name: part.sha256 for name, part in data.items()}
    if "=" in recipe.judge:
        hashes["judge"] = Checkpoint.parse(recipe.judge.partition("=")[2]).fingerprint()
    settings = recipe.model_dump(
        mode="json",
        exclude={"task": {"file"}, **dict.fromkeys(("safety", "harmful", "harmless", "arms"), True)},
    )
    asked = {name: settings[name] for name in ("model", "dtype", "judge", "seed", "n_test", "max_new_tokens")}
    read = {name: value for name, value in hashes.items() if name not in ("task", "safety")}
    with open_run(out, STUDY, "aligned", asked, read, SOURCES) as run:
        before = run.step("evaluation.json", lambda: _evaluation(recipe, checkpoint, data, progress))
    config = training_config(recipe, len(data["task"]), max_steps)
    rows = []
    for arm in chosen:
        identity = settings | {"finetune": config, "arm": arm}
        with open_run(out, STUDY, arm.name, identity, hashes, SOURCES) as run:
            if not run.finished:
                _run_arm(recipe, arm, config, data, before, run, progress)
            rows.append(_row(arm, before, run.finish()))
    return pd.DataFrame(rows)


def _chosen(recipe: Recipe, names: Sequence[str] | None) -> list[Arm]:
    by_name = {arm.name: arm for arm in recipe.arms}
    for name in names or ():
        if name not in by_name:
            raise UserError(f"no arm {name!r} in the recipe; there are: {', '.join(by_name)}")
    return [by_name[name] for name in names] if names is not None else list(recipe.arms)


def _load(checkpoint: Checkpoint, recipe: Recipe) -> Model:
    # Trainer and PEFT hold the last model in cycles: without this, two would be in memory
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return checkpoint.load(dtype=recipe.dtype)


def _evaluation(
    recipe: Recipe, checkpoint: Checkpoint, data: dict[str, PromptSet], progress: bool
) -> dict[str, Any]:
    """Answers and their judgement, as JSON values; the model is gone when the judge's is loaded."""
    answers = _answers(recipe, checkpoint, data, progress)
    judge = named_judge(recipe.judge, dtype=recipe.dtype)
    judged = {kind: evaluate(data[kind], answers[kind], judge, name=kind).to_dict() for kind in answers}
    return judged | {"answers": {kind: [asdict(answer) for answer in answers[kind]] for kind in answers}}


def _answers(
    recipe: Recipe, checkpoint: Checkpoint, data: dict[str, PromptSet], progress: bool
) -> dict[str, list[Completion]]:
    model = _load(checkpoint, recipe)
    return {
        kind: generate(model, data[kind], max_new_tokens=recipe.max_new_tokens, progress=progress)
        for kind in ("harmful", "harmless")
    }


def _run_arm(
    recipe: Recipe, arm: Arm, config: FinetuneConfig, data: dict[str, PromptSet], before: dict[str, Any], run: Run,
    progress: bool,
) -> None:  # fmt: skip
    """Train, save, and evaluate what was saved; whatever of it is there already is kept."""
    saved = run.file("model")
    if not saved.exists():
        model = _train(recipe, arm, config, data, before, run, progress)
        with atomic_write(saved) as aside:
            save_checkpoint(model, aside)
        del model  # its memory is needed for the one that is loaded from there
    remove(run.file("work"))
    aligned = Checkpoint.parse(recipe.model)
    tuned = aligned.with_adapter(saved) if config.method == "lora" else Checkpoint.parse(saved)
    run.step("evaluation.json", lambda: _evaluation(recipe, tuned, data, progress))


def _train(
    recipe: Recipe, arm: Arm, config: FinetuneConfig, data: dict[str, PromptSet], before: dict[str, Any], run: Run,
    progress: bool,
) -> Model:  # fmt: skip
    model = _load(Checkpoint.parse(recipe.model), recipe)
    monitor = SafetyMonitor(
        model,
        data["harmful"].prompts[:PROBES],
        refusal_ids=_refusal_ids(recipe, model, before),
        out=run.file("monitor.parquet"),
        live=progress,
    )
    batch = config.batch_size * config.accumulation

    def surgery(module: nn.Module) -> GradientSurgery:
        plain = arm.method == "plain"
        return GradientSurgery(
            module.named_parameters(),
            RefusalLoss(model, data["safety"], n=arm.refusals, seed=recipe.seed),
            method="spf" if plain else arm.method,
            k=0 if plain else arm.k,
            gate=arm.gate,
            refresh=arm.refresh,
            weight=arm.refusals / (batch + arm.refusals) if arm.weight is None else arm.weight,
            seed=recipe.seed,
        )

    start = time.monotonic()
    loss = train(
        model, data["task"], config, work=run.file("work"), callbacks=[monitor],
        trainer=partial(SurgeryTrainer, surgery=surgery, surgery_log=run.file("surgery.parquet")), label=arm.name, progress=progress,
    )  # fmt: skip
    save_json(run.file("training.json"), {"seconds": time.monotonic() - start, "loss": loss})
    return model


def _refusal_ids(recipe: Recipe, model: Model, before: dict[str, Any]) -> tuple[int, ...]:
    if recipe.refusal_tokens is not None:
        found = {
            text: model.tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in recipe.refusal_tokens
        }
        for text, ids in found.items():
            if not ids or ids[0] == model.tokenizer.unk_token_id:
                raise UserError(
                    f"refusal token {text!r} of the recipe is unknown to the tokenizer of {model.name}"
                )
        return tuple(dict.fromkeys(int(ids[0]) for ids in found.values()))
    kinds = ("harmful", "harmless")
    answers = [
        Completion(**{**row, "token_ids": tuple(row["token_ids"])})
        for kind in kinds
        for row in before["answers"][kind]
    ]
    refused = [
        verdict.outcome is Outcome.REFUSED
        for kind in kinds
        for verdict in EvalResult.from_dict(before[kind]).verdicts
    ]
    try:
        return refusal_tokens(model, answers, refused).ids
    except SelectionError as error:
        raise SelectionError(
            f"{error}; take an aligned model, or state in the recipe as `refusal_tokens` what its refusals open with"
        ) from error


def _row(arm: Arm, before: dict[str, Any], directory: Path) -> dict[str, Any]:
    table = load_table(directory / "surgery.parquet")
    after = load_json(directory / "evaluation.json")
    row: dict[str, Any] = {"arm": arm.name, "method": arm.method}
    for name, (kind, outcome) in MEASURES.items():
        for when, found in (("before", before), ("after", after)):
            rate = EvalResult.from_dict(found[kind]).rate(outcome)
            row |= {
                f"{name}_{when}": rate.estimate,
                f"{name}_{when}_low": rate.low,
                f"{name}_{when}_high": rate.high,
            }
    return row | {
        "n_harmful": len(after["harmful"]["verdicts"]),
        "n_harmless": len(after["harmless"]["verdicts"]),
        "steps": len(table),
        "gate_rate": float(table["open"].mean()),
        "mean_cosine": float(table["cosine"].mean()),
        "seconds": load_json(directory / "training.json")["seconds"],
        "directory": str(directory),
    }
