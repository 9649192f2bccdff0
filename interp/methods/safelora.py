"""How much of a fine-tune's change lies along what alignment changed? SafeLoRA keeps that part where too little does.

For every matrix `W` (m × n, m outputs) of a linear layer inside the decoder blocks (Hsu et al. 2024, arXiv 2405.16833):

1. `V = W_aligned − W_base`, the change that alignment made, and `ΔW = W_tuned − W_aligned`, or `s·B·A` of live LoRA factors.
2. `P = V Vᵀ / ‖V‖_F` (`published`), or `P = U_k U_kᵀ` on the leading left singular vectors of V (`projector`).
3. Where `cos(PΔW, ΔW) < τ`, `ΔW ← PΔW`; for LoRA `B ← PB`, since `P(BA) = (PB)A`.

The published P divides by the norm and not by its square, and is no projector: PΔW grows with the size of V and is nearly nothing
where alignment moved the weights a little. The projector leaves alone what lies in its subspace. k is the least number of
singular vectors that hold a stated share of `‖V‖_F²`: with the whole of it and a V of rank m, as full fine-tuning makes every
matrix that is not taller than wide, P is the identity and nothing changes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from interp.errors import NonFiniteError, UserError
from interp.models.model import Model
from interp.models.towers import base_layer, find_tower
from interp.progress import progress as progress_bar

if TYPE_CHECKING:
    import pandas as pd

Form = Literal["published", "projector"]


@dataclass(frozen=True, eq=False)
class AlignmentMap:
    """`P = U diag(gains) Uᵀ`, in fp32: orthonormal left singular vectors of V and what P multiplies each by."""

    basis: Float[Tensor, "m rank"]
    gains: Float[Tensor, " rank"]

    @property
    def rank(self) -> int:
        """Number of directions that P does not send to zero."""
        return len(self.gains)

    def __call__(self, change: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
        """`P` times a matrix with the same outputs."""
        return self.basis @ (self.gains[:, None] * (self.basis.T @ change))


def alignment_map(change: Float[Tensor, "m n"], *, form: Form, energy: float = 0.9) -> AlignmentMap:
    """The P of one matrix from what alignment changed in it, `V`.

    Args:
        form: `published`, `V Vᵀ / ‖V‖_F`; or `projector` on V's leading left singular vectors.
        energy: share of `‖V‖_F²` that the projector's vectors hold, in (0, 1]; the published form uses all of V.

    Raises UserError for an energy outside (0, 1] and a V of zero.
    """
    if not 0 < energy <= 1:
        raise UserError(f"energy must lie in (0, 1], got {energy}")
    u, values, _ = torch.linalg.svd(change.float(), full_matrices=False)
    rank = int((values > values[:1] * min(change.shape) * torch.finfo(torch.float32).eps).sum())
    if rank == 0:
        raise UserError("alignment did not change this matrix: V = 0 has no directions")
    u, values = u[:, :rank], values[:rank]
    if form == "published":
        return AlignmentMap(u, values**2 / values.norm())
    held = (values.double() ** 2).cumsum(0)
    k = min(rank, int((held / held[-1] < energy - 1e-12).sum()) + 1)
    return AlignmentMap(u[:, :k], torch.ones_like(values[:k]))


@dataclass(frozen=True)
class BlockChange:
    """What SafeLoRA saw of one matrix and did to it.

    Args:
        name: of the linear layer in the module.
        cosine: of PΔW and ΔW; 0 where nothing of ΔW lies along V.
        replaced: whether ΔW became PΔW.
        norm_before, norm_after: Frobenius norms of ΔW, and of what stands in its place.
        rank: of P.
    """

    name: str
    cosine: float
    replaced: bool
    norm_before: float
    norm_after: float
    rank: int


@dataclass(frozen=True, eq=False)
class SafeLora:
    """The repaired model, with what was done and how.

    Args:
        blocks: one entry for every matrix that alignment and fine-tuning both changed.
        unaligned: matrices that fine-tuning changed and alignment did not (V = 0): nothing is known of them, they stay.
        untrained: matrices that fine-tuning did not change.
    """

    model: Model
    form: Form
    threshold: float
    energy: float
    blocks: tuple[BlockChange, ...]
    unaligned: tuple[str, ...]
    untrained: tuple[str, ...]

    def to_frame(self) -> pd.DataFrame:
        """One row for every entry of `blocks`."""
        import pandas as pd

        return pd.DataFrame([asdict(block) for block in self.blocks])

    def __str__(self) -> str:
        replaced = sum(block.replaced for block in self.blocks)
        return (
            f"SafeLoRA ({self.form}, τ = {self.threshold}): {replaced} of {len(self.blocks)} matrices replaced; "
            f"{len(self.unaligned)} left out as alignment did not change them, {len(self.untrained)} not trained"
        )


@torch.no_grad()
def safelora(
    base: Model,
    aligned: Model,
    tuned: Model,
    *,
    form: Form,
    threshold: float,
    energy: float = 0.9,
    progress: bool = True,
) -> SafeLora:
    """A copy of the tuned model that keeps of its changes what lies along alignment's, where the cosine is too small.

    Args:
        base: the model before alignment.
        aligned: the model that was fine-tuned, with plain weights.
        tuned: its fine-tune, with full weights or with live LoRA factors on the aligned weights; the copy is of the same kind.
        form: of P, see `alignment_map`.
        threshold: τ in [−1, 1]. The cosine is never negative: −1 replaces nothing, 1 all that would change direction.
        energy: share of `‖V‖_F²` that the projector holds.

    None of the three is changed. Embeddings, head, norms and biases stay the tuned model's. Raises UserError, naming the block,
    when the models differ in architecture or shape, or the adapter sits on other weights or is no plain LoRA; for a quantised
    model, an adapter on base or aligned, and a threshold or energy out of range; NonFiniteError for NaN or infinity in a weight.
    """
    if not -1 <= threshold <= 1:
        raise UserError(f"the threshold is a cosine in [-1, 1], got {threshold}")
    if not 0 < energy <= 1:
        raise UserError(f"energy must lie in (0, 1], got {energy}")
    for model in (base, aligned, tuned):
        if getattr(model.module, "is_quantized", False):
            raise UserError(f"{model.name} is quantised and has no weights to compare; load it in bfloat16")
        if model is not tuned and model.peft is not None:
            raise UserError(f"{model.name} carries a live adapter; merge it first")
    triples = list(_matching(base, aligned, tuned))
    repaired = _copy(tuned)
    blocks, unaligned, untrained = [], [], []
    with progress_bar("SafeLoRA", total=len(triples), enabled=progress) as advance:
        for name, before, after, layer in triples:
            start = _matrix(after)
            moved, change = start - _matrix(before).to(start.device), _change(name, layer, start)
            if not (torch.isfinite(moved).all() and torch.isfinite(change).all()):
                raise NonFiniteError(
                    f"{name} holds NaN or infinity in {base.name}, {aligned.name} or {tuned.name}"
                )
            if not change.any():
                untrained.append(name)
            elif not moved.any():
                unaligned.append(name)
            else:
                p = alignment_map(moved, form=form, energy=energy)
                block = _measure(name, p, change, threshold)
                if block.replaced:
                    _replace(repaired.module.get_submodule(name), start, change, p)
                blocks.append(block)
            advance(1)
    return SafeLora(repaired, form, threshold, energy, tuple(blocks), tuple(unaligned), tuple(untrained))


def _copy(model: Model) -> Model:
    """A model of its own weights, live factors kept; what it was loaded from does not name it any more."""
    peft = copy.deepcopy(model.peft)
    module = copy.deepcopy(model.module) if peft is None else peft.get_base_model()
    return replace(
        model,
        module=module,
        peft=peft,
        tower=find_tower(module),
        checkpoint=None,
        name=f"{model.name}, SafeLoRA",
    )


def _matching(
    base: Model, aligned: Model, tuned: Model
) -> Iterator[tuple[str, nn.Module, nn.Module, nn.Module]]:
    """Name and layer, in all three, of every linear map inside the aligned model's decoder blocks."""
    for other in (base, tuned):
        for what in ("model_type", "num_hidden_layers"):
            found, expected = (getattr(m.module.config, what) for m in (other, aligned))
            if found != expected:
                raise UserError(
                    f"{other.name} has {what} {found} and {aligned.name} {expected}: not of one architecture"
                )
    for index, block in enumerate(aligned.tower.blocks):
        for inner, layer in block.named_modules():
            if not isinstance(layer, nn.Linear | Conv1D):
                continue
            name = f"{aligned.tower.paths.layers}.{index}.{inner}"
            others = [model.tower.blocks[index].get_submodule(inner) for model in (base, tuned)]
            for model, twin in zip((base, tuned), others, strict=True):
                found, expected = tuple(_matrix(twin).shape), tuple(_matrix(layer).shape)
                if found != expected:
                    raise UserError(f"{name} is {found} in {model.name} and {expected} in {aligned.name}")
            yield name, others[0], layer, others[1]


