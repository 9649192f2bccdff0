"""What is contrasted with what: two prompt sets whose mean difference is the quantity of interest.

The positive set has the property (harmful, harmful image, refusal asked for), the negative one lacks it; a direction
points from negative to positive (Arditi et al. 2024, arXiv 2406.11717, section 2.3).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from interp.data.prompts import Prompt, PromptSet
from interp.errors import UserError


@dataclass(frozen=True)
class Contrast:
    """Two prompt sets to tell apart.

    positive: prompts with the property. negative: prompts without it. name: of the property.
    Raises UserError when a set is empty or when one prompt stands in both.
    """

    positive: PromptSet
    negative: PromptSet
    name: str = "harmful-harmless"

    def __post_init__(self) -> None:
        for part in (self.positive, self.negative):
            if not len(part):
                raise UserError(f"contrast {self.name!r}: the set {part.name!r} is empty")
        shared = {_content(p) for p in self.positive} & {_content(p) for p in self.negative}
        if shared:
            example = min(text for text, _ in shared)
            raise UserError(
                f"contrast {self.name!r}: {len(shared)} prompts stand on both sides, for example {example[:60]!r}; "
                "give two different sets"
            )

    def __len__(self) -> int:
        return len(self.positive) + len(self.negative)

    @property
    def sha256(self) -> str:
        """The hash of both sets' content."""
        return hashlib.sha256((self.positive.sha256 + self.negative.sha256).encode()).hexdigest()

    def split(self, sizes: Mapping[str, int], seed: int) -> dict[str, Contrast]:
        """Split both sets into parts of the given sizes (see `PromptSet.split`).

        Row i of one side and row i of the other come into the same part when the sides are equally long.
        """
        positive, negative = self.positive.split(sizes, seed), self.negative.split(sizes, seed)
        return {part: Contrast(positive[part], negative[part], self.name) for part in sizes}

    def filter(self, keep: Callable[[Prompt], bool]) -> Contrast:
        """Keep the prompts of both sides for which `keep` is true; raises when a side is left empty."""
        return Contrast(self.positive.filter(keep), self.negative.filter(keep), self.name)

    def swapped(self) -> Contrast:
        """Return the contrast pointing the other way."""
        return Contrast(self.negative, self.positive, f"not {self.name}")

    def _repr_html_(self) -> str:
        return self.positive._repr_html_() + self.negative._repr_html_()


def _content(prompt: Prompt) -> tuple[str, str]:
    """Return the text and a hash of all that a model would see of a prompt, for equality."""
    seen = replace(prompt, id="", label=None, category=None, source=None, group=None, truth=None, meta={})
    return prompt.text, seen.fingerprint()
