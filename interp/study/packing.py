"""How are the products of a study's steps laid down in JSON and safetensors, and taken up again?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from interp.evals.statistics import Interval


def pack_interval(interval: Interval) -> dict[str, float | None]:
    """Its fields for JSON, which has no NaN: the bound of an interval over a single cluster becomes null."""
    return {key: None if math.isnan(value) else value for key, value in asdict(interval).items()}


def unpack_interval(stored: Mapping[str, Any]) -> Interval:
    """What `pack_interval` packed."""
    values: dict[str, Any] = {key: float("nan") if value is None else value for key, value in stored.items()}
    return Interval(**values)


def pack_log_probs(log_probs: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Log-probabilities and tokens of several answers end to end, with their lengths."""
    lengths = torch.tensor([len(tokens) for _, tokens in log_probs])
    return {
        "log_probs": torch.cat([values for values, _ in log_probs]),
        "tokens": torch.cat([tokens for _, tokens in log_probs]),
        "lengths": lengths,
    }


def unpack_log_probs(packed: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """What `pack_log_probs` packed."""
    sizes = packed["lengths"].tolist()
    return list(zip(packed["log_probs"].split(sizes), packed["tokens"].split(sizes), strict=True))
