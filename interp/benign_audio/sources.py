"""Which files decide a fine-tune's numbers, beside the organism's weights? A change in one of them runs trials anew."""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).parents[1]
SOURCES = [
    HERE / name
    for name in (
        "benign_audio/pool.py", "benign_audio/nearness.py", "benign_audio/prepare.py", "benign_audio/arms.py",
        "benign_audio/tuning.py", "benign_audio/asking.py", "benign_audio/mechanism.py", "benign_audio/causal.py",
        "benign_audio/trial.py", "methods/selection.py", "methods/spf.py", "methods/surgery_trainer.py", "methods/sarsteer.py",
        "methods/steering.py", "methods/steering_arms.py", "methods/steering_vectors.py", "methods/steering_answers.py",
        "methods/recognition.py", "methods/measures.py", "methods/patching.py", "methods/patch_grid.py",
        "methods/patch_pairs.py", "methods/patch_runs.py", "methods/transplant.py", "methods/logit_difference.py",
        "geometry/directions.py", "geometry/linear_probe.py", "geometry/subspaces.py", "models/activations.py",
        "models/encoder_activations.py", "models/finetune.py", "models/generation.py", "models/hooks.py", "models/restart.py",
        "organisms/language.py", "organisms/world.py", "organisms/speech.py", "organisms/audio_language.py",
        "organisms/audio_prompts.py", "organisms/audio_model.py", "organisms/text_tasks.py", "organisms/recogniser.py", "evals/judges.py", "steering_study/data.py",
    )
]  # fmt: skip
