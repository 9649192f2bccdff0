"""Steering vectors as values: one vector a site, which add, subtract, scale, compare, are saved and loaded.

How they act while a model answers is in `steering.py`. Sums and scales are kept in fp64; nothing here touches a model but `check`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from interp.errors import ResultError, SiteError
from interp.files import atomic_write
from interp.geometry.directions import cosine, mean_difference, random_like, unit
from interp.methods.measures import check_same, one_row_each
from interp.models.activations import Activations
from interp.models.model import Model
from interp.models.sites import DECODER, Site

if TYPE_CHECKING:
    import pandas as pd

Strength = float | int | Sequence[float | int] | Tensor  # one, or one a site


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

    def __truediv__(self, divisor: float) -> SteeringVectors:
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
        metadata = {"sites": " ".join(tensors), "source": self.source}
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
