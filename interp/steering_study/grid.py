"""Which points does the comparison take? Operating curves of every arm on every seed, and ablations of SARSteer on fewer.

A seed is a draw of calibration prompts on an organism: three draws on each of three audio organisms, one on each of eight text organisms
(those that no setting was chosen on). Every steered arm is asked at equally many strengths.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from interp.methods.steering_arms import STEERED, Arm
from interp.steering_study.data import Kind
from interp.steering_study.trial import Trial

AUDIO_SEEDS = tuple((organism, draw) for organism in range(3) for draw in range(3))
TEXT_SEEDS = tuple((organism, 0) for organism in range(2, 10))


class Grid(BaseModel):
    """What a comparison runs.

    Args:
        stage: of the organisms. seeds: organism and calibration draw of each.
        arms: steered ones; `none` and `prompt` are always there.
        strengths: α of the operating curves.
        ablation_strengths: α of the ablations; of single layers, which act once and not at every layer, times `layer_factor`.
        removals, ranks, sizes, layers: values of λ, k, n and the layer, on the first `n_ablation` organisms.
        n_test: held-out requests a label.
        costs: more over-refusal at which curves are read; claims are made at `cost`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind = "audio"
    stage: str = "aligned"
    seeds: tuple[tuple[int, int], ...] = AUDIO_SEEDS
    arms: tuple[Arm, ...] = STEERED
    strengths: tuple[float, ...] = (0.00625, 0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8)
    ablation_strengths: tuple[float, ...] = (0.0125, 0.025, 0.05, 0.1, 0.2, 0.4)
    layer_factor: float = 8.0
    removals: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    ranks: tuple[int, ...] = (1, 5, 10, 20, 40)
    sizes: tuple[int, ...] = (20, 50, 100, 200)
    layers: tuple[int, ...] = tuple(range(12))
    variants: tuple[str, ...] = ("centred", "remove_mean")
    n_ablation: int = Field(3, ge=1)
    n_test: int = Field(200, ge=1)
    costs: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2)
    cost: float = 0.05

    def operating(self) -> list[Trial]:
        """The points of the operating curves, seed by seed."""
        found = []
        for organism, split in self.seeds:
            # neither depends on the draw: asked once an organism, and equal on its other draws
            found += [self._trial(organism, 0, arm=arm) for arm in ("none", "prompt")]
            found += [
                self._trial(organism, split, arm=arm, strength=strength)
                for arm in self.arms
                for strength in self.strengths
            ]
        return list(dict.fromkeys(found))

    def ablations(self) -> dict[str, list[tuple[Any, Trial]]]:
        """By setting, its values and their points, on one draw of the first organisms."""
        first = {organism: (organism, split) for organism, split in reversed(self.seeds)}
        few = sorted(first.values())[: self.n_ablation]
        settings: dict[str, dict[Any, dict[str, Any]]] = {
            "λ": {value: {"removal": value} for value in self.removals},
            "k": {value: {"rank": value} for value in self.ranks},
            "n": {value: {"n": value} for value in self.sizes},
            "layer": {"all": {}} | {value: {"layer": value} for value in self.layers},
            "variant": {"source": {}} | {value: {value: True} for value in self.variants},
        }
        return {
            name: [
                (
                    value,
                    self._trial(
                        *seed, strength=strength * (self.layer_factor if "layer" in given else 1), **given
                    ),
                )
                for value, given in values.items()
                for seed in few
                for strength in self.ablation_strengths
            ]
            for name, values in settings.items()
            if len(values) > 1
        }

    def trials(self) -> list[Trial]:
        """All points, those of one organism and draw together."""
        every = [*self.operating(), *(trial for part in self.ablations().values() for _, trial in part)]
        return sorted(dict.fromkeys(every), key=lambda t: (t.organism, t.split, t.n))

    def _trial(self, organism: int, split: int, **given: Any) -> Trial:
        return Trial(
            kind=self.kind, stage=self.stage, organism=organism, split=split, n_test=self.n_test, **given
        )
