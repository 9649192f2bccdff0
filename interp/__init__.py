"""A mechanistic-interpretability lab for what fine-tuning does to the safety of language models.

The everyday names are imported on first use, so that `import interp` and `interp --help` stay fast.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.data.mixtures import mixture as mixture
    from interp.data.pairs import Contrast as Contrast
    from interp.data.prompts import Prompt as Prompt
    from interp.data.prompts import PromptSet as PromptSet
    from interp.data.prompts import read_prompts as read_prompts

_HOMES = {
    "Prompt": "data.prompts",
    "PromptSet": "data.prompts",
    "read_prompts": "data.prompts",
    "Contrast": "data.pairs",
    "mixture": "data.mixtures",
    "Site": "models.sites",
    "Checkpoint": "models.checkpoint",
    "load": "models.checkpoint",
    "Model": "models.model",
    "capture": "models.activations",
    "Activations": "models.activations",
    "StoredActivations": "models.activations",
    "Add": "models.hooks",
    "Ablate": "models.hooks",
    "Project": "models.hooks",
    "editing": "models.hooks",
    "everywhere": "models.hooks",
    "capture_gradients": "models.gradients",
    "generate": "models.generation",
    "Completion": "models.generation",
    "finetune": "models.finetune",
    "FinetuneConfig": "models.finetune",
    "Direction": "geometry.directions",
    "pca": "geometry.subspaces",
    "find_refusal_direction": "methods.refusal",
    "refusal_tokens": "methods.refusal",
    "keep_by_refusal": "methods.refusal",
    "GradientSurgery": "methods.spf",
    "RefusalLoss": "methods.surgery_trainer",
    "SurgeryTrainer": "methods.surgery_trainer",
    "SteeringVectors": "methods.steering",
    "Steering": "methods.steering",
    "steer": "methods.steering",
    "steered": "methods.steering",
    "fit_sarsteer": "methods.sarsteer",
    "SafetyMonitor": "methods.safety_monitor",
    "safelora": "methods.safelora",
    "Outcome": "evals.verdicts",
    "split_prompts": "study",
    "tune": "organisms.text_finetunes",
    "orthogonalize": "methods.orthogonalize",
    "evaluate": "evals.jailbreak",
    "compare": "evals.jailbreak",
    "ExactJudge": "evals.judges",
    "PhraseJudge": "evals.judges",
    "ModelJudge": "evals.judges",
    "StudyConfig": "study",
    "run_study": "study",
    "plan_study": "study",
    "StudyResult": "results",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'interp' has no attribute {name!r}")
    return getattr(importlib.import_module(f"interp.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
