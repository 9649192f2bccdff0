"""What goes into a fine-tune: a seeded mixture of harmful and benign examples at a fixed size."""

from __future__ import annotations

from interp.data.prompts import PromptSet
from interp.errors import UserError


def mixture(harmful: PromptSet, benign: PromptSet, fraction: float, n: int, seed: int) -> PromptSet:
    """`n` examples, `round(fraction · n)` of them harmful, drawn without replacement.

    Raises UserError when the fraction is outside [0, 1] or a set holds too few examples.
    """
    if not 0 <= fraction <= 1:
        raise UserError(f"harmful fraction {fraction} is outside [0, 1]")
    n_harmful = round(fraction * n)
    for name, have, need in (("harmful", harmful, n_harmful), ("benign", benign, n - n_harmful)):
        if need > len(have):
            raise UserError(
                f"a mixture of {n} with {fraction:.0%} harmful needs {need} {name} examples; {len(have)} given"
            )
    chosen = [*harmful.sample(n_harmful, seed)] if n_harmful else []
    chosen += [*benign.sample(n - n_harmful, seed + 1)] if n > n_harmful else []
    return PromptSet(chosen, name=f"mixture-{fraction:g}")
