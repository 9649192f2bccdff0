"""How can fine-tuning be kept from undoing safety? Surgery on the gradient, for anybody's training loop.

Each optimiser step, after gradients are accumulated and synchronised and before they are clipped: with `g_u` the gradient of the
task in `.grad` and `g_s` that of the loss on a refusal at the current weights,

1. `spf` (2026, arXiv 2601.10141): when the two oppose each other, take from every block of `g_u`, as a matrix `(m, rest)`, what
   lies in the span of the leading k left singular vectors of that block of `g_s`: `G_u ← G_u − U_k U_kᵀ G_u`.
2. `pcgrad` (Yu et al. 2020, arXiv 2001.06782): take away the component along `g_s` itself, over all blocks or block by block.
3. `spf-update`: leave the gradient and project the optimiser's *update*, after momentum and preconditioner, when it would raise
   the safety loss. Projecting the gradient before Adam does not make its update orthogonal.
4. `spf-random`: what `spf` does, with random subspaces of the same dimensions: its null.
5. `mixing`: `g ← (1 − w) g_u + w g_s`, the gradient of a batch with refusals mixed in at weight w; it has no gate.

The gate is one for all blocks (`global`, the source's), one a block, or always open. With the gate closed, or k = 0, the gradients
are left as they are, bit for bit. `update_watch` measures what each step did to the safety loss, `⟨Δθ, g_s⟩`.

It sees parameters and gradients, never a `Model`. Everything random is a function of the seed and the step, so a resumed run goes
on as if it had not stopped. A loss scaler's factor changes no projection: call it on scaled gradients, and skip it
when the scaler will skip the step. `surgery_trainer.py` does all that for `transformers.Trainer`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.errors import NonFiniteError, UserError

METHODS = ("spf", "pcgrad", "spf-update", "spf-random", "mixing")
PROJECTING = ("spf", "spf-random")
GATES = ("global", "block", "always")
OVERSAMPLING = 8
HELD = 0.999  # share of the norm in the sketch from which no power iteration is worth its time
STACKED = 1 << 16  # entries of a block up to which stacking saves more than it copies


@dataclass(frozen=True)
class SurgeryStep:
    """What one step of surgery saw and did.

    Args:
        step: number of the optimiser's step, from 0.
        safety_loss: the loss on the refusals that `g_s` was last computed on.
        cosine: of `g_s` and `g_u` over all blocks, before.
        open: share of the blocks whose gate was open.
        removed: `‖g_u − g_u'‖ / ‖g_u‖`, the share of the gradient's norm that was changed.
        refreshed: whether `g_s` was computed anew.
        safety_norm: `‖g_s‖`.
        tail: `(Σ_blocks Σ_{i>k} σ_i²)^½`, the norm of what k singular vectors leave of `g_s`; no update that is
            orthogonal to the protected subspaces moves the safety loss by more than `‖Δθ‖ · tail` to first order.
            Resolved to about 1e-3 of `‖g_s‖`.
    """

    step: int
    safety_loss: float
    cosine: float
    open: float
    removed: float
    refreshed: bool
    safety_norm: float
    tail: float


@dataclass(frozen=True)
class UpdateStep:
    """What a step of the optimiser did.

    Args:
        step: its number, from 0.
        drift: `⟨Δθ, g_s⟩`, the first-order change of the safety loss.
        update_norm: `‖Δθ‖`.
        update_removed: share of the update's norm that `spf-update` took away.
    """

    step: int
    drift: float
    update_norm: float
    update_removed: float


def randomised_svd(
    matrices: Float[Tensor, "*block m n"], k: int, generator: torch.Generator
) -> tuple[Float[Tensor, "*block m k"], Float[Tensor, "*block k"]]:
    """Leading left singular vectors, orthonormal, and singular values, in fp32, of one matrix or of a stack.

    There are min(k, m, n) of them; past the rank both are zero. The generator draws the sketch (Halko, Martinsson & Tropp
    2011, arXiv 0909.4061); where k reaches the smaller side the SVD is exact. Of gradients of one example of a 12-layer
    model the sketch alone captures 0.9996 of the energy that the best 20 vectors do, one power iteration 0.9999.
    """
    wide = matrices.float()
    m, n = wide.shape[-2:]
    if k >= min(m, n):
        u, values, _ = torch.linalg.svd(wide, full_matrices=False)
    else:
        size = (*wide.shape[:-2], n, min(k + OVERSAMPLING, m, n))
        sketch = torch.randn(size, generator=generator, device=generator.device).to(wide.device)
        q = torch.linalg.qr(wide @ sketch).Q
        small = q.mT @ wide
        # a gradient of few tokens has few dimensions and the sketch holds them; else one power iteration sharpens it
        if (small.norm(dim=(-2, -1)) < HELD * wide.norm(dim=(-2, -1))).any():
            q = torch.linalg.qr(wide @ torch.linalg.qr(small.mT).Q).Q
            small = q.mT @ wide
        # eigenvectors of a Gram matrix of k + 8 rows in fp64: as exact as an SVD in fp32, in a fraction of its time
        squares, vectors = torch.linalg.eigh(small.double() @ small.mT.double())
        u, values = q @ vectors.flip(-1).to(q.dtype), squares.flip(-1).clamp(min=0).sqrt().to(q.dtype)
    above = values > values[..., :1] * max(m, n) * torch.finfo(torch.float32).eps
    return (u * above[..., None, :].to(u.dtype))[..., :k], (values * above)[..., :k]


def _random_bases(
    bases: Float[Tensor, "*block m k"], generator: torch.Generator
) -> Float[Tensor, "*block m k"]:
    """Random orthonormal columns, as many as `bases` has that are not zero, in the same places."""
    drawn = torch.randn(bases.shape, generator=generator, device=generator.device).to(bases.device)
    return torch.linalg.qr(drawn).Q * bases.norm(dim=-2, keepdim=True).round()


def coefficients(matrix: Float[Tensor, "m n"], basis: Float[Tensor, "m k"]) -> Float[Tensor, "k n"]:
    """`(2I − UᵀU) Uᵀ M`: with these, `M − U C` is `(I − UUᵀ)² M`, which rounding of U leaves nothing along, in one pass."""
    twice = 2 * torch.eye(basis.shape[1], device=basis.device) - basis.mT @ basis
    return twice @ (basis.mT @ matrix)


def without(matrix: Float[Tensor, "m n"], basis: Float[Tensor, "m k"]) -> Float[Tensor, "m n"]:
    """`(I − U Uᵀ) M`."""
    return torch.addmm(matrix, basis, coefficients(matrix, basis), alpha=-1)


class GradientSurgery:
    """Takes from the gradients in `.grad` what would undo safety; call it between `backward` and clipping.

        surgery = GradientSurgery(model.named_parameters(), lambda step: refusal_loss(model, step), k=20)
        loss.backward()
        surgery()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    Args:
        parameters: named blocks; those that need no gradient are left out.
        safety_loss: of the step's number, the loss on a refusal (or several) at the current weights, with dropout off;
            called at every refresh. What it draws should depend on the step only, then a resumed run is the same run.
        method: `spf`, `pcgrad`, `spf-update` (needs `update_watch` around the optimiser), `spf-random` or `mixing`.
        k: leading singular vectors of each block of `g_s` that SPF protects (20 in the source).
        gate: which inner product opens the projection: `global`, `block` by block, or `always` open.
        refresh: steps between computations of `g_s`.
        weight: of `g_s` in `mixing`; one refusal beside a batch of B is 1 / (B + 1).
        seed: of the randomised SVD; no global generator is touched.

    Raises UserError for no blocks, for a k that would take everything from a block (k ≥ its rows, as in LoRA's A), for sharded
    parameters, and for a safety gradient of zero; NonFiniteError naming the block for NaN or infinity.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        safety_loss: Callable[[int], Tensor],
        *,
        method: str = "spf",
        k: int = 20,
        gate: str = "global",
        refresh: int = 1,
        weight: float = 1 / 17,
        seed: int = 0,
    ) -> None:
        self.blocks = {name: p for name, p in parameters if p.requires_grad}
        if not self.blocks:
            raise UserError("no parameter needs a gradient; give the blocks that are trained")
        for chosen, known, what in ((method, METHODS, "method"), (gate, GATES, "gate")):
            if chosen not in known:
                raise UserError(f"unknown {what} {chosen!r}; use {', '.join(known)}")
        if k < 0 or refresh < 1 or not 0 <= weight <= 1:
            raise UserError(
                f"k must be at least 0, refresh at least 1 and weight in [0, 1]; got {k}, {refresh}, {weight}"
            )
        if method == "spf-update" and k == 0:
            raise UserError("spf-update with k = 0 has no subspace to project out; take k > 0")
        for name, block in self.blocks.items():
            if hasattr(block, "full_tensor"):
                raise UserError(
                    f"{name} is sharded (FSDP2 or tensor parallel), and a shard's singular vectors are not the block's; "
                    "train with plain data parallelism, or LoRA factors, which fit on every device"
                )
            if method.startswith("spf") and block.dim() > 1 and 0 < block.shape[0] <= k:
                raise UserError(
                    f"k = {k} leaves nothing of {name}, which has {block.shape[0]} rows; take k < {block.shape[0]}"
                )
        self.safety_loss, self.method, self.k, self.gate = safety_loss, method, k, gate
        self.refresh, self.weight, self.seed = refresh, weight, seed
        self.steps = 0
        self.watched = False
        self.safety: dict[str, Tensor] = {}
        self._squares: dict[str, float] = {}
        self._bases: dict[str, Tensor] = {}
        self._loss, self._tail = math.nan, math.nan

    @torch.no_grad()
    def __call__(self) -> SurgeryStep:
        """Change the gradients in place and say what was done."""
        if self.method == "spf-update" and not self.watched:
            raise UserError(
                "spf-update projects updates: train inside `with update_watch(surgery, optimizer)`"
            )
        refreshed = not self.safety or self.steps % self.refresh == 0
        if refreshed:
            self.renew()
        # blocks without a gradient, such as experts that no token reached, take no part in this step
        gradients = {name: p.grad for name, p in self.blocks.items() if p.grad is not None}
        if not gradients:
            raise UserError("no block has a gradient; call surgery after backward and before zero_grad")
        dots = {name: _dot(g, self.safety[name]) for name, g in gradients.items()}
        total = sum(dots.values())
        norm = math.sqrt(sum(_dot(g, g) for g in gradients.values()))
        if not math.isfinite(total) or not math.isfinite(norm):
            bad = next((name for name, g in gradients.items() if not torch.isfinite(g).all()), "all blocks")
            raise NonFiniteError(
                f"the gradient of {bad} is not finite; lower the learning rate or check the data"
            )
        safety_norm = math.sqrt(sum(self._squares[name] for name in gradients))
        cosine = total / (norm * safety_norm) if norm and safety_norm else 0.0
        opened, removed = 0, 0.0
        for name, gradient in gradients.items():
            score = {"global": total, "block": dots[name], "always": -1.0}[self.gate]
            if score < 0 or self.method == "mixing":
                opened += 1
                removed += self._operate(name, gradient, total, safety_norm)
        self.steps += 1
        return SurgeryStep(
            step=self.steps - 1,
            safety_loss=self._loss,
            cosine=cosine,
            open=opened / len(gradients),
            removed=math.sqrt(removed) / norm if norm else 0.0,
            refreshed=refreshed,
            safety_norm=safety_norm,
            tail=self._tail,
        )

    def renew(self) -> None:
        """Compute `g_s` at the current weights, averaged over the processes of a distributed run; `.grad` is left alone."""
        with torch.enable_grad():
            loss = self.safety_loss(self.steps)
            if not loss.requires_grad:
                raise UserError(
                    "the safety loss does not depend on the trained blocks; give refusals that they bear on"
                )
            found = torch.autograd.grad(loss, list(self.blocks.values()), allow_unused=True)
        self._loss = float(loss.detach())
        self.safety = {
            name: torch.zeros_like(p) if g is None else g.detach()
            for (name, p), g in zip(self.blocks.items(), found, strict=True)
        }
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for gradient in self.safety.values():
                torch.distributed.all_reduce(gradient)
                gradient /= torch.distributed.get_world_size()
        squares = {name: _dot(g, g) for name, g in self.safety.items()}
        for name, square in squares.items():
            if not math.isfinite(square):
                raise NonFiniteError(
                    f"the safety gradient of {name} is not finite; check the refusal examples"
                )
        if not any(squares.values()):
            raise UserError(
                "the safety loss has no gradient in the trained blocks; give refusals that they bear on"
            )
        self._squares, self._bases, self._tail = squares, {}, math.sqrt(sum(squares.values()))
        if self.method.startswith("spf") and self.k:
            self._find_subspaces([name for name, square in squares.items() if square > 0])

    def _find_subspaces(self, names: Sequence[str]) -> None:
        """Small blocks of one shape are stacked: one batched decomposition instead of many."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.steps)
        groups: dict[tuple[object, ...], list[str]] = {}
        for name in names:
            matrix = self.safety[name]
            alone = name if matrix.numel() > STACKED else None
            groups.setdefault((_matrix(matrix).shape, matrix.device, alone), []).append(name)
        tail = 0.0
        for group in groups.values():
            matrices = [_matrix(self.safety[name]).float() for name in group]
            stack = torch.stack(matrices) if len(group) > 1 else matrices[0][None]
            bases, values = randomised_svd(stack, self.k, generator)
            if self.method == "spf-random":
                bases = _random_bases(bases, generator)
                values = (bases.mT @ stack).norm(dim=-1)
            kept = values.square().sum(-1).tolist()
            tail += sum(
                max(0.0, self._squares[name] - square) for name, square in zip(group, kept, strict=True)
            )
            self._bases.update(zip(group, bases, strict=True))
        self._tail = math.sqrt(tail)

    def _operate(self, name: str, gradient: Tensor, total: float, safety_norm: float) -> float:
        """Change one block's gradient and return the square of what was taken."""
        safety = self.safety[name]
        if self.method == "spf-update" or (self.method in PROJECTING and name not in self._bases):
            return 0.0
        if self.method == "mixing":
            change = self.weight * (safety - gradient)
            gradient.add_(change)
            return _dot(change, change)
        if self.method in PROJECTING:
            basis, matrix = self._bases[name], _matrix(gradient).float()
            along = coefficients(matrix, basis)
            matrix.addmm_(basis, along, alpha=-1)
            if matrix.data_ptr() != gradient.data_ptr():  # a copy, of other precision or layout
                gradient.copy_(matrix.view_as(gradient))
            return _dot(along, along)
        dot, length = (
            (total, safety_norm**2)
            if self.gate == "global"
            else (_dot(gradient, safety), self._squares[name])
        )
        share = dot / length if length else 0.0
        gradient.sub_(safety, alpha=share)
        return share**2 * self._squares[name]

    def project(self, name: str, change: Tensor) -> Tensor:
        """A gradient or an update of one block without what lies in the protected subspace."""
        if name not in self._bases:
            return change
        return without(_matrix(change).float(), self._bases[name]).view_as(change).to(change.dtype)


