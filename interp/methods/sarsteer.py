"""SARSteer (2025, arXiv 2510.17633): refusal steering without what benign prompts vary in. METHODS §D.

x is a harmful prompt: its media and a neutral instruction, or, in writing, the request; x′ the same with a sentence of refusal behind
the text, the media untouched. At every decoder layer, resid_post, last prompt token:

1. `d_l = mean_i [h_l(x′_i) − h_l(x_i)]`, not normalised: what the words of a refusal change.
2. `U_k`: the leading k principal directions of `h_l` over benign prompts (centred).
3. `v_l = d_l − λ U_kᵀ U_k d_l`, added at the last prompt token and at every generated one: `h_l += α v_l`.

Options beside the source's: `centred` removes the component of `d_l − mean h_l` instead, as PCA's own transform would (choice: METHODS
says "d_l centred" and no more), `remove_mean` takes the benign mean's direction into the safe space; one layer by `vectors(…).at(l)`.
Everything is read from the unsteered model, once; k, λ and the options are then free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from interp.data.prompts import Prompt
from interp.errors import SiteError, UserError
from interp.geometry.subspaces import Subspace, pca
from interp.methods.steering import SteeringVectors
from interp.models.activations import capture
from interp.models.hooks import under_edits
from interp.models.model import Model
from interp.models.sites import Site

if TYPE_CHECKING:
    import pandas as pd

REFUSAL = "I cannot assist with that."
RANK, REMOVAL, STRENGTH = 10, 1.0, 0.1  # the source's k, λ and α


@dataclass(frozen=True, eq=False)
class SARSteer:
    """What was read: the refusal vectors `d_l`, and the safe space of each site with all its components.

    n_harmful, n_benign: prompts behind them.
    """

    refusal: SteeringVectors
    safe: tuple[Subspace, ...]
    n_harmful: int
    n_benign: int

    def vectors(
        self, rank: int = RANK, removal: float = REMOVAL, *, centred: bool = False, remove_mean: bool = False
    ) -> SteeringVectors:
        """`v_l = d_l − λ U_kᵀ U_k d_l` at every site; steer with `steer(…, strength=0.1)`.

        Args:
            rank: k. removal: λ; 0 is plain steering with `d_l`, and 1 leaves no component in the safe space.
            centred: remove the component of `d_l` minus the benign mean. remove_mean: the mean's direction counts as safe too.

        Raises UserError for a rank that the benign prompts do not span.
        """
        d = self.refusal.vectors.double()
        left = []
        for i, space in enumerate(self.safe):
            basis = self.basis(i, rank, remove_mean=remove_mean)
            removed = d[i] - space.mean if centred else d[i]
            left.append(d[i] - removal * basis.T @ (basis @ removed))
        options = f", centred {centred}, mean removed {remove_mean}" if centred or remove_mean else ""
        source = f"SARSteer of {self.refusal.source}: k = {rank}, λ = {removal:g}{options}"
        return SteeringVectors(torch.stack(left), self.refusal.sites, source)

    def basis(self, site: int, rank: int, *, remove_mean: bool = False) -> Float[Tensor, "rank d_model"]:
        """Orthonormal rows of the safe space of the site with this index, in fp64; raises as `vectors` does."""
        space = self.safe[site]
        if not 1 <= rank < self.n_benign:
            raise UserError(
                f"k = {rank} directions cannot be had from {self.n_benign} benign prompts; take k from 1 to "
                f"{self.n_benign - 1}, or more prompts"
            )
        floor = 1e-6 * float(space.singular_values[0])
        spanned = int((space.singular_values[: len(space.basis)] > max(floor, 1e-12)).sum())
        if rank > spanned:
            raise UserError(
                f"k = {rank}, but benign activations at {self.refusal.sites[site]} vary in {spanned} directions only; take a smaller k, "
                "or leave the site out"
            )
        chosen = space.basis[:rank]
        if not remove_mean:
            return chosen
        return torch.linalg.qr(torch.cat([chosen, space.mean[None]]).T)[0].T

    def to_frame(self, rank: int = RANK) -> pd.DataFrame:
        """One row a site: length of `d_l`, its angle in degrees to the safe space, the share of its energy inside and the share
        that a random vector would have (k / d_model), and the benign variance that the space explains."""
        import pandas as pd

        rows = []
        for i, (site, space) in enumerate(zip(self.refusal.sites, self.safe, strict=True)):
            d = self.refusal.vectors[i].double()
            basis = self.basis(i, rank)
            inside = float((basis @ d).norm() / d.norm()) if d.norm() > 0 else float("nan")
            rows.append(
                {
                    "site": str(site),
                    "layer": site.layer,
                    "norm": float(d.norm()),
                    "angle": float(torch.tensor(inside).clamp(max=1.0).acos().rad2deg()),
                    "inside": inside**2,
                    "chance": rank / len(d),
                    "explained": float(space.explained[:rank].sum()),
                }
            )
        return pd.DataFrame(rows)


def fit_sarsteer(
    model: Model,
    harmful: Sequence[Prompt],
    benign: Sequence[Prompt],
    *,
    refusal: str = REFUSAL,
    instruction: str | None = None,
    sites: str | Site | Sequence[str | Site] = "resid_post",
    batch_size: int = 64,
    progress: bool = True,
) -> SARSteer:
    """Read `d_l` on harmful prompts and the safe space on benign ones.

    Args:
        harmful, benign: of any modality the model has; the source takes 100 of each.
        refusal: the sentence put behind the text of each harmful prompt.
        instruction: replaces the text of prompts with images or audio, so that what is asked is in the media alone.
        sites: of the decoder; all layers of resid_post in the source.

    Raises UserError for an empty set, fewer than two benign prompts or an instruction for prompts without media; SiteError where the
    model is under edits, whose activations would be steered ones.
    """
    if under_edits(model):
        raise SiteError(
            f"{model.name} is under edits; fit outside of them, on activations that nothing steers"
        )
    for name, prompts in (("harmful", harmful), ("benign (safe)", benign)):
        if not len(prompts):
            raise UserError(f"the {name} set is empty; SARSteer needs harmful and benign prompts")
    if len(benign) < 2:
        raise UserError("one benign prompt spans no safe space; give k + 1 or more")
    asked, safe = ([_instructed(prompt, instruction) for prompt in prompts] for prompts in (harmful, benign))
    refused = [with_refusal(prompt, refusal) for prompt in asked]
    read = [
        capture(model, prompts, sites, "last", batch_size=batch_size, progress=progress)
        for prompts in (refused, asked, safe)
    ]
    vectors = SteeringVectors.difference(
        read[0], read[1], f"{model.name}: {refusal!r} on {len(asked)} prompts"
    )
    largest = min(len(safe) - 1, model.d_model)
    spaces = tuple(pca(rows.double(), largest) for rows in read[2].values)
    return SARSteer(vectors, spaces, len(asked), len(safe))


def with_refusal(prompt: Prompt, refusal: str = REFUSAL) -> Prompt:
    """x′: the prompt with the sentence behind its text; raises UserError for a blank sentence."""
    if not refusal.strip():
        raise UserError("the sentence of refusal is blank: it would change nothing")
    return replace(prompt, text=f"{prompt.text} {refusal}".strip())


def _instructed(prompt: Prompt, instruction: str | None) -> Prompt:
    if instruction is None:
        return prompt
    if not prompt.images and prompt.audio is None:
        raise UserError(
            f"prompt {prompt.id!r} has neither images nor audio: the instruction would replace its request; leave it away"
        )
    return replace(prompt, text=instruction)
