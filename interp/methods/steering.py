"""How is a model pushed while it answers? Steering vectors as values, and how they act.

1. `SteeringVectors`: one vector a site. They add, subtract, scale (by one factor a site too), compare, are saved and loaded.
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from interp.data.prompts import Prompt
from interp.errors import ResultError, SiteError
from interp.files import atomic_write, load_json, save_json
from interp.geometry.directions import cosine, mean_difference, random_like, unit
from interp.methods.measures import check_same, one_row_each
from interp.models.activations import Activations, capture
from interp.models.hooks import Add, Edit, Positions, editing, under_edits
from interp.models.model import Model
from interp.models.positions import Rule
from interp.models.sites import DECODER, Site

if TYPE_CHECKING:
    import pandas as pd

Strength = float | int | Sequence[float | int] | Tensor  # one, or one a site
FORMAT = "interp steering 1"
FORMULA = (
    "h <- h + vector at the named positions of each site. resid_post.l is the output of decoder block l, resid_pre.l its input, "
    "attn_out.l and mlp_out.l what it adds; layers count from 0. answer = last prompt token and all generated tokens. A part with "
    "a condition acts only on prompts whose unsteered activation h at the condition's site and position has h . direction > threshold."
)
TENSORS, INDEX = "steering.safetensors", "steering.json"


@dataclass(frozen=True, eq=False)
class SteeringVectors:
    """One vector a site, with its sign and scale.

    source: what they were fitted on, in words.
    Raises SiteError for vectors that do not match their sites or are not finite.
    """

    vectors: Float[Tensor, "site d_model"]
    sites: tuple[Site, ...]
    source: str = ""

    def __post_init__(self) -> None:
        if len(self.vectors) != len(self.sites) or len(set(self.sites)) != len(self.sites):
            raise SiteError(
                f"{len(self.vectors)} steering vectors for {len(set(self.sites))} different sites; give one a site"
            )
        if other := [site for site in self.sites if site.tower != DECODER]:
            raise SiteError(f"a steering vector at {other[0]}: steering acts on the decoder")
        for site, vector in zip(self.sites, self.vectors, strict=True):
            if not torch.isfinite(vector).all():
                raise SiteError(
                    f"the steering vector at {site} holds NaN or infinity; fit it on finite activations"
                )

    @classmethod
    def difference(cls, positive: Activations, negative: Activations, source: str = "") -> SteeringVectors:
        """`mean(positive) − mean(negative)` at every site, in fp64; both hold one row a prompt.

        Raises SiteError for captures at other sites or with several rows a prompt.
        """
        check_same(positive, negative, prompts=False)
        rows = one_row_each(positive), one_row_each(negative)
        return cls(mean_difference(*rows), positive.sites, source or f"{positive.model}: mean difference")

    @property
    def norms(self) -> Float[Tensor, " site"]:
        """Euclidean length of each vector."""
        return self.vectors.double().norm(dim=-1)

    def __add__(self, other: SteeringVectors) -> SteeringVectors:
        self._check_same(other)
        total = self.vectors.double() + other.vectors.double()
        return SteeringVectors(total, self.sites, f"({self.source}) + ({other.source})")

    def __neg__(self) -> SteeringVectors:
        return replace(self, vectors=-self.vectors, source=f"−({self.source})")

    def __sub__(self, other: SteeringVectors) -> SteeringVectors:
        return self + -other

    def __mul__(self, factor: Strength) -> SteeringVectors:
        """Scaled by one factor, or by one factor a site: strength per layer."""
        factors = torch.as_tensor(factor, dtype=torch.float64)
        if factors.ndim and factors.shape != (len(self.sites),):
            raise SiteError(f"{len(factors)} strengths for {len(self.sites)} sites; give one, or one a site")
        return replace(self, vectors=self.vectors.double() * (factors[:, None] if factors.ndim else factors))

    __rmul__ = __mul__

    def __truediv__(self, divisor: float | int) -> SteeringVectors:
        return self * (1 / divisor)

    def at(self, *sites: int | str | Site) -> SteeringVectors:
        """The vectors of some sites only, or of some layers; raises SiteError for one that there is not."""
        wanted = [s for site in sites for s in self._named(site)]
        places = [self.sites.index(site) for site in wanted]
        return SteeringVectors(self.vectors[places], tuple(wanted), self.source)

    def _named(self, site: int | str | Site) -> list[Site]:
        found = (
            [own for own in self.sites if own.layer == site]
            if isinstance(site, int)
            else [own for own in self.sites if own == Site.parse(site)]
        )
        if not found:
            shown = f"layer {site}" if isinstance(site, int) else str(site)
            raise SiteError(
                f"there is no steering vector at {shown}; there are {', '.join(map(str, self.sites))}"
            )
        return found

    def cosine(self, other: SteeringVectors) -> Float[Tensor, " site"]:
        """Cosine with the other vectors at each site; zero where a vector is zero. Raises SiteError for other sites or widths."""
        self._check_same(other)
        return cosine(self.vectors, other.vectors)

    def random(self, seed: int) -> SteeringVectors:
        """A random vector of equal norm at each site: the control for every effect of these."""
        drawn = [random_like(vector, seed * 1009 + i) for i, vector in enumerate(self.vectors)]
        return SteeringVectors(
            torch.stack(drawn), self.sites, f"random of equal norm, seed {seed}, of {self.source}"
        )

    def in_units_of(self, activations: Activations) -> SteeringVectors:
        """The directions, each as long as activations are on average at its site: strength then means a share of that.

        Raises SiteError when a site was not captured.
        """
        lengths = torch.stack([activations[site].double().norm(dim=-1).mean() for site in self.sites])
        return replace(self, vectors=unit(self.vectors) * lengths[:, None])

    def _check_same(self, other: SteeringVectors) -> None:
        if self.vectors.shape[1] != other.vectors.shape[1]:
            raise SiteError(
                f"steering vectors of width {self.vectors.shape[1]} and {other.vectors.shape[1]} are of different models"
            )
        if self.sites != other.sites:
            odd = sorted(set(self.sites) ^ set(other.sites))
            what = f"{odd[0]} is in one of them only" if odd else "their order differs"
            raise SiteError(f"steering vectors of different sites: {what}; choose common ones with .at()")

    def check(self, model: Model) -> None:
        """Raise SiteError unless the model has these sites and this width."""
        width = self.vectors.shape[1]
        if width != model.d_model:
            raise SiteError(
                f"steering vectors of width {width}; the d_model of {model.name} is {model.d_model}"
            )
        if beyond := [site for site in self.sites if site.layer >= model.n_layers]:
            raise SiteError(
                f"a steering vector at {beyond[0]}: {model.name} has layers 0 to {model.n_layers - 1}"
            )

    def to_frame(self, **others: SteeringVectors) -> pd.DataFrame:
        """One row a site: its norm, and the cosine with each of the others by name."""
        import pandas as pd

        rows = pd.DataFrame(
            {
                "site": [str(site) for site in self.sites],
                "layer": [site.layer for site in self.sites],
                "stream": [site.stream for site in self.sites],
                "norm": self.norms.tolist(),
            }
        )
        return rows.assign(**{name: self.cosine(other).tolist() for name, other in others.items()})

    def save(self, path: Path | str) -> None:
        """Write vectors, sites and source to one safetensors file, whole or not at all."""
        tensors = {str(site): row.clone() for site, row in zip(self.sites, self.vectors, strict=True)}
        metadata = {"format": FORMAT, "sites": " ".join(tensors), "source": self.source}
        with atomic_write(path) as aside:
            save_file(tensors, aside, metadata=metadata)

    @classmethod
    def load(cls, path: Path | str) -> SteeringVectors:
        """Read what `save` wrote; raises ResultError for anything else."""
        try:
            with safe_open(str(path), framework="pt") as file:
                about: dict[str, str] = file.metadata() or {}
                names = about["sites"].split()
                vectors = torch.stack([file.get_tensor(name) for name in names])
                return cls(vectors, tuple(map(Site.parse, names)), about["source"])
        except Exception as error:
            raise ResultError(f"{path} holds no steering vectors ({error})") from error


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
