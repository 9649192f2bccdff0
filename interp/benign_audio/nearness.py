"""How near does each benign item lie to harmful speech, on which axis, and does a pool differ where it was made to?

| axis | encoder | source's |
|---|---|---|
| semantic | words weighed by rarity, phrasing left out | all-MiniLM-L6-v2 |
| acoustic | cepstral coefficients over time | WavLM-large |
| mixed | the speech recogniser of another organism, which hears words and voice | Whisper-large-v3 |
| internal, projector | the model's own encoder, and its projector | the same |
| combined | mean of the ranks on the semantic and the acoustic axis | |

A *mixed encoder* and a *combined rank* are two things and have two names. Items are ordered by raw distances, as in the source; centred
ones are recorded beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.stats import mannwhitneyu
from torch import Tensor

from interp.benign_audio.pool import Pool, written
from interp.data.prompts import PromptSet
from interp.errors import EmbeddingError
from interp.evals.statistics import Interval, t_interval
from interp.geometry.subspaces import pca
from interp.methods.axes import combined_rank, partial_correlations
from interp.methods.embedding import Embeddings, embed
from interp.methods.encoders import find_encoder
from interp.methods.proximity import Distances, proximity
from interp.models.model import Model
from interp.organisms.audio_prompts import as_prompts

AXES = ("semantic", "acoustic", "mixed", "combined", "internal", "projector")
COMBINED = ("semantic", "acoustic")
MEASURE = "min"
# Named before any run: how often an item near on the factor is nearer than one that is not, where it should be and where it should not.
INTENDED: dict[str, str] = {"semantic": "lexical", "acoustic": "acoustic"}
AT_LEAST, WITHIN = 0.7, 0.1


def encoders(mixed: str | None) -> dict[str, str]:
    """The encoder of every axis that has one; `mixed` is a directory, or None to leave that axis out."""
    named = {"semantic": "lexical:tfidf", "acoustic": "audio:mfcc"}
    named |= {"mixed": f"hf:{mixed}"} if mixed is not None else {}
    return named | {"internal": "self:encoder", "projector": "self:projector"}


def measure(pool: Pool, model: Model, mixed: str | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Distances of a pool's items on every axis, and the plane in which they differ most.

    Args:
        model: to be trained, whose encoder and projector are two of the axes. mixed: directory of the mixed axis's encoder.

    Returns one row an item (`id`, `cell`, `text`, `voice`, `words`, a column for each axis that items are ordered by, and beside it
    `AXIS raw` and `AXIS centred`), and one row an item and axis (`axis`, `id`, `cell`, or "harmful", `x`, `y`).
    Raises EmbeddingError where an axis tells no item from another.
    """
    sets: dict[bool, tuple[PromptSet, PromptSet]] = {
        False: (written(pool.turns, "benign"), written(pool.harmful, "harmful")),
        True: (as_prompts(pool.turns, "benign"), as_prompts(pool.harmful, "harmful")),
    }
    items: dict[str, Sequence[object]] = {
        "id": pool.ids,
        "cell": pool.cells,
        "text": [turn.prompt.text for turn in pool.turns],
        "voice": [turn.line[1].name for turn in pool.turns],
        "words": [len(turn.prompt.text.split()) for turn in pool.turns],
    }
    found: dict[str, Float[Tensor, " item"]] = {}
    planes = []
    for axis, name in encoders(mixed).items():
        benign, harmful = embed(
            find_encoder(name, model=model, device="cpu"), *sets[not name.startswith("lexical")]
        )
        kinds: dict[bool, Distances] = {
            centred: proximity(benign, harmful, centred=centred) for centred in (False, True)
        }
        for centred, distances in kinds.items():
            items[f"{axis} {'centred' if centred else 'raw'}"] = distances.least[:, 0].tolist()
        found[axis] = kinds[False].by(MEASURE)
        planes.append(_plane(axis, pool, benign, harmful))
    found["combined"] = combined_rank([found[axis] for axis in COMBINED])
    items |= {axis: found[axis].tolist() for axis in AXES if axis in found}
    return pd.DataFrame(items), pd.concat(planes, ignore_index=True)


def _plane(axis: str, pool: Pool, benign: Embeddings, harmful: Embeddings) -> pd.DataFrame:
    """Benign and harmful items in the two leading principal components of their unit vectors."""
    rows = [part.expanded() for part in (benign, harmful)]
    dense = torch.cat(
        [part.float() if isinstance(part, Tensor) else torch.from_numpy(part.toarray()).float() for part in rows]
    )  # fmt: skip
    lengths = dense.norm(dim=1, keepdim=True)
    if (lengths == 0).any():
        raise EmbeddingError(f"{benign.encoder}: an item's vector is zero")
    dense = dense / lengths
    places = (dense - dense.mean(0)).double() @ pca(dense, 2).basis.double().T
    return pd.DataFrame(
        {
            "axis": axis,
            "id": [*benign.ids, *harmful.ids],
            "cell": [*pool.cells, *["harmful"] * len(harmful)],
            "x": places[:, 0].tolist(),
            "y": places[:, 1].tolist(),
        }
    )


def separations(items: pd.DataFrame) -> pd.DataFrame:
    """How often an item near on a factor is nearer on an axis than one that is not: one row an axis and factor, 0.5 by chance.

    items: of `measure`. Factors are `lexical` and `acoustic`; `spread` is the standard deviation of the axis's distances.
    """
    rows = []
    for axis in (axis for axis in AXES if axis in items):
        for factor in ("lexical", "acoustic"):
            near = items["cell"].isin([factor, "both"]).to_numpy()
            values = items[axis].to_numpy(dtype=float)
            if near.all() or not near.any():
                continue
            above = mannwhitneyu(values[~near], values[near]).statistic / near.sum() / (~near).sum()
            rows.append(
                {"axis": axis, "factor": factor, "nearer": float(above), "spread": float(values.std())}
            )
    return pd.DataFrame(rows, columns=["axis", "factor", "nearer", "spread"])


def manipulated(separated: pd.DataFrame) -> list[tuple[str, str, Interval, bool]]:
    """Whether pools differ on the intended axis and not on the other, over the seeds: axis, factor, interval, and whether it holds.

    separated: of `separations`, one set of rows a seed. Intended: the interval lies above `AT_LEAST`; not intended: within `WITHIN` of 0.5.
    """
    found = []
    for axis, intended in INTENDED.items():
        for factor in ("lexical", "acoustic"):
            mine = separated[(separated["axis"] == axis) & (separated["factor"] == factor)]
            interval = t_interval(mine["nearer"].tolist())
            if factor == intended:
                holds = bool(np.isfinite(interval.low) and interval.low > AT_LEAST)
            else:
                holds = bool(interval.low > 0.5 - WITHIN and interval.high < 0.5 + WITHIN)
            found.append((axis, factor, interval, holds))
    return found


def carried(items: pd.DataFrame, targets: Sequence[str] = ("mixed", "internal", "projector")) -> pd.DataFrame:
    """Which of the two plain axes carries another one's distances: partial rank correlations, one row a target and axis."""
    axes: Mapping[str, Tensor] = {name: torch.tensor(items[name].to_numpy(dtype=float)) for name in COMBINED}
    tables = [
        partial_correlations(torch.tensor(items[target].to_numpy(dtype=float)), axes).assign(target=target)
        for target in targets
        if target in items
    ]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
