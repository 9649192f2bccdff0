"""The main job: two checkpoints in, a refusal-geometry study out.

1. Behaviour: both checkpoints answer held-out harmful and harmless prompts; every answer is judged.
2. The aligned model's refusal tokens, the prompts it does refuse (filtered once, by the aligned model), its refusal direction.
3. Geometry: directions, projections and their shift, layer by layer, in both checkpoints on the same prompts.
4. Cause: the direction is ablated in the aligned model and added in the tuned one, beside a random direction of equal norm and
   the mean difference under shuffled labels.
5. Utility: over-refusal, KL and perplexity on benign answers.
6. Where prompts have images or audio attached: the same in every modality (`study/modality_stages.py`); what is above is then measured on the
   reference modality.

Every stage is a step of one result directory: a killed study resumes, a finished one is read back. One of the compared models is
in memory at a time, beside it the judge's where a model judges.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from interp.data.modalities import Modalities
from interp.data.prompts import PromptSet
from interp.files import content_hash, writing
from interp.models.checkpoint import Checkpoint
from interp.report.html import render_report
from interp.results import StudyResult
from interp.store import open_run, slugify
from interp.study.plan import estimate
from interp.study.settings import (
    KINDS,
    StudyConfig,
    judge_checkpoint,
    make_judge,
    split_prompts,
    split_study,
    study_prompts,
)
from interp.study.stages import Stages

__all__ = ["StudyConfig", "make_judge", "plan_study", "run_study", "split_prompts", "study_prompts"]


def run_study(
    config: StudyConfig, *, out: Path | str = Path("results"), progress: bool = True
) -> tuple[StudyResult, Path]:
    """Run, resume or read back the study, draw its report, and return the result with its directory.

    Raises UserError for bad prompts or checkpoints, SelectionError when the aligned model has no single refusal direction.
    """
    fingerprints = {name: Checkpoint.parse(name).fingerprint() for name in (config.aligned, *config.tuned)}
    prompts, modalities = split_study(config)
    inputs: dict[str, Path | str] = {name: prompts[name].sha256 for name in prompts}
    for modality, part in beside(modalities).items():
        inputs |= {f"{name}, {modality}": part[name].sha256 for name in part}
    inputs |= {f"weights of {name}": value for name, value in fingerprints.items()}
    if (judge := judge_checkpoint(config)) is not None:
        inputs["weights of the judge"] = Checkpoint.parse(judge).fingerprint()
    if config.chat_template is not None and Path(config.chat_template).is_file():
        inputs["chat template"] = Path(config.chat_template)
    here = Path(__file__).parents[1]
    parts = ("study", "models", "geometry", "methods", "evals")
    code = [path for part in parts for path in sorted((here / part).glob("[!_]*.py"))]
    others = ("results.py", "modality_results.py", "data/modalities.py", "evals/phrases.json")
    sources = [*(here / name for name in others), *code]
    slug = slugify("-".join(Checkpoint.parse(name).short_name for name in config.tuned))[:60]
    with open_run(out, "study", slug, config, inputs, sources) as run:
        if not run.finished:
            hashes = {str(key): content_hash(v) if isinstance(v, Path) else v for key, v in inputs.items()}
            result = Stages(config, prompts, modalities, run, fingerprints, progress).result(hashes)
            with writing(run.path):
                result.to_store(run.path)
                render_report(result, run.path)
                shutil.rmtree(run.path / "scratch", ignore_errors=True)
        run.finish()
        return StudyResult.from_store(run.path), run.path


def plan_study(config: StudyConfig) -> str:
    """What a study would do, with an estimate of its time and memory on this machine; loads no weights.

    Time counts two operations a parameter and token against a measured matrix product; memory counts one model, the stored
    activations and one batch of logits.
    """
    prompts, modalities = split_study(config)
    names = (config.aligned, *config.tuned)
    others = list(beside(modalities).values())
    needs = [estimate(name, config, prompts, others, first=i == 0) for i, name in enumerate(names)]
    counts = ", ".join(
        f"{kind}: "
        + ", ".join(f"{len(prompts[f'{kind}_{part}'])} {part}" for part in ("train", "val", "test"))
        for kind in KINDS
    )
    seconds = sum(need.seconds for need in needs)
    memory = max(need.bytes for need in needs)
    lines = [f"prompts   {counts}", f"judge     {make_judge_name(config, prompts)}"]
    if modalities is not None:
        asked = "the same requests" if modalities.paired else "requests of its own"
        lines.insert(
            1,
            f"in        {', '.join(modalities.parts)}; each {asked}, {modalities.left_out} prompts left out",
        )
    for i, (name, need) in enumerate(zip(names, needs, strict=True)):
        lines.append(f"{'aligned' if i == 0 else 'tuned':<9} {name}: {need}")
    lines.append(
        f"in all    about {max(seconds / 60, 0.1):.1f} minutes on this machine, {memory / 2**30:.2f} GiB"
    )
    return "\n".join(lines)


def beside(modalities: Modalities | None) -> dict[str, Mapping[str, PromptSet]]:
    """The prompts of every modality but the reference."""
    parts = {} if modalities is None else dict(modalities.parts)
    return {name: part for name, part in parts.items() if modalities and name != modalities.reference}


def make_judge_name(config: StudyConfig, prompts: Mapping[str, PromptSet]) -> str:
    """The judge that would be used, without loading a judge model."""
    if "=" in config.judge:
        return config.judge
    return make_judge(config, [prompt for part in prompts.values() for prompt in part]).name
