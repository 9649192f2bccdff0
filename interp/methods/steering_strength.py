"""How strong is a steering vector to be? As strong as a stated disturbance of the answers that should stay as they are.

The disturbance is the mean KL(plain ‖ steered) a token, in nats, along the plain model's own greedy answers to given prompts (benign
ones, say), teacher-forced. Vectors of any length and origin then compare at equal disturbance. The strength is found by doubling or
halving until the target lies between two strengths, then by bisection of their logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from interp.data.prompts import Prompt
from interp.errors import UserError
from interp.methods.steering import Condition, Steering, SteeringVectors, steer
from interp.models.generation import generate
from interp.models.hooks import Positions
from interp.models.likelihood import response_log_probs, with_responses
from interp.models.model import Model

SMALLEST, LARGEST = 2.0**-20, 2.0**20


@dataclass(frozen=True)
class Calibrated:
    """A strength, the KL measured at it in nats a token, and every (strength, KL) that was tried."""

    strength: float
    kl: float
    tried: tuple[tuple[float, float], ...]


def plain_answers(
    model: Model, prompts: Sequence[Prompt], *, max_new_tokens: int = 16, batch_size: int = 64
) -> list[Prompt]:
    """The prompts with the plain model's greedy answers as their responses; raises UserError naming one that stays empty."""
    made = generate(model, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=False)
    for answer in made:
        if not answer.text:
            raise UserError(
                f"{model.name} answers nothing to prompt {answer.prompt_id!r}: there is no KL along its answer"
            )
    return with_responses(prompts, [answer.text for answer in made])


def steering_kl(
    model: Model,
    answered: Sequence[Prompt],
    steering: Steering,
    *,
    max_tokens: int = 16,
    batch_size: int = 16,
) -> float:
    """Mean KL(plain ‖ steered) over prompts, in nats a token of the prompts' responses."""
    plain, other = (
        response_log_probs(
            model, answered, edits=edits, max_tokens=max_tokens, batch_size=batch_size, progress=False
        )
        for edits in (None, steering)
    )
    each = [
        float((p.double().exp() * (p.double() - q.double())).sum(-1).mean())
        for (p, _), (q, _) in zip(plain, other, strict=True)
    ]
    return sum(each) / len(each)


def strength_for_kl(
    model: Model,
    vectors: SteeringVectors,
    answered: Sequence[Prompt],
    target: float,
    *,
    positions: Positions = "answer",
    condition: Condition | None = None,
    tolerance: float = 0.02,
    max_tokens: int = 16,
    batch_size: int = 16,
) -> Calibrated:
    """The strength at which steering changes the answers by `target` nats a token, within a share of `tolerance`.

    answered: prompts with responses, such as `plain_answers` makes.
    Raises UserError where no strength up to 2^20 comes to the target, which a condition that no prompt meets does not.
    """
    if not target > 0 or not math.isfinite(target):
        raise UserError(f"a KL of {target} cannot be aimed at; it must be a positive number of nats")
    tried: list[tuple[float, float]] = []

    def measure(strength: float) -> float:
        chosen = steer(vectors, strength, positions, condition)
        kl = steering_kl(model, answered, chosen, max_tokens=max_tokens, batch_size=batch_size)
        # a push so large that logits overflow is past any target
        tried.append((strength, kl if math.isfinite(kl) else math.inf))
        return tried[-1][1]

    low = high = 1.0
    found = measure(1.0)
    if found < target:
        while found < target:
            low, high = high, 2 * high
            if high > LARGEST:
                raise UserError(
                    f"steering with {vectors.source or 'these vectors'} comes to {found:.3g} nats at most, not to {target:g}"
                )
            found = measure(high)
    else:
        while found >= target:
            low, high = low / 2, low
            if low < SMALLEST:
                raise UserError(
                    f"steering changes answers by {found:.3g} nats at any strength; are the vectors in other units?"
                )
            found = measure(low)
    strength, kl = min(tried, key=lambda pair: abs(pair[1] - target))
    for _ in range(40):
        if abs(kl - target) <= tolerance * target:
            break
        strength = math.sqrt(low * high)
        kl = measure(strength)
        low, high = (strength, high) if kl < target else (low, strength)
    return Calibrated(strength, kl, tuple(tried))
