"""Which items of a file lie far from harm? Embed, measure, order, select; nothing is written.

1. Every item of both sets is embedded on each axis; distances are taken raw and centred (`methods/proximity.py`).
2. One axis orders the items by itself, several by their combined rank (`methods/axes.py`).
3. A share of them is selected (`methods/selection.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from interp.data.media import prompt_audio
from interp.data.prompts import Prompt, PromptSet, read_prompts
from interp.errors import EmbeddingError, PromptFileError, UserError
from interp.methods.axes import combined_rank, partial_correlations
from interp.methods.embedding import Embeddings, embed
from interp.methods.encoders import AXES, find_encoder, needs_model
from interp.methods.media_encoders import LONGEST, RATE
from interp.methods.proximity import RESOLUTION, Distances, kept_for, proximity
from interp.methods.selection import distant, matched_random, ordered, proximate, random_subset, subset_size
from interp.methods.text_encoders import read_stop_words
from interp.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    import pandas as pd

KEEPS = ("distant", "proximate", "random", "matched:distant", "matched:proximate")


class FilterConfig(BaseModel):
    """Settings of one filter.

    Args:
        benign: a local file; harmful: a file or a data set of the hub.
        axes: encoders, or names of axes (`methods/encoders.py`).
        keep: one of KEEPS; `matched:` draws at random with the lengths of that subset. fraction: the share to keep.
        measure: `min`, `mean` or `top-N`; by default the encoder's own.
        centred: order by centred distances instead of raw ones.
        model: the checkpoint to be trained, for `self:` and `gradient`.
        stop_words: `none`, a file of words, or None for an encoder's own list.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    benign: Path
    harmful: str
    axes: tuple[str, ...] = ("lexical:tfidf",)
    keep: str = "distant"
    fraction: float = 0.5
    measure: str | None = None
    centred: bool = False
    model: str | None = None
    stop_words: str | None = None
    column: str | None = None
    harmful_column: str | None = None
    device: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Axis:
    """Distances by one encoder, raw and centred; None where those not asked for mean nothing."""

    name: str
    measure: str
    centred: bool
    pair: tuple[Distances | None, Distances | None]

    @property
    def chosen(self) -> Distances:
        """The distances that items are ordered by."""
        found = self.pair[int(self.centred)]
        assert found is not None
        return found

    @property
    def values(self) -> Float[Tensor, " item"]:
        """One distance an item."""
        return self.chosen.by(self.measure)


