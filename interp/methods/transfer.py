"""Does the refusal direction of one modality move refusal in another? Refusal scores of the same requests under edits (METHODS §0, §D).

A direction is fitted on requests in one modality and edited into the model while it reads requests in another. Three effects, each beside
no edit, without generation (the score is the log-odds of the refusal tokens' total probability at the last position):

1. *ablated*, harmful requests: is refusal gone? The direction taken out at every block input, attention output and MLP output.
2. *added*, harmless requests: is refusal induced? The direction added at the input of its layer.
3. *added*, harmful requests: is refusal restored, where a fine-tune took it away?

A matrix of all directions by all modalities; a random direction of equal norm and the mean difference under shuffled labels are its null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from interp.data.prompts import Prompt
from interp.evals.statistics import cluster_bootstrap, wilson
from interp.methods.refusal import at_every_write, score_prompts
from interp.modality_results import Kind, Transfer
from interp.models.hooks import Ablate, Add, Edits, editing
from interp.models.model import Model
from interp.models.sites import Site
from interp.progress import progress as progress_bar

EDITS: tuple[tuple[str, Kind], ...] = (("ablated", "harmful"), ("added", "harmless"), ("added", "harmful"))


def transfer(
    model: Model,
    directions: Mapping[str, Float[Tensor, " d_model"]],
    layer: int,
    prompts: Mapping[str, Mapping[Kind, Sequence[Prompt]]],
    ids: Sequence[int],
    *,
    batch_size: int = 64,
    progress: bool = True,
) -> list[Transfer]:
    """Every direction's effect on the requests of every modality, no edit first.

    Args:
        directions: by what they were fitted on, at the input of `layer`. prompts: `harmful` and `harmless`, by modality.
        ids: refusal tokens.

    Raises UserError for prompts that the model cannot read, SiteError for directions of another width.
    """
    found = []
    arms: list[tuple[str, Kind, str, Edits]] = [("none", "harmful", "", {}), ("none", "harmless", "", {})]
    for of, vector in directions.items():
        edits: dict[str, Edits] = {
            "ablated": at_every_write(Ablate(vector.float()), model.n_layers),
            "added": {Site(layer, "resid_pre"): Add(vector.float())},
        }
        arms += [(edit, kind, of, edits[edit]) for edit, kind in EDITS]
    with progress_bar(
        "transfer between modalities", total=len(arms) * len(prompts), enabled=progress
    ) as advance:
        for on, kinds in prompts.items():
            # images and sounds are read once, not once an edit
            tokens = {kind: [model.token_ids(p) for p in asked] for kind, asked in kinds.items()}
            for edit, kind, of, given in arms:
                with editing(model, given):
                    scores = score_prompts(
                        model, kinds[kind], ids, batch_size=batch_size, tokens=tokens[kind]
                    )
                mean = cluster_bootstrap(scores, [p.group or p.id for p in kinds[kind]])
                refused = wilson(sum(score > 0 for score in scores), len(scores))
                found.append(Transfer(edit, kind, of, on, mean, refused))
                advance(1)
    return found
