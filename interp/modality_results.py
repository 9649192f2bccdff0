"""What did a study find in several modalities? The part of a `StudyResult` that text alone does not have.

Behaviour on the same requests, the transfer of refusal directions, and tables by site: the gap between modalities, the drift of encoder,
projector and decoder, and whether harm is still recognised there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict

from interp.errors import ResultError
from interp.evals.jailbreak import EvalResult, PairedTest
from interp.evals.statistics import Interval, Proportion

if TYPE_CHECKING:
    import pandas as pd

_CONFIG = ConfigDict(arbitrary_types_allowed=True)
Kind = Literal["harmful", "harmless"]
TABLES = ("gap", "drift", "recognition")


@dataclass(frozen=True)
class Transfer:
    """What one edit did to the refusal of requests in one modality (`methods/transfer.py`).

    Args:
        edit: `none`, `ablated` or `added`. kind: of requests.
        of: the modality that the direction is from, `random`, `shuffled`, or "" for no edit. on: the modality of the requests.
        score: mean refusal score in log-odds. refused: share of requests more likely refused than not.
    """

    edit: str
    kind: Kind
    of: str
    on: str
    score: Interval
    refused: Proportion


@dataclass(frozen=True, eq=False)
class ModalityResult:
    """One checkpoint in every modality.

    Args:
        name: as the user wrote it; the first is the aligned one.
        behaviour: by modality and kind of requests.
        refused: paired test of refusals of the same requests, modality − reference; empty where requests are not paired.
    """

    name: str
    behaviour: Mapping[str, Mapping[Kind, EvalResult]]
    refused: Mapping[str, Mapping[Kind, PairedTest]]
    transfer: tuple[Transfer, ...]

    __pydantic_config__ = _CONFIG


@dataclass(frozen=True, eq=False)
class ModalityStudy:
    """Every modality of a study, the reference first.

    Args:
        names: of the modalities. media: what is attached to every prompt of each.
        paired: whether modalities ask the same requests. n_requests: harmful and harmless test requests of the reference.
        layer: of the directions, at whose input they were fitted and added.
        gap: rows of `ModalityGap.to_frame`, with `checkpoint`, `first` and `second`.
        drift: rows of `Drift.to_frame`, with `checkpoint`, `modality` and `tower`.
        recognition: rows of `Recognition.to_frame`, with `modality` and `tower`; checkpoints in `of`.
    """

    names: tuple[str, ...]
    media: Mapping[str, tuple[str, ...]]
    paired: bool
    n_requests: Mapping[Kind, int]
    layer: int
    checkpoints: tuple[ModalityResult, ...]
    gap: tuple[Mapping[str, Any], ...]
    drift: tuple[Mapping[str, Any], ...]
    recognition: tuple[Mapping[str, Any], ...]

    __pydantic_config__ = _CONFIG

    def __post_init__(self) -> None:
        for found in self.checkpoints:
            if set(found.behaviour) != set(self.names):
                raise ResultError(
                    f"{found.name}: behaviour in {sorted(found.behaviour)}, the study has {sorted(self.names)}"
                )

    @property
    def reference(self) -> str:
        """The modality that the others are compared with."""
        return self.names[0]

    def to_frame(self, table: str) -> pd.DataFrame:
        """One of TABLES, a row a site and measure, missing numbers as NaN; empty where nothing was measured."""
        import pandas as pd

        if table not in TABLES:
            raise ResultError(f"no table {table!r} of modalities; there are {', '.join(TABLES)}")
        numbers = ["value", "low", "high", "null_low", "null_high", "ceiling"]
        frame = pd.DataFrame(list(getattr(self, table)))
        return frame if frame.empty else frame.astype(dict.fromkeys(numbers, "float64"))
