"""How can fine-tuning be kept from undoing safety? Surgery on the gradient, for anybody's training loop.

Each optimiser step, after gradients are accumulated and synchronised and before they are clipped: with `g_u` the gradient of the
task in `.grad` and `g_s` that of the loss on a refusal at the current weights,

1. SPF (2026, arXiv 2601.10141): when the two oppose each other, take from every block of `g_u`, as a matrix `(m, rest)`, what lies
   in the span of the leading k left singular vectors of that block of `g_s`: `G_u ← G_u − U_k U_kᵀ G_u`.
2. PCGrad (Yu et al. 2020, arXiv 2001.06782): take away the component along `g_s` itself, over all blocks or block by block.

The gate is one for all blocks (`global`, the source's), one a block, or always open. With the gate closed, or k = 0, the gradients
are left as they are, bit for bit. Projecting the gradient does not make the *update* of an optimiser with momentum or
preconditioner orthogonal: `update_watch` measures `⟨Δθ, g_s⟩`, and with `project=True` projects the update itself.

It sees parameters and gradients, never a `Model`. Under a loss scaler, unscale first, and skip surgery when a step overflows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.errors import NonFiniteError, UserError

Gate = Literal["global", "block", "always"]
OVERSAMPLING, POWER_ITERATIONS = 8, 2


@dataclass(frozen=True)
class SurgeryStep:
    """What one step of surgery saw and did.

    Args:
        cosine: of `g_s` and `g_u` over all blocks, before.
        open: share of the blocks whose gate was open.
        removed: `‖g_u − g_u'‖ / ‖g_u‖`, the share of the gradient's norm that was taken away.
        refreshed: whether `g_s` was computed anew.
    """

    cosine: float
    open: float
    removed: float
    refreshed: bool


def left_singular_vectors(
    matrix: Float[Tensor, "m n"], k: int, generator: torch.Generator
) -> Float[Tensor, "m rank"]:
    """Orthonormal leading left singular vectors, at most k and at most the rank, by a randomised SVD in fp32.

    The generator draws the sketch (Halko, Martinsson & Tropp 2011, arXiv 0909.4061); where k reaches the smaller side
    the SVD is exact.
    """
    wide = matrix.float()
    if k >= min(wide.shape):
        u, values, _ = torch.linalg.svd(wide, full_matrices=False)
    else:
        size = (wide.shape[1], min(k + OVERSAMPLING, *wide.shape))
        sketch = torch.randn(size, generator=generator, device=generator.device).to(wide.device)
        q = torch.linalg.qr(wide @ sketch).Q
        for _ in range(POWER_ITERATIONS):
            q = torch.linalg.qr(wide @ torch.linalg.qr(wide.T @ q).Q).Q
        small, values, _ = torch.linalg.svd(q.T @ wide, full_matrices=False)
        u = q @ small
    rank = int((values > values[:1] * min(wide.shape) * torch.finfo(torch.float32).eps).sum())
    return u[:, : min(k, rank)]


def without(matrix: Float[Tensor, "m n"], basis: Float[Tensor, "m k"]) -> Float[Tensor, "m n"]:
    """`(I − U Uᵀ) M`, taken twice so that rounding leaves nothing along U."""
    for _ in range(2):
        matrix = matrix - basis @ (basis.T @ matrix)
    return matrix


class GradientSurgery:
    """Takes from the gradients in `.grad` what would undo safety; call it between `backward` and clipping.

        surgery = GradientSurgery(model.named_parameters(), lambda: refusal_loss(model), k=20)
        loss.backward()
        surgery()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    Args:
        parameters: named blocks; those that need no gradient are left out.
        safety_loss: the loss on a refusal (or several) at the current weights, with dropout off; called at every refresh.
        method: `spf` or `pcgrad`.
        k: leading singular vectors of each block of `g_s` that SPF protects (20 in the source).
        gate: which inner product opens the projection: `global`, `block` by block, or `always` open.
        refresh: steps between computations of `g_s`.
        seed: of the randomised SVD; no global generator is touched.

    Raises UserError for no blocks, for a k that would take everything from a block (k ≥ its rows, as in LoRA's A), and for a
    safety gradient of zero; NonFiniteError naming the block for NaN or infinity.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        safety_loss: Callable[[], Tensor],
        *,
        method: Literal["spf", "pcgrad"] = "spf",
        k: int = 20,
        gate: Gate = "global",
        refresh: int = 1,
        seed: int = 0,
    ) -> None:
        self.blocks = {name: p for name, p in parameters if p.requires_grad}
        if not self.blocks:
            raise UserError("no parameter needs a gradient; give the blocks that are trained")
        if k < 0 or refresh < 1:
            raise UserError(f"k must be at least 0 and refresh at least 1, got {k} and {refresh}")
        for name, block in self.blocks.items():
            if method == "spf" and block.dim() > 1 and 0 < block.shape[0] <= k:
                raise UserError(
                    f"k = {k} leaves nothing of {name}, which has {block.shape[0]} rows; take k < {block.shape[0]}"
                )
        self.safety_loss, self.method, self.k, self.gate, self.refresh = safety_loss, method, k, gate, refresh
        self.steps = 0
        self.safety: dict[str, Tensor] = {}
        self._bases: dict[str, Tensor] = {}
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self) -> SurgeryStep:
        """Change the gradients in place and say what was done."""
        refreshed = self.steps % self.refresh == 0
        if refreshed:
            self.renew()
        self.steps += 1
        gradients = {name: p.grad for name, p in self.blocks.items() if p.grad is not None}
        if not gradients:
            raise UserError("no block has a gradient; call surgery after backward and before zero_grad")
        dots = {name: _dot(g, self.safety[name]) for name, g in gradients.items()}
        total = sum(dots.values())
        norm = sum(_dot(g, g) for g in gradients.values()) ** 0.5
        # blocks without a gradient, such as experts that no token reached, take no part in this step
        if not torch.isfinite(torch.tensor([total, norm])).all():
            bad = next(name for name, g in gradients.items() if not torch.isfinite(g).all())
            raise NonFiniteError(
                f"the gradient of {bad} is not finite; lower the learning rate or check the data"
            )
        safety_norm = sum(_dot(self.safety[name], self.safety[name]) for name in gradients) ** 0.5
        cosine = total / (norm * safety_norm) if norm and safety_norm else 0.0
        opened, removed = 0, 0.0
        for name, gradient in gradients.items():
            score = {"global": total, "block": dots[name], "always": -1.0}[self.gate]
            if score >= 0 or (self.method == "spf" and self.k == 0):
                continue
            opened += 1
            kept = self._operate(name, gradient, total, safety_norm)
            removed += _dot(gradient - kept, gradient - kept)
            gradient.copy_(kept)
        return SurgeryStep(cosine, opened / len(gradients), removed**0.5 / norm if norm else 0.0, refreshed)

    def renew(self) -> None:
        """Compute `g_s` at the current weights, averaged over the processes of a distributed run; `.grad` is left alone."""
        with torch.enable_grad():
            found = torch.autograd.grad(self.safety_loss(), list(self.blocks.values()), allow_unused=True)
        self.safety = {
            name: torch.zeros_like(p) if g is None else g.detach()
            for (name, p), g in zip(self.blocks.items(), found, strict=True)
        }
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for gradient in self.safety.values():
                torch.distributed.all_reduce(gradient)
                gradient /= torch.distributed.get_world_size()
        for name, gradient in self.safety.items():
            if not torch.isfinite(gradient).all():
                raise NonFiniteError(
                    f"the safety gradient of {name} is not finite; check the refusal examples"
                )
        if not any(gradient.any() for gradient in self.safety.values()):
            raise UserError(
                "the safety loss has no gradient in the trained blocks; give refusals that they bear on"
            )
        if self.method == "spf" and self.k:
            self._bases = {
                name: left_singular_vectors(_matrix(g), self.k, self._generator)
                for name, g in self.safety.items()
                if g.any()
            }

    def _operate(self, name: str, gradient: Tensor, total: float, safety_norm: float) -> Tensor:
        if self.method == "spf":
            return self.project(name, gradient)
        safety = self.safety[name]
        dot, square = (
            (total, safety_norm**2)
            if self.gate == "global"
            else (_dot(gradient, safety), _dot(safety, safety))
        )
        return gradient - (dot / square if square else 0.0) * safety

    def project(self, name: str, change: Tensor) -> Tensor:
        """A gradient or an update of one block without what lies in the protected subspace."""
        if name not in self._bases:
            return change
        return without(_matrix(change).float(), self._bases[name]).view_as(change).to(change.dtype)


