"""KL and perplexity against their closed forms; nothing for identical checkpoints; refused for another vocabulary."""

import math

import pytest
import torch

from interp.errors import UserError
from interp.evals.utility import compare_utility, perplexity


def answers(
    rows: list[list[list[float]]], tokens: list[list[int]]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Log-probabilities and tokens of answers, from probabilities."""
    return [
        (torch.tensor(p, dtype=torch.float64).log(), torch.tensor(t))
        for p, t in zip(rows, tokens, strict=True)
    ]


ALIGNED = answers([[[0.5, 0.25, 0.25], [0.8, 0.1, 0.1]], [[0.2, 0.3, 0.5]]], [[0, 1], [2]])
TUNED = answers([[[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]], [[0.5, 0.3, 0.2]]], [[0, 1], [2]])


def test_closed_forms():
    found = compare_utility(ALIGNED, TUNED)
    first = (0.25 * math.log(2) + 0.7 * math.log(8)) / 2  # a mean over the tokens of an answer
    second = 0.3 * math.log(2.5)
    assert found.kl.value == pytest.approx((first + second) / 2)
    nll = [-(math.log(0.5) + math.log(0.1)) / 2, -math.log(0.5)]
    assert found.aligned_perplexity.value == pytest.approx(math.exp(sum(nll) / 2))
    assert perplexity(TUNED).value == found.tuned_perplexity.value
    assert found.kl.low <= found.kl.value <= found.kl.high


def test_identical_checkpoints_differ_by_nothing():
    found = compare_utility(ALIGNED, ALIGNED)
    assert found.kl.value == found.kl.low == found.kl.high == 0
    assert found.aligned_perplexity == found.tuned_perplexity


@pytest.mark.parametrize(
    "other",
    [
        answers([[[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]], [[0.5, 0.3, 0.2]]], [[0, 2], [2]]),
        answers([[[0.5, 0.5], [0.5, 0.5]], [[0.5, 0.5]]], [[0, 1], [2]]),
    ],
    ids=["other tokens", "smaller vocabulary"],
)
def test_another_vocabulary_is_refused(other):
    with pytest.raises(
        UserError, match="different vocabularies or tokenizers; KL needs fine-tunes of one base"
    ):
        compare_utility(ALIGNED, other)
