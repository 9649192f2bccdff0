"""What did a fine-tune do to harmless behaviour? KL from the aligned model and perplexity on benign answers.

Both checkpoints read the same benign answers. KL(aligned ‖ tuned) is averaged over an answer's tokens, then over answers,
in nats a token, and is exactly zero for identical checkpoints. Perplexity is `exp` of the mean negative log-likelihood.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.errors import UserError
from interp.evals.statistics import Interval, cluster_bootstrap

if TYPE_CHECKING:
    from torch import Tensor

LogProbs = Sequence[tuple["Tensor", "Tensor"]]


@dataclass(frozen=True)
class Utility:
    """KL(aligned ‖ tuned) in nats a token, and each checkpoint's perplexity, on the same benign answers."""

    kl: Interval
    aligned_perplexity: Interval
    tuned_perplexity: Interval


def compare_utility(aligned: LogProbs, tuned: LogProbs, groups: Sequence[Any] | None = None) -> Utility:
    """Utility of a tuned checkpoint from both checkpoints' `response_log_probs` on the same prompts.

    groups: the cluster of each prompt for the bootstrap intervals.
    """
    kl = []
    for (p, tokens), (q, same) in zip(aligned, tuned, strict=True):
        if tokens.tolist() != same.tolist() or p.shape != q.shape:
            raise UserError(
                "the two checkpoints have different vocabularies or tokenizers; KL needs fine-tunes of one base"
            )
        p, q = p.double(), q.double()
        kl.append(float((p.exp() * (p - q)).sum(-1).mean()))
    return Utility(cluster_bootstrap(kl, groups), perplexity(aligned, groups), perplexity(tuned, groups))


def perplexity(log_probs: LogProbs, groups: Sequence[Any] | None = None) -> Interval:
    """`exp` of the mean (over answers) negative log-likelihood a token, with a bootstrap interval."""
    nll = [-float(p.gather(-1, tokens[:, None]).double().mean()) for p, tokens in log_probs]
    found = cluster_bootstrap(nll, groups)
    return Interval(float(np.exp(found.value)), float(np.exp(found.low)), float(np.exp(found.high)), found.n)