@contextmanager
def update_watch(surgery: GradientSurgery, optimizer: torch.optim.Optimizer) -> Iterator[list[UpdateStep]]:
    """Yield a list that gets an `UpdateStep` after every step of the optimiser: what it did to the safety loss, to first order.

    With method `spf-update` the update itself is projected when it would raise the safety loss, and the list holds what was
    left. Keeps one copy of the trained blocks. The hooks are gone when the context ends, also after an exception.
    """
    before: dict[str, Tensor] = {}
    seen: list[UpdateStep] = []

    def remember(*_: object) -> None:
        for name, parameter in surgery.blocks.items():
            if name in before:
                before[name].copy_(parameter.detach())
            else:
                before[name] = parameter.detach().clone()

    @torch.no_grad()
    def measure(*_: object) -> None:
        updates = {name: p.detach() - before[name] for name, p in surgery.blocks.items()}
        drifts = {name: _dot(update, surgery.safety[name]) for name, update in updates.items()}
        squares = {name: _dot(update, update) for name, update in updates.items()}
        whole, total = sum(squares.values()), sum(drifts.values())
        for name, parameter in surgery.blocks.items() if surgery.method == "spf-update" else ():
            if {"global": total, "block": drifts[name], "always": 1.0}[surgery.gate] > 0:
                kept = surgery.project(name, updates[name])
                drifts[name], squares[name] = _dot(kept, surgery.safety[name]), _dot(kept, kept)
                parameter.copy_(before[name] + kept)
        left = sum(squares.values())
        removed = math.sqrt(max(0.0, 1 - left / whole)) if whole else 0.0
        seen.append(UpdateStep(surgery.steps - 1, sum(drifts.values()), math.sqrt(left), removed))

    handles = [optimizer.register_step_pre_hook(remember), optimizer.register_step_post_hook(measure)]
    surgery.watched = True
    try:
        yield seen
    finally:
        surgery.watched = False
        for handle in handles:
            handle.remove()


def surgery_table(steps: Sequence[SurgeryStep], updates: Sequence[UpdateStep] = ()) -> pd.DataFrame:
    """One row a step; the update's columns are NaN where none was watched, or where a loss scaler skipped it."""
    columns = [[field.name for field in fields(kind)] for kind in (SurgeryStep, UpdateStep)]
    surgery = pd.DataFrame([asdict(step) for step in steps], columns=columns[0])
    watched = pd.DataFrame([asdict(update) for update in updates], columns=columns[1])
    return surgery.merge(watched, on="step", how="left")


def _matrix(block: Tensor) -> Float[Tensor, "m rest"]:
    return block.reshape(block.shape[0], -1) if block.dim() > 0 else block.reshape(1, 1)


def _dot(a: Tensor, b: Tensor) -> float:
    """In fp32: pairwise summation keeps the error far below what any gate or share is read to."""
    return float(torch.dot(a.reshape(-1).float(), b.reshape(-1).float()))
