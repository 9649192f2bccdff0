"""Which fine-tunes does the study take? Sections of trials, thinned away from the quarter subsets that claims are made on.

A unit is an organism crossed with a seed, which draws the pool, its near objects and speakers, the subsets and the training.

Two doses, learning rates both, are chosen on random quarters of pools of their own, which can favour no subset. At *half*, about half of harmful
speech is still refused: where nothing or all of it is, subsets cannot differ. At *taught* the skill is learnt: defences are compared there,
and whether subsets still differ.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from interp.benign_audio.nearness import AXES
from interp.benign_audio.prepare import Preparation
from interp.benign_audio.trial import Trial
from interp.benign_audio.tuning import Tuning

PLAIN_AXES = ("semantic", "acoustic")
DEFENDED = "semantic"  # the axis whose proximate subset the defences are compared on


class Dose(BaseModel):
    """Two learning rates: after `half` about half of harmful speech is still refused, after `taught` the skill is learnt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    half: float = Field(gt=0)
    taught: float = Field(gt=0)


class Grid(BaseModel):
    """What a study runs.

    Args:
        organisms, seeds: crossed, the units. tuning: units that the doses are chosen on, from `rates`; without any, the middle and the highest.
        axes: of the quarter subsets, on all units (`_in_full`) or on the first seed of every organism.
        shares: other shares of the pool, on the plain axes. These, the unplanted pool and the random quarters of matched length describe and
            bear no claim: they too are run on the first seed of every organism.
        taught_too: whether plain subsets are also run at the taught dose, on the first seed of every organism.
        n_null: further random quarters of all organisms together, no two alike, the null band.
        by_class: whether nearness in words is crossed with classes of things (`classes.py`), on all units.
        bridged: organisms compared with their twin of another bridge.
        steps, batch_size: of every fine-tune, whatever its subset. evaluate_at: steps at which defences are read.
        strengths: of SARSteer. matched: utility at which defences are compared, as a share of the plain fine-tune's own.
        n_items, n_harmful, n_test, n_probe, n_fit, n_pairs: sizes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    organisms: tuple[int, ...] = (0, 1, 2)
    seeds: tuple[int, ...] = (0, 1, 2)
    tuning: tuple[tuple[int, int], ...] = ((0, 3),)
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    taught: float = Field(0.8, gt=0, lt=1)
    axes: tuple[str, ...] = AXES
    share: float = 0.25
    shares: tuple[float, ...] = (0.5, 0.75)
    n_null: int = Field(18, ge=0)
    taught_too: bool = True
    text: bool = True
    unplanted: bool = True
    by_class: bool = True
    defences: tuple[str, ...] = ("plain", "distant", "spf", "mixing")
    bridged: tuple[int, ...] = (0, 1, 2)
    steps: int = Field(40, gt=0)
    batch_size: int = Field(16, gt=0)
    evaluate_at: tuple[int, ...] = (10, 20, 40)
    strengths: tuple[float, ...] = (0.0125, 0.05, 0.2)
    matched: float = Field(0.9, gt=0, le=1)
    n_items: int = Field(800, ge=8)
    n_harmful: int = Field(200, ge=2)
    n_test: int = Field(150, ge=2)
    n_probe: int = Field(120, ge=10)
    n_fit: int = Field(100, ge=4)
    n_pairs: int = Field(24, ge=4)

    @property
    def units(self) -> list[tuple[int, int]]:
        """Organism and seed of every unit."""
        return [(organism, seed) for organism in self.organisms for seed in self.seeds]

    @property
    def first_units(self) -> list[tuple[int, int]]:
        """One unit an organism."""
        return [(organism, self.seeds[0]) for organism in self.organisms]

    @property
    def built(self) -> list[int]:
        """Seeds of the organisms that are needed."""
        return sorted({organism for organism, _ in (*self.units, *self.tuning)})

    def tuning_trials(self) -> list[Trial]:
        """A random quarter at every rate on the organisms of tuning."""
        return [self._trial(*unit, rate, rule="random") for rate in self.rates for unit in self.tuning]

    def sections(self, dose: Dose) -> dict[str, list[Trial]]:
        """The trials of each section."""

        def over(units: list[tuple[int, int]], rate: float = dose.half, **settings: Any) -> list[Trial]:
            return [self._trial(*unit, rate, **settings) for unit in units]

        found = {"aligned": over(self.units, inside=True)}
        found["main"] = [
            trial
            for rule in ("proximate", "distant")
            for axis in self.axes
            for trial in over(
                self.units if axis in self._in_full(rule) else self.first_units, **self._main(rule, axis)
            )
        ]
        found["main"] += over(self.units, rule="random", inside=True, located=True)
        for axis in (axis for axis in PLAIN_AXES if axis in self.axes):
            found["main"] += over(self.first_units, rule="matched", axis=axis)
        found["shares"] = [
            trial
            for share in self.shares
            for rule, axis in (
                *((r, a) for r in ("proximate", "distant") for a in PLAIN_AXES),
                ("random", ""),
            )
            for trial in over(self.first_units, rule=rule, axis=axis, share=share)
        ]
        each = math.ceil(self.n_null / len(self.organisms))
        # pools of a seed are the same for all organisms: each takes draws of its own
        found["null band"] = [
            self._trial(*unit, dose.half, rule="random", draw=1 + i * each + k)
            for i, unit in enumerate(self.first_units)
            for k in range(each)
        ]
        if self.text:
            found["text"] = [
                trial
                for rule, axis in (("proximate", DEFENDED), ("random", ""))
                for trial in over(self.units, rule=rule, axis=axis, modality="text")
            ]
        if self.unplanted:
            found["unplanted"] = [
                trial
                for rule, axis in _FEW
                for trial in over(self.first_units, rule=rule, axis=axis, pool="unplanted")
            ]
        found["taught"] = [
            trial
            for rule, axis in (
                *((r, a) for r in ("proximate", "distant") for a in PLAIN_AXES),
                ("random", ""),
            )
            for trial in over(self.first_units, dose.taught, **self._taught(rule, axis))
            if self.taught_too
        ]
        found["defences"] = [
            trial for name in self.defences for trial in over(self.units, dose.taught, **self._defence(name))
        ]
        others = [unit for unit in self.units if unit[0] in self.bridged]
        found["bridge mlp"] = [
            trial
            for rule, axis in (("aligned", ""), *_FEW)
            for trial in over(others, rule=rule, axis=axis, bridge="mlp", inside=True)
        ]
        return {name: part for name, part in found.items() if part}

    def preparations(self) -> list[Preparation]:
        """Every pool and organism that a trial needs."""
        dose = Dose(half=self.rates[0], taught=self.rates[0])
        trials = [t for part in self.sections(dose).values() for t in part] + self.tuning_trials()
        return list(dict.fromkeys(t.preparation for t in trials if t.rule != "aligned"))

    def _in_full(self, rule: str) -> tuple[str, ...]:
        """Axes that a rule takes on all units: distant subsets where claims ask for them, proximate ones on all but the combined axis."""
        return PLAIN_AXES if rule == "distant" else tuple(axis for axis in self.axes if axis != "combined")

    def _main(self, rule: str, axis: str) -> dict[str, Any]:
        """Settings of a quarter subset: those of the plain axes are looked into, and where refusal was lost is located in one of them."""
        inside = axis in PLAIN_AXES
        return {
            "rule": rule,
            "axis": axis,
            "inside": inside,
            "located": axis == DEFENDED and rule == "proximate",
        }

    def _taught(self, rule: str, axis: str) -> dict[str, Any]:
        """Settings of a subset at the taught dose: the very trials that defences take, where these are on it."""
        return self._defence(rule) if (rule, axis) in _AS_DEFENCE else {"rule": rule, "axis": axis}

    def _defence(self, name: str) -> dict[str, Any]:
        """Settings of a defence: plain training on the proximate subset is what the others are compared with, also under steering."""
        settings = {"rule": "proximate", "axis": DEFENDED, "evaluate_at": self.evaluate_at}
        if name in ("plain", "proximate"):
            return settings | {"strengths": self.strengths}
        return settings | ({"rule": "distant"} if name == "distant" else {"method": name})

    def _trial(self, organism: int, seed: int, rate: float, **settings: Any) -> Trial:
        others = [o for o in self.organisms if o != organism]
        # of another organism, so that the mixed axis is not the model's own ear
        mixed = None
        if "mixed" in self.axes and others:
            mixed = min(others, key=lambda o: (o < organism, o))
        tuning = Tuning(steps=self.steps, batch_size=self.batch_size, learning_rate=rate)
        return Trial(
            organism=organism, seed=seed, mixed=mixed, n=self.n_items, n_harmful=self.n_harmful, tuning=tuning,
            n_test=self.n_test, n_probe=self.n_probe, n_fit=self.n_fit, n_pairs=self.n_pairs,
            **{"share": self.share, **settings},
        )  # fmt: skip


_AS_DEFENCE = (("proximate", DEFENDED), ("distant", DEFENDED))
_FEW = (("proximate", "semantic"), ("proximate", "acoustic"), ("random", ""))


def choose_dose(scores: pd.DataFrame, rates: tuple[float, ...], taught: float) -> Dose:
    """Half: the rate after which most nearly half of harmful speech is refused. Taught: the lowest at which the skill is answered rightly
    as often as `taught`; the best one where none is.

    scores: columns `rate`, `refused` and `skill`, in speech; without rows the middle and the highest of the rates.
    """
    if scores.empty:
        return Dose(half=rates[len(rates) // 2], taught=rates[-1])
    means = scores.groupby("rate")[["refused", "skill"]].mean()
    enough = means["skill"][means["skill"] >= taught]
    best = enough if len(enough) else means["skill"][means["skill"] == means["skill"].max()]
    apart = (means["refused"] - 0.5).abs()
    half = apart[apart == apart.min()]
    return Dose(half=float(min(half.index.tolist())), taught=float(min(best.index.tolist())))
