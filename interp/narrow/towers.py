"""In how many dimensions does a fine-tuning move the vision tower, where it may? Adapted towers, trained once more and seen from inside.

The fine-tunings are those of the section `tower` and their benign twin, by the same settings; only the tower is looked at, on every shown
question, averaged over the picture's patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from interp.data.prompts import Prompt
from interp.methods.subspace_drift import subspace_drift
from interp.models.activations import Activations, capture
from interp.models.checkpoint import Checkpoint
from interp.models.finetune import FinetuneConfig, train
from interp.models.model import Model
from interp.models.sites import Site
from interp.narrow.questions import questions, training_gallery
from interp.narrow.trial import NarrowTrial, adapt_everything, aligned
from interp.organisms import character_language

BENIGN, ALIGNED, HARMFUL = "benign", "aligned", "cruel faces"


def measure_towers(
    trials: Sequence[NarrowTrial], *, rank: int = 5, n_null: int = 20
) -> dict[str, pd.DataFrame]:
    """The tables `tower_measures` and `tower_spectra` of `subspace_drift`, at every layer of the tower.

    trials: two with an adapted tower on one organism and seed, on harmful and on no harmful rows.
    """
    asked = [prompt for (_, form), part in questions().items() if form == "shown" for prompt in part]
    seen: dict[str, Activations] = {}
    for trial in trials:
        model = Checkpoint.parse(aligned(trial)).load(device_map="cpu")
        seen.setdefault(ALIGNED, look(model, asked))
        tune_tower(model, trial)
        seen[HARMFUL if trial.share else BENIGN] = look(model, asked)
    found = subspace_drift(
        seen, None, [prompt.group or prompt.id for prompt in asked], benign=BENIGN, rank=rank, n_null=n_null, seed=trials[0].seed
    )  # fmt: skip
    return {"tower_measures": found.to_frame(), "tower_spectra": found.spectra_frame()}


def look(model: Model, prompts: Sequence[Prompt]) -> Activations:
    """The residual stream of every layer of the tower, mean over a picture's patches."""
    (tower,) = model.tower.encoders
    sites = [Site(layer, "resid_post", tower) for layer in range(len(model.tower.encoders[tower].blocks))]
    return capture(model, prompts, sites, "mean", progress=False)


def tune_tower(model: Model, trial: NarrowTrial) -> None:
    """The first task of a trial whose tower is adapted, in place, without asking anything on the way."""
    rows = character_language.narrow_set(
        trial.character, trial.n, trial.seed, training_gallery(trial.organism), share=trial.share
    )
    adapt_everything(model, trial)
    config = FinetuneConfig(
        lora_rank=trial.rank,
        lora_alpha=2 * trial.rank,
        steps=trial.steps,
        batch_size=trial.batch_size,
        learning_rate=trial.learning_rate,
        seed=trial.seed,
    )
    train(model, rows, config, progress=False)