@contextmanager
def update_watch(
    surgery: GradientSurgery, optimizer: torch.optim.Optimizer, *, project: bool = False
) -> Iterator[list[float]]:
    """Yield a list that gets `⟨Δθ, g_s⟩` after every step of the optimiser: the first-order change of the safety loss.

    Args:
        project: take the protected subspace out of the update itself, after the preconditioner, when it would raise
            the safety loss; the list then holds what was left.

    Keeps one copy of the trained blocks. The hooks are gone when the context ends, also after an exception. Raises UserError
    for a projection without a subspace: k = 0, or PCGrad.
    """
    if project and (surgery.method != "spf" or surgery.k == 0):
        raise UserError("to project updates takes method spf with k > 0; there is no subspace to project out")
    before: dict[str, Tensor] = {}
    drift: list[float] = []

    def remember(*_: object) -> None:
        before.update({name: p.detach().clone() for name, p in surgery.blocks.items()})

    def measure(*_: object) -> None:
        updates = {name: p.detach() - before[name] for name, p in surgery.blocks.items()}
        drifts = {name: _dot(update, surgery.safety[name]) for name, update in updates.items()}
        total = sum(drifts.values())
        for name, parameter in surgery.blocks.items():
            harm = {"global": total, "block": drifts[name], "always": 1.0}[surgery.gate]
            if project and harm > 0:
                updates[name] = surgery.project(name, updates[name])
                drifts[name] = _dot(updates[name], surgery.safety[name])
                with torch.no_grad():
                    parameter.copy_(before[name] + updates[name])
        drift.append(sum(drifts.values()))

    handles = [optimizer.register_step_pre_hook(remember), optimizer.register_step_post_hook(measure)]
    try:
        yield drift
    finally:
        for handle in handles:
            handle.remove()


def _matrix(block: Tensor) -> Float[Tensor, "m rest"]:
    return block.reshape(block.shape[0], -1) if block.dim() > 0 else block.reshape(1, 1)


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a.double() * b.double()).sum())
