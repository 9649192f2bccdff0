"""Where do speech, text, refusal and the safe space lie, layer by layer? From the same calibration prompts as the steering.

1. Gap: distance of means, separability, CKA and the cosine of harm directions between writing and the asked modality, with their nulls
   and split-half ceiling (`methods/modality_gap.py`).
2. Safe space: angle of SARSteer's `d_l` to it, and the share of its energy inside, beside chance.
3. Cosines between the arms' vectors.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import pandas as pd

from interp.data.prompts import Prompt
from interp.methods.modality_gap import modality_gap
from interp.methods.sarsteer import RANK
from interp.methods.steering import SteeringVectors
from interp.models.activations import capture
from interp.steering_study.data import TARGET, Kind, calibration
from interp.steering_study.trial import fitted, load_organism

TABLES = ("gap", "safe", "cosines")


def measure_geometry(kind: Kind, checkpoint: str, split: int, n: int = 100) -> dict[str, pd.DataFrame]:
    """The tables `gap`, `safe` and `cosines` of one organism, which must be built, and draw."""
    arms = fitted(checkpoint, kind, n, split)
    vectors = {
        "text": arms.plain,
        TARGET[kind]: arms.target,
        "d": arms.sar.refusal,
        "SARSteer": arms.sar.vectors(RANK),
    }
    return {
        "gap": _gap(checkpoint, kind, n, split),
        "safe": arms.sar.to_frame(RANK),
        "cosines": cosines(vectors),
    }


def cosines(vectors: dict[str, SteeringVectors]) -> pd.DataFrame:
    """One row a pair and layer: `cosine`, and `chance`, within ± which 95 % of random pairs lie."""
    rows: list[dict[str, Any]] = []
    for (a, first), (b, second) in combinations(vectors.items(), 2):
        chance = 1.96 / math.sqrt(first.vectors.shape[1])
        rows += [
            {"pair": f"{a} and {b}", "layer": site.layer, "cosine": value, "chance": chance}
            for site, value in zip(first.sites, first.cosine(second).tolist(), strict=True)
        ]
    return pd.DataFrame(rows)


def _gap(checkpoint: str, kind: Kind, n: int, split: int) -> pd.DataFrame:
    data = calibration(kind, n, split)
    model = load_organism(checkpoint)
    written: list[Prompt] = [*data.written_harmful, *data.written_benign]
    asked: list[Prompt] = [*data.harmful, *data.benign]
    found = modality_gap(
        capture(model, written, progress=False),
        capture(model, asked, progress=False),
        names=("text", TARGET[kind]),
        harmful=[True] * len(data.harmful) + [False] * len(data.benign),
        groups=[prompt.group or prompt.id for prompt in written],
        n_null=20,
        seed=split,
    )
    return found.to_frame()
