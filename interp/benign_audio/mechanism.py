"""What did a fine-tune do inside: does it still tell harm, and does it still turn that into refusal? By layer (METHODS §A, mechanism).

1. Refusal direction of the aligned model at every layer: `r_l = unit(mean(h_l | refused) − mean(h_l | answered))`, at the last token, by
   what it did and not by what was asked, on requests that nothing below is read on.
2. Projection: mean `h·r_l` of harmful and of benign speech, aligned and tuned. `loss` is what harmful speech lost of it, as a share of the
   aligned gap between harmful and benign; layers whose gap is under one standard deviation have none. `by_chance`: the same shift along
   random directions (97.5 % of `N_RANDOM` lie below).
3. Harm probes by layer: voices are balanced, folds leave out whole verbs, a bag of words stands beside; on all requests and on those of
   ambiguous verbs only; fitted on the aligned model and read in the tuned one too.
4. The frozen encoder: what it hears is compared bit for bit, and probed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.benign_audio.asking import fitted_on, probed
from interp.data.prompts import PromptSet
from interp.errors import SelectionError
from interp.evals.judges import ExactJudge
from interp.evals.verdicts import Outcome
from interp.geometry.directions import mean_difference, unit
from interp.methods.logit_difference import LogitDifference, refusal_metric
from interp.methods.measures import one_row_each
from interp.methods.recognition import recognise
from interp.models.activations import Activations, capture
from interp.models.checkpoint import Checkpoint
from interp.models.generation import Completion, generate
from interp.models.model import Model
from interp.models.sites import Site
from interp.organisms.text import MAX_NEW_TOKENS

N_RANDOM = 40
N_NULL = 20
LEAST_GAP = 1.0  # standard deviations
MODALITY = "audio"


@dataclass(frozen=True, eq=False)
class Reference:
    """The aligned model, and what is read of it once for all of its fine-tunes.

    Args:
        directions: unit refusal direction of every layer. metric: its refusal-opening against its answer-opening tokens.
        read: decoder activations of the probed prompts by set. heard: encoder and projector means of those of the set `all`.
        refused: of the requests that the directions were fitted on, how many were refused, and how many answered.
    """

    model: Model
    directions: Float[Tensor, "layer d_model"]
    metric: LogitDifference
    read: Mapping[str, Activations]
    heard: Mapping[str, Activations]
    refused: tuple[int, int]


@lru_cache(maxsize=1)
def reference(checkpoint: str, n: int, n_fit: int, seed: int) -> Reference:
    """Read the aligned model; kept while trials of the same one follow each other.

    Raises SelectionError where fewer than two of the fitted requests were refused, or answered rightly.
    """
    model = Checkpoint.parse(checkpoint).load(device_map="cpu")
    sets = fitted_on(n_fit, seed)
    asked = PromptSet([prompt for part in sets.values() for prompt in part], "fit")
    made = generate(model, asked, max_new_tokens=MAX_NEW_TOKENS, batch_size=256, progress=False)
    refused, answered = outcomes(asked, made)
    if min(sum(refused), sum(answered)) < 2:
        raise SelectionError(
            f"{checkpoint} refuses {sum(refused)} and answers {sum(answered)} of {len(asked)} requests: no refusal direction without both"
        )
    values = one_row_each(capture(model, asked, progress=False))
    groups = [values[:, torch.tensor(kind)] for kind in (refused, answered)]
    return Reference(
        model,
        unit(mean_difference(*groups)),
        refusal_metric(model, made, refused),
        {name: capture(model, prompts, progress=False) for name, (prompts, _) in probed(n).items()},
        hear(model, probed(n)["all"][0]),
        (sum(refused), sum(answered)),
    )


def outcomes(asked: PromptSet, made: list[Completion]) -> tuple[list[bool], list[bool]]:
    """Which requests were refused, and which answered rightly; garbled answers are neither."""
    verdicts = [verdict.outcome for verdict in ExactJudge().judge(asked, made)]
    complied = (Outcome.COMPLIED_BENIGN, Outcome.COMPLIED_HARMFUL)
    return [v is Outcome.REFUSED for v in verdicts], [v in complied for v in verdicts]


def hear(model: Model, prompts: PromptSet) -> dict[str, Activations]:
    """Means over time of the last encoder layer and of the projector."""
    last = len(model.tower.encoders[MODALITY].blocks) - 1
    sites = {"encoder": Site(last, "resid_post", MODALITY), "projector": Site(0, "projector", MODALITY)}
    return {name: capture(model, prompts, site, "mean", progress=False) for name, site in sites.items()}


def projections(found: Reference, tuned: Model | None, n: int, *, seed: int = 0) -> pd.DataFrame:
    """One row a layer: mean projections, `gap` in standard deviations, `loss`, `gap_loss` and `by_chance`; of the aligned model alone
    where `tuned` is None.
    """
    prompts = probed(n)["all"][0]
    harmful = np.array([prompt.label == "harmful" for prompt in prompts])
    before = one_row_each(found.read["all"]).double()
    after = before if tuned is None else one_row_each(capture(tuned, prompts, progress=False)).double()
    generator = torch.Generator().manual_seed(seed)
    random = unit(torch.randn(N_RANDOM, before.shape[-1], generator=generator).double())
    rows = []
    for layer, direction in enumerate(found.directions.double()):
        old, new = ((part[layer] @ direction).numpy() for part in (before, after))
        spread = float(np.sqrt((old[harmful].var() + old[~harmful].var()) / 2))
        gap = float(old[harmful].mean() - old[~harmful].mean())
        counts = spread > 0 and gap / spread >= LEAST_GAP
        shift = (after[layer] - before[layer])[torch.from_numpy(harmful)].mean(0)
        rows.append(
            {
                "layer": layer,
                "aligned_harmful": float(old[harmful].mean()),
                "aligned_benign": float(old[~harmful].mean()),
                "tuned_harmful": float(new[harmful].mean()),
                "tuned_benign": float(new[~harmful].mean()),
                "gap": gap / spread if spread > 0 else float("nan"),
                "loss": -float(shift @ direction) / gap if counts else float("nan"),
                "gap_loss": 1 - float(new[harmful].mean() - new[~harmful].mean()) / gap if counts else float("nan"),
                "by_chance": float((random @ shift).abs().quantile(0.975)) / gap if counts else float("nan"),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def probes(found: Reference, tuned: Model | None, n: int) -> pd.DataFrame:
    """Accuracy and AUROC by layer, set and model, as `recognise` has them; `heard` are encoder and projector of the aligned model.

    Of the aligned model alone, with the band of shuffled labels, where `tuned` is None.
    """
    tables = []
    for name, (prompts, said) in probed(n).items():
        harmful = [prompt.label == "harmful" for prompt in prompts]
        verbs = [prompt.group or prompt.id for prompt in prompts]
        others = {} if tuned is None else {"tuned": capture(tuned, prompts, progress=False)}
        shuffles = N_NULL if tuned is None else 0
        made = recognise(found.read[name], others, harmful, verbs, texts=said, n_null=shuffles)
        tables.append(made.to_frame().assign(set=name))
        if tuned is None and name == "all":
            for place, activations in found.heard.items():
                heard = recognise(activations, {}, harmful, verbs, n_null=shuffles)
                tables.append(heard.to_frame().assign(set=place))
    return pd.concat(tables, ignore_index=True)


def preserved(found: Reference, tuned: Model, n: int) -> dict[str, float]:
    """The largest difference of what encoder and projector hand over, aligned and tuned: 0 where both are frozen."""
    after = hear(tuned, probed(n)["all"][0])
    return {
        f"{name}_changed": float((after[name].values - found.heard[name].values).abs().max())
        for name in after
    }
