"""Which ways of steering are compared? All fitted on the same calibration prompts, before anything is measured.

none         the model as it is
prompt       a defence prompt in the system turn
plain        difference of means of harmful and benign requests *in writing* (METHODS §0), at every layer
target       the same in the modality that is asked: what `plain` would be if directions transferred
unablated    SARSteer's refusal vectors d_l, λ = 0
sarsteer     SARSteer: d_l without its component in the safe space
conditional  sarsteer where a request's projection on harm passes a threshold
random       a random direction with the norms of sarsteer
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from interp.data.prompts import Prompt
from interp.errors import UserError
from interp.methods.sarsteer import RANK, REFUSAL, REMOVAL, SARSteer, fit_sarsteer
from interp.methods.steering import Condition, Steering, SteeringVectors, steer
from interp.models.activations import Activations, capture
from interp.models.hooks import Positions
from interp.models.model import Model

Arm = Literal["none", "prompt", "plain", "target", "unablated", "sarsteer", "conditional", "random"]
ARMS: tuple[Arm, ...] = get_args(Arm)
STEERED: tuple[Arm, ...] = ("plain", "target", "unablated", "sarsteer", "conditional", "random")


@dataclass(frozen=True, eq=False)
class FittedArms:
    """Everything fitted on one draw of calibration prompts.

    harmful, benign: activations of the calibration prompts in the modality that is asked; written_harmful, written_benign: of the same
    requests in writing, the same ones where that is how they are asked.
    """

    sar: SARSteer
    condition: Condition
    harmful: Activations
    benign: Activations
    written_harmful: Activations
    written_benign: Activations

    @property
    def plain(self) -> SteeringVectors:
        """Difference of means in writing."""
        return SteeringVectors.difference(
            self.written_harmful, self.written_benign, "harmful − benign in writing"
        )

    @property
    def target(self) -> SteeringVectors:
        """Difference of means in the modality that is asked."""
        return SteeringVectors.difference(self.harmful, self.benign, "harmful − benign as asked")

    def vectors(
        self,
        arm: Arm,
        *,
        rank: int = RANK,
        removal: float = REMOVAL,
        centred: bool = False,
        remove_mean: bool = False,
        seed: int = 0,
    ) -> SteeringVectors:
        """The vectors of an arm that steers; raises UserError for one that does not."""
        match arm:
            case "plain":
                return self.plain
            case "target":
                return self.target
            case "unablated":
                return self.sar.refusal
            case "sarsteer" | "conditional" | "random":
                own = self.sar.vectors(rank, removal, centred=centred, remove_mean=remove_mean)
                return own.random(seed) if arm == "random" else own
        raise UserError(f"the arm {arm!r} has no vectors; those that have are {', '.join(STEERED)}")

    def steering(
        self,
        arm: Arm,
        strength: float,
        *,
        layer: int | None = None,
        positions: Positions = "answer",
        rank: int = RANK,
        removal: float = REMOVAL,
        centred: bool = False,
        remove_mean: bool = False,
        seed: int = 0,
    ) -> Steering | None:
        """How an arm acts at a strength, at every layer or at one; None for an arm that does not steer."""
        if arm not in STEERED:
            return None
        chosen = self.vectors(
            arm, rank=rank, removal=removal, centred=centred, remove_mean=remove_mean, seed=seed
        )
        if layer is not None:
            chosen = chosen.at(layer)
        return steer(chosen, strength, positions, self.condition if arm == "conditional" else None)


def fit_arms(
    model: Model,
    harmful: Sequence[Prompt],
    benign: Sequence[Prompt],
    written: tuple[Sequence[Prompt], Sequence[Prompt]] | None = None,
    *,
    refusal: str = REFUSAL,
    instruction: str | None = None,
    progress: bool = True,
) -> FittedArms:
    """Fit all arms.

    Args:
        harmful, benign: calibration prompts in the modality that is asked.
        written: the same kinds of requests in writing; None where they are asked in writing.
        refusal, instruction: of SARSteer.

    Raises UserError for empty sets, and what `fit_sarsteer` raises.
    """
    sar = fit_sarsteer(model, harmful, benign, refusal=refusal, instruction=instruction, progress=progress)
    asked = [capture(model, prompts, progress=progress) for prompts in (harmful, benign)]
    told = asked if written is None else [capture(model, prompts, progress=progress) for prompts in written]
    # 5 % of the benign calibration prompts may be steered
    condition = Condition.fit(asked[0], asked[1], false_positives=0.05)
    return FittedArms(sar, condition, asked[0], asked[1], told[0], told[1])