def _matrix(layer: nn.Module) -> Float[Tensor, "m n"]:
    """The weight with its outputs as rows, in fp32."""
    return _outputs_first(base_layer(layer)).float()


def _outputs_first(layer: nn.Module) -> Float[Tensor, "m n"]:
    """The weight itself with its outputs as rows: a view, which can be written to."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight.T if isinstance(layer, Conv1D) else weight


def _change(name: str, layer: nn.Module, start: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """ΔW of one layer of the tuned model; `start` is the aligned weight."""
    own = _matrix(layer).to(start.device)
    if base_layer(layer) is layer:
        return own - start
    if not isinstance(layer, LoraLayer) or any(a in layer.lora_variant for a in layer.active_adapters):
        raise UserError(f"the adapter on {name} is no plain LoRA; merge it and give the full weights")
    if not torch.equal(own, start):
        raise UserError(
            f"the adapter on {name} sits on other weights than the aligned model's; give as aligned the very model that was "
            "tuned, in the same dtype"
        )
    change = torch.zeros_like(start)
    for a in _adapters(layer):
        factors = _matrix(layer.lora_B[a]) @ _matrix(layer.lora_A[a])
        change += layer.scaling[a] * factors.to(start.device)
    return change


def _adapters(layer: LoraLayer) -> list[str]:
    return [a for a in layer.active_adapters if a in layer.lora_B]


def _measure(name: str, p: AlignmentMap, change: Float[Tensor, "m n"], threshold: float) -> BlockChange:
    kept = p(change).double()
    before, after = float(change.double().norm()), float(kept.norm())
    cosine = float((kept * change.double()).sum()) / (before * after) if after else 0.0
    replaced = cosine < threshold
    return BlockChange(name, cosine, replaced, before, after if replaced else before, p.rank)


def _replace(
    layer: nn.Module, start: Float[Tensor, "m n"], change: Float[Tensor, "m n"], p: AlignmentMap
) -> None:
    """Put PΔW in the place of ΔW: in LoRA's B, or in the weight itself."""
    if not isinstance(layer, LoraLayer):
        _outputs_first(layer).copy_(start + p(change))
        return
    for a in _adapters(layer):
        factor = layer.lora_B[a]
        _outputs_first(factor).copy_(p(_matrix(factor).to(start.device)))
