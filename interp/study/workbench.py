"""What does every stage of a study do with a checkpoint? Load it, read its activations, let it answer and judge that.

One of the compared models is in memory at a time. What was answered and judged is a step of the run: done once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from interp.data.prompts import PromptSet
from interp.evals.jailbreak import EvalResult, evaluate
from interp.evals.verdicts import Judge
from interp.models.activations import capture
from interp.models.checkpoint import Checkpoint
from interp.models.generation import Completion, generate
from interp.models.hooks import Edits
from interp.models.model import Model
from interp.models.sites import Site
from interp.store import Run
from interp.study.settings import KINDS, Kind, StudyConfig


class OneModel:
    """Loads a checkpoint when a step first needs it, and lets go of the one before."""

    def __init__(self, config: StudyConfig) -> None:
        self.config = config
        self.name: str | None = None
        self.model: Model | None = None

    def __call__(self, name: str) -> Model:
        if self.model is None or self.name != name:
            self.model = None
            self.model = Checkpoint.parse(name).load(**self.config.load)
            self.name = name
        return self.model


class Workbench:
    """A study's settings, its run, its judge, and the one model in memory."""

    def __init__(self, config: StudyConfig, run: Run, judge: Judge, progress: bool) -> None:
        self.config, self.run, self.judge, self.progress = config, run, judge, progress
        self.model = OneModel(config)

    def capture(self, model: Model, prompts: PromptSet, sites: str | Site, positions: str | int) -> Tensor:
        """Values (site, prompt, d_model) at one position a prompt."""
        return capture(
            model, prompts, sites, positions, batch_size=self.config.batch_size, progress=self.progress
        ).values

    def generate(self, model: Model, prompts: PromptSet, edits: Edits | None = None) -> list[Completion]:
        """Greedy answers to the prompts."""
        return generate(
            model,
            prompts,
            edits=edits or None,
            max_new_tokens=self.config.max_new_tokens,
            batch_size=self.config.batch_size,
            progress=self.progress,
        )

    def evaluate(
        self, step: str, name: str, prompts: Mapping[str, PromptSet], edits: Edits
    ) -> dict[Kind, EvalResult]:
        """Answers to `harmful_test` and `harmless_test`, judged; answers are kept beside the verdicts."""

        def compute() -> dict[str, Any]:
            model, results, answers = self.model(name), {}, []
            for kind in KINDS:
                asked = prompts[f"{kind}_test"]
                completions = self.generate(model, asked, edits)
                answers += [asdict(completion) for completion in completions]
                label = f"{Checkpoint.parse(name).short_name}, {kind}"
                results[kind] = evaluate(asked, completions, self.judge, name=label).to_dict()
            return {"results": results, "completions": answers}

        stored = self.run.step(step, compute)["results"]
        return {kind: EvalResult.from_dict(stored[kind]) for kind in KINDS}