@dataclass(frozen=True, eq=False)
class Filtered:
    """What a filter found.

    Args:
        kept: ids of the items kept, in the order of their file.
        score: what the items were ordered by: a distance, or a combined rank.
        notes: what a reader should know of the distances, one sentence each.
    """

    config: FilterConfig
    benign: PromptSet
    harmful: PromptSet
    kept: tuple[str, ...]
    score: Float[Tensor, " item"]
    axes: tuple[Axis, ...]
    notes: tuple[str, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row an item, nearest first: id, kept, score, text, and for each axis its distances and nearest harmful item."""
        import pandas as pd

        kept, asked = set(self.kept), {prompt.id: prompt.text for prompt in self.harmful}
        columns: dict[str, Sequence[Any]] = {
            "id": self.benign.ids,
            "kept": [name in kept for name in self.benign.ids],
            "score": self.score.tolist(),
        }
        for axis in self.axes:
            for kind, found in zip(("raw", "centred"), axis.pair, strict=True):
                if found is not None:
                    columns[f"{axis.name} {kind} min"] = found.least[:, 0].tolist()
                    columns[f"{axis.name} {kind} mean"] = found.mean.tolist()
            nearest = axis.chosen.nearest_ids()
            columns[f"{axis.name} nearest"] = nearest
            columns[f"{axis.name} nearest text"] = [asked[name] for name in nearest]
        columns["text"] = self.benign.texts
        keys = tie_keys(self.benign)
        named = dict(zip(keys, self.benign.ids, strict=True))
        order = [named[key] for key in ordered(keys, self.score, seed=self.config.seed)]
        return pd.DataFrame(columns).set_index("id").loc[order].reset_index()


def run_filter(config: FilterConfig) -> Filtered:
    """Read both sets, measure and select.

    Raises UserError (PromptFileError, EmbeddingError, CheckpointError, …) naming the item, the file or the option.
    """
    if config.keep not in KEEPS:
        raise UserError(f"unknown --keep {config.keep!r}; use {', '.join(KEEPS)}")
    names = [AXES.get(axis, axis) for axis in config.axes]
    if not names or len(set(names)) != len(names):
        raise UserError(f"axes {', '.join(config.axes) or '(none)'}: give at least one, and each once")
    if not config.benign.is_file():
        raise PromptFileError(
            f"{config.benign}: no such file; a filter writes what it keeps in the format of a local file"
        )
    benign = read_prompts(config.benign, column=config.column)
    harmful = read_prompts(config.harmful, column=config.harmful_column, label="harmful")
    size = subset_size(len(benign), config.fraction)
    axes, notes = _measure(config, names, benign, harmful)
    score = axes[0].values if len(axes) == 1 else combined_rank([axis.values for axis in axes])
    if len(axes) > 1 and not float(score.max() - score.min()) > 0:
        raise UserError(
            f"the combined rank by {' and '.join(names)} is the same for all {len(benign)} items, as the axes order them in opposite ways; "
            "filter by one of them"
        )
    kept = set(_select(config, benign, score, size))
    notes += [*_ties(config, benign, score, kept), *_repeats(benign, axes), *_agreement(axes)]
    ids = tuple(name for name in benign.ids if name in kept)
    return Filtered(config, benign, harmful, ids, score, tuple(axes), tuple(notes))


def _measure(
    config: FilterConfig, names: Sequence[str], benign: PromptSet, harmful: PromptSet
) -> tuple[list[Axis], list[str]]:
    model = None
    if config.model is not None and any(map(needs_model, names)):
        model = Checkpoint.parse(config.model).load(device_map=config.device)
    found, notes = [], []
    for name in names:
        words = _stop_words(config.stop_words) if name.startswith(("lexical:", "st:")) else None
        encoder = find_encoder(name, model=model, stop_words=words, device=config.device)
        measure = config.measure or encoder.measure
        if (n := kept_for(measure)) > len(harmful):
            raise UserError(f"--measure {measure}: there are only {len(harmful)} harmful items")
        pair: list[Distances | None] = [None, None]
        embeddings = embed(encoder, benign, harmful)
        pair[int(config.centred)] = proximity(*embeddings, centred=config.centred, n=n)
        other = _other_kind(embeddings, not config.centred)
        if isinstance(other, EmbeddingError):
            notes.append(
                f"{'Raw' if config.centred else 'Centred'} distances by {name} are not shown: {other}."
            )
        else:
            pair[int(not config.centred)] = other
        found.append(Axis(name, measure, config.centred, (pair[0], pair[1])))
    return found, notes


def _other_kind(pair: tuple[Embeddings, ...], centred: bool) -> Distances | EmbeddingError:
    """Distances of the kind that nobody asked for, which are shown where they can be had."""
    try:
        return proximity(*pair, centred=centred)
    except EmbeddingError as error:
        return error


def _stop_words(asked: str | None) -> frozenset[str] | None:
    if asked is None:
        return None
    return frozenset() if asked == "none" else read_stop_words(asked)


def _select(
    config: FilterConfig, benign: PromptSet, score: Float[Tensor, " item"], size: int
) -> tuple[str, ...]:
    keys, seed = tie_keys(benign), config.seed
    keep, _, like = config.keep.partition(":")
    if keep == "random":
        subset = random_subset(keys, size, seed=seed)
    else:
        nearness = proximate if "proximate" in (keep, like) else distant
        subset = nearness(keys, score, size, seed=seed)
        if like:
            subset = matched_random(keys, [length(prompt) for prompt in benign], subset, seed=seed)
    named = dict(zip(keys, benign.ids, strict=True))
    return tuple(named[key] for key in subset)


def tie_keys(prompts: PromptSet) -> list[str]:
    """What decides between equal distances, by hash: an item's id; where its file gave none, its content, so that neither the file's name nor
    the order of its rows plays a part. Repeated contents are told apart by a number.
    """
    keys, seen = [], Counter[str]()
    for i, prompt in enumerate(prompts, start=1):
        if prompt.id == f"{prompts.name}:{i}":
            content = replace(prompt, id="content").fingerprint()
            seen[content] += 1
            keys.append(f"{content}:{seen[content]}")
        else:
            keys.append(prompt.id)
    return keys


def length(prompt: Prompt) -> float:
    """How long an item is to who trains on it: words of request and response, or seconds of sound where nothing is written."""
    n = len(prompt.text.split()) + len((prompt.response or "").split())
    wave = None if n else prompt_audio(prompt, RATE, LONGEST)
    return float(n) if wave is None else len(wave) / RATE


def _ties(
    config: FilterConfig, benign: PromptSet, score: Float[Tensor, " item"], kept: set[str]
) -> list[str]:
    if config.keep not in ("distant", "proximate"):
        return []
    inside = torch.tensor([name in kept for name in benign.ids])
    edge = score[inside].min() if config.keep == "distant" else score[inside].max()
    if not (score[~inside] == edge).any():
        return []
    tied = score == edge
    said = (
        f"{int(tied.sum())} items are equally far at the cut; a hash of the seed and their ids (their contents, where they have none) decides "
        "which of them are kept."
    )
    if 2 * int((tied & inside).sum()) > int(inside.sum()):
        said += " They are most of what is kept: these distances do not tell them apart, and the choice is mostly chance; another axis may."
    return [said]


def _repeats(benign: PromptSet, axes: Sequence[Axis]) -> list[str]:
    notes = []
    for axis in axes:
        raw = axis.pair[0]
        if raw is not None and (same := int((raw.least[:, 0] <= RESOLUTION).sum())):
            notes.append(f"{same} items are to {axis.name} the same as a harmful one (distance 0).")
    repeated = len(benign) - len(
        set(zip(benign.texts, (str(p.audio) + str(p.images) for p in benign), strict=True))
    )
    if repeated:
        notes.append(f"{repeated} items repeat another; equal contents have equal distances.")
    return notes


def _agreement(axes: Sequence[Axis]) -> list[str]:
    """How far each two axes agree, and beyond what the others share with them."""
    notes = []
    for i, axis in enumerate(axes):
        others = {other.name: other.values for other in axes if other is not axis}
        if not others or len(axis.values) < len(others) + 4:
            continue
        table = partial_correlations(axis.values, others).set_index("axis")
        for other in axes[i + 1 :]:
            given = f", {table['partial'][other.name]:.2f} given the others" if len(axes) > 2 else ""
            notes.append(
                f"Rank correlation of {axis.name} and {other.name}: {table['rho'][other.name]:.2f}{given}."
            )
    return notes
