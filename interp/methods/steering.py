"""How is a model pushed while it answers? Steering vectors as values, and how they act.

1. `SteeringVectors` (`steering_vectors.py`): one vector a site. They add, scale (by one factor a site too), compare, are saved and loaded.
2. `Steering`: `h ← h + v` at given positions, in every row or only in rows whose prompt meets a `Condition`. `a & b` is both at once.
3. It acts in `generate(model, prompts, edits=steering)` and in `with steered(model, steering, prompts)`; its strength can be set by a KL
   (`steering_strength.py`), and it can be written into a checkpoint's biases where that is exact (`steering_export.py`).

A condition is read from the prompt in the *unsteered* model, each row by itself, before anything is steered: neither batch mates nor the
steering itself decide. Sources: activation addition, Turner et al. 2023 (arXiv 2308.10248); conditional steering, Lee et al. 2024
(arXiv 2409.05907), who compare cosines of a projection: here it is the projection itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from interp.data.prompts import Prompt
from interp.errors import ResultError, SiteError
from interp.files import atomic_write, load_json, save_json
from interp.geometry.directions import unit
from interp.methods.measures import check_same, one_row_each
from interp.methods.steering_vectors import SteeringVectors, Strength
from interp.models.activations import Activations, capture
from interp.models.hooks import Add, Edit, Positions, editing, under_edits
from interp.models.model import Model
from interp.models.positions import Rule
from interp.models.sites import Site

__all__ = ["Condition", "Part", "Steering", "SteeringVectors", "steer", "steered"]

FORMAT = "interp steering 1"
FORMULA = (
    "h <- h + vector at the named positions of each site. resid_post.l is the output of decoder block l, resid_pre.l its input, "
    "attn_out.l and mlp_out.l what it adds; layers count from 0. answer = last prompt token and all generated tokens. A part with "
    "a condition acts only on prompts whose unsteered activation h at the condition's site and position has h . direction > threshold."
)
TENSORS, INDEX = "steering.safetensors", "steering.json"


@dataclass(frozen=True, eq=False)
class Condition:
    """Steer a row only where its prompt's activation reaches past `threshold` along `direction` (unit), in the unsteered model.

    positions: which token of the prompt, or which tokens' mean, is looked at.
    """

    direction: Float[Tensor, " d_model"]
    site: Site
    threshold: float
    positions: Rule = "last"

    @classmethod
    def fit(
        cls,
        active: Activations,
        inactive: Activations,
        site: str | Site | None = None,
        *,
        false_positives: float | None = None,
    ) -> Condition:
        """The direction from the inactive prompts' mean to the active ones', and a threshold between them.

        Args:
            active, inactive: captures of one row a prompt, of prompts to steer and to leave alone.
            site: None takes that with the largest distance of means in units of the spread along it.
            false_positives: share of the inactive prompts that lie past the threshold; None puts it midway between the means.

        Raises SiteError for captures that do not match and where the means agree.
        """
        check_same(active, inactive, prompts=False)
        sites = active.sites if site is None else (Site.parse(site),)
        best: tuple[float, Condition] | None = None
        for place in sites:
            x, y = active[place].double(), inactive[place].double()
            direction = unit(x.mean(0) - y.mean(0))
            along, other = x @ direction, y @ direction
            middle = float(along.mean() + other.mean()) / 2
            threshold = middle if false_positives is None else float(other.quantile(1 - false_positives))
            spread = float(torch.cat([along - along.mean(), other - other.mean()]).square().mean().sqrt())
            gap = float(along.mean() - other.mean())
            if gap > 0:
                score = gap / spread if spread > 0 else float("inf")
                if best is None or score > best[0]:
                    rule = (
                        int(active.positions)
                        if active.positions.lstrip("-").isdecimal()
                        else active.positions
                    )
                    best = score, cls(direction, place, threshold, rule)
        if best is None:
            raise SiteError(
                "the prompts to steer and those to leave alone have the same mean: no condition tells them apart"
            )
        return best[1]

    def met(self, model: Model, prompts: Sequence[Prompt]) -> Bool[Tensor, " prompt"]:
        """Which prompts meet it, each decided by itself; raises SiteError where the model is under edits."""
        if under_edits(model):
            raise SiteError(
                f"{model.name} is under edits; a condition is read from the unsteered model, outside of them"
            )
        if len(self.direction) != model.d_model:
            raise SiteError(
                f"a condition of width {len(self.direction)}; the d_model of {model.name} is {model.d_model}"
            )
        read = one_row_each(capture(model, prompts, self.site, self.positions, progress=False))[0]
        return read.double() @ self.direction.double().cpu() > self.threshold


@dataclass(frozen=True, eq=False)
class Part:
    """Vectors, the positions they are added at, and when."""

    vectors: SteeringVectors
    positions: Positions = "answer"
    condition: Condition | None = None


@dataclass(frozen=True, eq=False)
class Steering:
    """Parts that act together; made by `steer` and `&`, taken by `generate(…, edits=…)` and `steered`."""

    parts: tuple[Part, ...]

    def __and__(self, other: Steering) -> Steering:
        return Steering((*self.parts, *other.parts))

    def edits(self, model: Model, prompts: Sequence[Prompt] | None = None) -> dict[Site, list[Edit]]:
        """The edits for a batch of these prompts, in their order; without prompts where there is no condition.

        Raises SiteError for vectors of another width, sites that the model lacks, and a condition without prompts.
        """
        found: dict[Site, list[Edit]] = {}
        for part in self.parts:
            part.vectors.check(model)
            vectors = part.vectors.vectors.float().to(model.device)
            if part.condition is not None:
                if prompts is None:
                    raise SiteError(
                        "steering under a condition is decided row by row: pass the prompts of the batch"
                    )
                met = part.condition.met(model, prompts).to(model.device)
                if not met.any():
                    continue
                vectors = vectors[:, None, :] * met[None, :, None]
            for site, vector in zip(part.vectors.sites, vectors, strict=True):
                found.setdefault(site, []).append(Add(vector, positions=part.positions))
        return found

    def save(self, directory: Path | str) -> None:
        """Write `steering.safetensors` and `steering.json`, which says in words how the vectors are to be added."""
        directory = Path(directory)
        tensors: dict[str, Tensor] = {}
        about: list[dict[str, Any]] = []
        for i, part in enumerate(self.parts):
            sites = [str(site) for site in part.vectors.sites]
            tensors |= {
                f"{i}.{site}": row.clone() for site, row in zip(sites, part.vectors.vectors, strict=True)
            }
            condition = part.condition
            if condition is not None:
                tensors[f"{i}.condition"] = condition.direction.clone()
            about.append(
                {
                    "sites": sites,
                    "positions": part.positions,
                    "source": part.vectors.source,
                    "condition": condition
                    and {
                        "site": str(condition.site),
                        "threshold": condition.threshold,
                        "positions": condition.positions,
                    },
                }
            )
        with atomic_write(directory) as aside:
            aside.mkdir()
            save_file(tensors, aside / TENSORS)
            save_json(aside / INDEX, {"format": FORMAT, "formula": FORMULA, "parts": about})

    @classmethod
    def load(cls, directory: Path | str) -> Steering:
        """Read what `save` wrote; raises ResultError for anything else."""
        directory = Path(directory)
        index = load_json(directory / INDEX)
        try:
            with safe_open(str(directory / TENSORS), framework="pt") as file:
                parts = [_part(file, i, about) for i, about in enumerate(index["parts"])]
        except Exception as error:
            raise ResultError(f"{directory} holds no steering ({error})") from error
        return cls(tuple(parts))

    def describe(self) -> list[dict[str, Any]]:
        """What acts where, for a manifest."""
        return [
            {
                "sites": [str(site) for site in part.vectors.sites],
                "norms": part.vectors.norms.tolist(),
                "positions": part.positions,
                "condition": part.condition and f"{part.condition.site} > {part.condition.threshold:.4g}",
            }
            for part in self.parts
        ]


def _part(file: Any, i: int, about: Mapping[str, Any]) -> Part:
    vectors = torch.stack([file.get_tensor(f"{i}.{site}") for site in about["sites"]])
    found = about["condition"]
    condition = found and Condition(
        file.get_tensor(f"{i}.condition"),
        Site.parse(found["site"]),
        float(found["threshold"]),
        found["positions"],
    )
    sites = tuple(map(Site.parse, about["sites"]))
    return Part(SteeringVectors(vectors, sites, about["source"]), about["positions"], condition)


def steer(
    vectors: SteeringVectors,
    strength: Strength = 1.0,
    positions: Positions = "answer",
    condition: Condition | None = None,
) -> Steering:
    """`h ← h + strength · v` at the positions; one strength, or one a site.

    positions: `answer` (the last prompt token and all generated ones), `last`, `prompt`, `generated`, `eoi`, `all`, or a negative index.
    """
    return Steering((Part(vectors * strength, positions, condition),))


@contextmanager
def steered(
    model: Model,
    steering: Steering,
    prompts: Sequence[Prompt] | None = None,
    *,
    prompt_width: int | None = None,
) -> Iterator[None]:
    """Steer every forward pass while the context lasts.

    Args:
        prompts: those of the batch, in its order; needed where there is a condition.
        prompt_width: padded length of the prompts in tokens; by default the width of each pass that starts a sequence.
    """
    with editing(model, steering.edits(model, prompts), prompt_width=prompt_width):
        yield
