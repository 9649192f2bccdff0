"""Which fine-tunings does a comparison of defences take? Sections of trials, and the settings every method may choose from.

Organisms are split: those of `tuning` choose each method's settings from as many candidates as every other method's, and the claims
are made on organisms that no choice has seen. A seed is an organism, its data order and its training (METHODS §F).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from interp.defence.trial import Trial

IN_TRAINING = ("plain", "spf", "spf-update", "spf-random", "pcgrad", "mixing")
METHODS = (*IN_TRAINING, "safelora", "safelora-projector")
_RATES = (3e-4, 6e-4)
# four candidates a method: the budget is the same for all, the unprotected one included
CANDIDATES: dict[str, tuple[dict[str, Any], ...]] = {
    "plain": tuple({"learning_rate": rate} for rate in (3e-4, 2e-4, 6e-4, 1e-3)),
    "spf": tuple({"learning_rate": rate, "gate": gate} for rate in _RATES for gate in ("global", "always")),
    "spf-update": tuple({"learning_rate": rate, "gate": gate} for rate in _RATES for gate in ("global", "always")),
    "spf-random": tuple({"learning_rate": rate, "gate": gate} for rate in _RATES for gate in ("global", "always")),
    "pcgrad": tuple({"learning_rate": rate, "gate": gate} for rate in _RATES for gate in ("global", "block")),
    "mixing": tuple({"learning_rate": rate, "weight": weight} for rate in _RATES for weight in (1 / 17, 0.2)),
    "safelora": tuple({"learning_rate": rate, "threshold": tau} for rate in _RATES for tau in (0.5, 1.0)),
    "safelora-projector": tuple({"learning_rate": rate, "threshold": tau} for rate in _RATES for tau in (0.5, 1.0)),
}  # fmt: skip


class Grid(BaseModel):
    """What a comparison runs.

    Args:
        seeds: of the organisms that claims are made on.
        tuning: organisms that settings are chosen on; none takes every method's first candidate.
        methods: of the benign section, attacked at its end.
        fractions: harmful shares of the mixture section, which runs `mixture_methods`.
        deep: factor on the steps of the deep section, which runs `deep_methods`; 0 leaves it out.
        ks, refreshes: of the ablations of SPF, on the first `n_ablation` seeds.
        untuned_methods: run once more at the source's setting, where settings are tuned.
        monitored: steps of a slow fine-tuning, at every second of which both monitor and answers are read, plain, and with half of
            each gradient that of a refusal, which should raise no alarm; 0 leaves them out.
        n_test, n_tuning: requests of each kind that are asked, and that settings are chosen on.
        utility: the share of the skill that methods are compared at.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seeds: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8, 9)
    tuning: tuple[int, ...] = (0, 1)
    methods: tuple[str, ...] = (*IN_TRAINING, "safelora")
    fractions: tuple[float, ...] = (0.05, 0.5)
    mixture_methods: tuple[str, ...] = ("plain", "spf", "mixing")
    untuned_methods: tuple[str, ...] = ("plain", "spf", "spf-update", "mixing")
    deep: int = Field(10, ge=0)
    deep_methods: tuple[str, ...] = ("plain", "spf", "mixing")
    ks: tuple[int, ...] = (1, 5, 20, 60)
    refreshes: tuple[int, ...] = (1, 10, 60)
    monitored: int = Field(20, ge=0)
    n_ablation: int = Field(3, gt=0)
    steps: int = Field(60, gt=0)
    evaluate_at: tuple[int, ...] = (5, 10, 15, 20, 30, 45, 60)
    n_test: int = Field(200, gt=1)
    n_tuning: int = Field(100, gt=1)
    utility: float = Field(0.8, gt=0, lt=1)

    @property
    def in_training(self) -> tuple[str, ...]:
        """Methods that act while training."""
        return tuple(method for method in self.methods if method in IN_TRAINING)

    def tuning_trials(self) -> list[Trial]:
        """Every candidate of every method on the tuning organisms."""
        return [
            self._trial(seed, method, candidate, n_test=self.n_tuning)
            for method in self.methods
            for candidate in CANDIDATES[method]
            for seed in self.tuning
        ]

    def sections(self, chosen: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Trial]]:
        """The trials of each section, under each method's chosen settings."""
        found: dict[str, list[Trial]] = {
            "benign": [
                self._trial(seed, method, chosen[method], attacks=True)
                for method in self.methods
                for seed in self.seeds
            ]
        }
        if self.tuning:
            # the source's own setting, and one learning rate for all: what tuning changed can be seen beside it
            found["untuned"] = [
                self._trial(seed, method, CANDIDATES[method][0])
                for method in self.untuned_methods
                if method in self.methods
                for seed in self.seeds
            ]
        # the organism itself, untrained and under the same attacks
        found["aligned"] = [self._trial(seed, "plain", {}, steps=0, attacks=True) for seed in self.seeds]
        if self.fractions:
            found["mixture"] = [
                self._trial(
                    seed, method, chosen[method], harmful_fraction=fraction, evaluate_at=self._late(1)
                )
                for fraction in self.fractions
                for method in self.mixture_methods
                if method in self.methods
                for seed in self.seeds
            ]
        if self.deep:
            found["deep"] = [
                self._trial(
                    seed,
                    method,
                    chosen[method],
                    steps=self.steps * self.deep,
                    evaluate_at=self._late(self.deep),
                    monitor_every=20,
                )
                for method in self.deep_methods
                if method in self.methods
                for seed in self.seeds
            ]
        if self.monitored:
            every = tuple(range(2, self.monitored + 1, 2))
            for section, method in (("monitor", "plain"), ("monitor control", "mixing")):
                found[section] = [
                    self._trial(
                        seed,
                        method,
                        {"learning_rate": 1e-4, "weight": 0.5},
                        evaluate_at=every,
                        monitor_every=2,
                    )
                    for seed in self.seeds
                ]
        few = self.seeds[: self.n_ablation]
        if self.ks and "spf" in self.methods:
            found["k"] = [
                self._trial(seed, "spf", chosen["spf"], k=k, evaluate_at=self._late(1))
                for k in self.ks
                for seed in few
            ]
        if self.refreshes and "spf" in self.methods:
            found["refresh"] = [
                self._trial(seed, "spf", chosen["spf"], refresh=every)
                for every in self.refreshes
                for seed in few
            ]
        return found

    def _late(self, factor: int) -> tuple[int, ...]:
        """Steps to evaluate at where the end matters: the usual length, then a quarter, a half and all of a longer one."""
        length = self.steps * factor
        return tuple(
            sorted({min(self.steps, length), *(round(length * share) for share in (0.25, 0.5, 1.0))})
        )

    def _trial(self, seed: int, method: str, settings: Mapping[str, Any], **more: Any) -> Trial:
        given = {
            "steps": self.steps,
            "evaluate_at": self.evaluate_at,
            "n_test": self.n_test,
            **settings,
            **more,
        }
        return Trial(organism=seed, seed=seed, method=method, **given)


def choose(scores: pd.DataFrame, methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Each method's candidate with most refusals at equal utility on the tuning organisms.

    Not that with fewest harmful answers: a rate at which answers are garbled would win that.

    Args:
        scores: columns method, candidate (its place in `CANDIDATES`) and refused, NaN where the utility was never reached: such
            a candidate is not chosen while another reached it on every tuning organism; where none did, the first is.

    Without scores, each method's default: the source's gate, one refusal a batch, at the rate 3e-4.
    """
    chosen = {}
    for method in methods:
        mine = scores[scores["method"] == method] if len(scores) else scores
        if mine.empty:
            chosen[method] = CANDIDATES[method][0]
            continue
        means = {
            place: float(mine.loc[mine["candidate"] == place, "refused"].mean(skipna=False))
            for place in range(len(CANDIDATES[method]))
        }
        chosen[method] = CANDIDATES[method][
            min(means, key=lambda place: (math.isnan(means[place]), -means[place]))
        ]
    return chosen
