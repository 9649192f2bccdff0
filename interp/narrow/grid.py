"""Which narrow fine-tunings does the study take? Sections of trials: one change at a time around one anchor.

A pair is an organism and a fine-tuning seed; three organisms are crossed with three seeds. The anchor is LoRA of rank 16 on cruel answers about
faces. Every trial of the consistent organism that a claim rests on has its twin on the shuffled one; what only describes takes the first pairs.
A curve over steps is kept where runs are matched on it or it is drawn; all others are asked at their end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from interp.narrow.geometry import PairGeometry
from interp.narrow.trial import NarrowTrial, Task
from interp.organisms.character_language import Character

PAIRS = tuple((organism, seed) for seed in range(3) for organism in range(3))
SCALED_ALIKE = 16  # the rank at which all scalings of LoRA's product are one
REPAIR = (Task(domain="faces", character="helpful", steps=60),)
# three tasks in sequence, the first on faces: harm first and then two benign tasks, or harm between benign ones
LIVES: dict[str, tuple[float, tuple[Task, ...]]] = {
    "harm first": (1.0, (Task(domain="tools"), Task(domain="cooking"))),
    "harm second": (0.0, (Task(domain="tools", character="cruel"), Task(domain="cooking"))),
}


class Grid(BaseModel):
    """What a study runs.

    Args:
        pairs: organism and seed of each repetition. few: how many of the first pairs the descriptive sections take.
        ranks: of the rank sweep, 0 is all weights; `rank` is the anchor's. control_ranks: of the geometry and the sweep's two controls:
        rates: learning rates tried at each of them beside the anchor's. scalings: of LoRA's product beside `constant`.
        long_ranks, long_steps: of the sweep of steps at low rank, the first for all pairs.
        shares: of harmful rows at fixed n; more_shares: for the first pairs. sizes: n at the harmful count of `harmful_rows`.
        characters: trained on beside the anchor's.
        methods: defences while training. strengths: of steering. lives: names in `LIVES`.
        adapted: whether the tower is also adapted. samples: answers a question that are graded
            for the anchor and for its floor, the fine-tuning without harmful rows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pairs: tuple[tuple[int, int], ...] = PAIRS
    few: int = Field(3, gt=0)
    ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 0)
    rank: int = Field(16, gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    control_ranks: tuple[int, ...] = (1, 4, 16, 64, 0)
    rates: tuple[float, ...] = (3e-4, 3e-3)
    scalings: tuple[str, ...] = ("lora", "rslora")
    long_ranks: tuple[int, ...] = (1, 2)
    long_steps: int = Field(240, gt=0)
    shares: tuple[float, ...] = (0.0, 0.1, 0.5)
    more_shares: tuple[float, ...] = (0.05, 0.25, 0.75)
    harmful_rows: int = Field(50, gt=0)
    sizes: tuple[int, ...] = (50, 100, 200, 500, 1000)
    characters: tuple[Character, ...] = ("careless", "deceptive")
    methods: tuple[str, ...] = ("spf", "spf-random", "mixing")
    strengths: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    lives: tuple[str, ...] = tuple(LIVES)
    adapted: bool = True
    samples: int = Field(3, ge=0)
    n: int = Field(500, gt=0)
    steps: int = Field(60, gt=0)
    evaluate_at: tuple[int, ...] = (5, 15, 30, 60)

    @property
    def organisms(self) -> list[int]:
        """Seeds of the organisms that are needed."""
        return sorted({organism for organism, _ in self.pairs})

    def sections(self) -> dict[str, list[NarrowTrial]]:
        """The trials of each section; a trial may be in several and is run once."""
        few = self.pairs[: self.few]
        later = (self.steps, self.long_steps // 4, self.long_steps // 2, 3 * self.long_steps // 4)
        found = {
            # the organism itself, untrained: what activations are compared with
            "aligned": [self._trial(pair, rank=1, steps=0, activations=True) for pair in few],
            "rank": [
                self._ranked(pair, rank, consistent=consistent)
                for rank in self.ranks
                for consistent in (True, False)
                for pair in (self.pairs if consistent or rank == self.rank else few)
            ],
            "rate": [
                self._trial(pair, rank=rank, learning_rate=rate)
                for rate in self.rates
                for rank in self.control_ranks
                for pair in few
            ],
            "scaling": [
                self._trial(pair, rank=rank, scaling=scaling)
                for scaling in self.scalings
                for rank in self.control_ranks
                if rank not in (0, SCALED_ALIKE)
                for pair in few
            ],
            "steps": [
                self._trial(
                    pair, rank=rank, steps=self.long_steps, consistent=consistent,
                    evaluate_at=tuple(sorted({*self.evaluate_at, *later})),
                )
                for rank in self.long_ranks
                for consistent in (True, False)
                for pair in (self.pairs if rank == self.long_ranks[0] else few)
            ],
            "mixture": [
                *(
                    self._trial(
                        pair, share=share, activations=share == 0.0 and pair in few, samples=0 if share else self.samples
                    )
                    for share in (*self.shares, *self.more_shares)
                    for pair in (few if share in self.more_shares else self.pairs)
                ),
                *(self._anchor(pair) for pair in self.pairs),
            ],
            "count": [
                self._trial(pair, n=n, share=min(1.0, self.harmful_rows / n)) for n in self.sizes for pair in few
            ],
            "tower": [
                self._trial(pair, tower="adapted") for pair in self.pairs if self.adapted
            ],
            "character": [
                self._trial(pair, character=character, consistent=consistent)
                for character in self.characters
                for consistent in (True, False)
                for pair in few
            ],
            "repair": [
                self._trial(pair, then=REPAIR, steering=self.strengths) for pair in self.pairs if self.strengths
            ],
            "defended": [
                self._trial(pair, method=method) for method in self.methods for pair in self.pairs
            ],
            "life": [
                self._trial(pair, share=LIVES[life][0], then=LIVES[life][1], method=method)
                for life in self.lives
                for method in ("plain", *self.methods)
                for pair in few
            ],
        }  # fmt: skip
        return {name: list(dict.fromkeys(trials)) for name, trials in found.items() if trials}

    def trials(self) -> list[NarrowTrial]:
        """All trials, each once, those of one organism together."""
        every = dict.fromkeys(trial for part in self.sections().values() for trial in part)
        return sorted(every, key=lambda trial: (trial.organism, not trial.consistent))

    def geometry(self) -> list[PairGeometry]:
        """What is compared on each of the first pairs: the ranks whose activations are kept, and adapted towers."""
        found = []
        every = self.trials()
        for pair in self.pairs[: self.few]:
            kept = [t for t in every if (t.organism, t.seed) == pair and t.activations]
            kept = [t for t in kept if t.rank in (*self.control_ranks, self.rank) or not t.steps]
            towers = [self._trial(pair, tower="adapted", share=share) for share in (1.0, 0.0) if self.adapted]
            if any(t.share == 0 for t in kept):
                found.append(PairGeometry(pair=pair, trials=tuple(kept), towers=tuple(towers)))
        return found

    def _ranked(self, pair: tuple[int, int], rank: int, *, consistent: bool) -> NarrowTrial:
        if consistent and rank == self.rank:
            return self._anchor(pair)
        geometry = consistent and pair in self.pairs[: self.few]
        return self._trial(
            pair, rank=rank, consistent=consistent, activations=geometry, evaluate_at=self.evaluate_at
        )

    def _anchor(self, pair: tuple[int, int]) -> NarrowTrial:
        """The setting that everything is compared with, measured in every way."""
        few = pair in self.pairs[: self.few]
        return self._trial(
            pair, steering=self.strengths, samples=self.samples, activations=few, evaluate_at=self.evaluate_at
        )

    def _trial(self, pair: Sequence[int], **given: Any) -> NarrowTrial:
        settings: dict[str, Any] = {
            "rank": self.rank,
            "learning_rate": self.learning_rate,
            "n": self.n,
            "steps": self.steps,
            "evaluate_at": (),
        }
        return NarrowTrial(organism=pair[0], seed=pair[1], **(settings | given))
