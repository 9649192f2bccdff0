"""How alike are two sets of activations: the same prompts in two checkpoints, or in two modalities? All in fp64.

1. Linear CKA (Kornblith et al. 2019, arXiv 1905.00414): the cosine of the two centred Gram matrices over the same n rows. It is
   blind to rotations and to one common scale, and compares spaces of different width.
2. Its debiased form centres the Gram matrices without their diagonals (U-centring; Song et al. 2012, Székely and Rizzo 2014), so
   that numerator and both norms are unbiased HSIC estimates (Nguyen et al. 2021, arXiv 2010.15327). It is the default: with fewer rows
   than dimensions the plain CKA of two *independent* sets is near one, since every row is then alone in a direction of its own.
3. Distance of means in units of the pooled within-class spread, and the change of each row relative to its length.

Angles between principal subspaces are in `subspaces.py`, their mean squared cosine is `conflict.overlap`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import NonFiniteError, UserError


def cka(a: Float[Tensor, "n d_a"], b: Float[Tensor, "n d_b"], *, debiased: bool = True) -> float:
    """Linear CKA of two sets of rows, row i of one belonging to row i of the other.

    Args:
        debiased: the unbiased form, about 0 for independent rows and at times under it; else the plain one, in [0, 1].

    NaN where all rows of a set are equal. Raises UserError for fewer rows than the form needs (4 or 2), NonFiniteError on NaN.
    """
    least = 4 if debiased else 2
    if a.shape[0] < least:
        raise UserError(
            f"{'debiased' if debiased else 'plain'} CKA needs {least} rows, there are {a.shape[0]}"
        )
    left, right = (
        _centred_gram(rows, debiased) for rows in (check_finite(a, "first"), check_finite(b, "second"))
    )
    norm = left.norm() * right.norm()
    return float((left * right).sum() / norm) if norm > 0 else float("nan")


def _centred_gram(rows: Float[Tensor, "n d"], debiased: bool) -> Float[Tensor, "n n"]:
    # Centring the rows first changes neither form and keeps a large common mean from eating the digits.
    rows = rows - rows.mean(0)
    gram = rows @ rows.T
    if not debiased:
        return gram
    n = len(gram)
    gram.fill_diagonal_(0)
    sums = gram.sum(0) / (n - 2)
    gram = gram - sums[:, None] - sums[None, :] + sums.sum() / (n - 1)
    return gram.fill_diagonal_(0)


def mean_distance(a: Float[Tensor, "n d_model"], b: Float[Tensor, "m d_model"]) -> float:
    """Distance of two sets' means over their pooled within-set spread, the root mean square distance of a row from its mean.

    Means of equal populations lie `sqrt(1/n + 1/m)` apart by sampling alone. NaN where nothing varies within the sets.
    Raises UserError for fewer than three rows in all, NonFiniteError on NaN.
    """
    first, second = check_finite(a, "first"), check_finite(b, "second")
    n, m = len(first), len(second)
    if not n or not m or n + m < 3:
        raise UserError(f"a distance of means needs three rows in two sets, there are {n} and {m}")
    within = sum((rows - rows.mean(0)).square().sum() for rows in (first, second)) / (n + m - 2)
    if not within > 0:
        return float("nan")
    return float((first.mean(0) - second.mean(0)).norm() / within**0.5)


def relative_change(
    before: Float[Tensor, "n d_model"], after: Float[Tensor, "n d_model"]
) -> Float[Tensor, " n"]:
    """`‖after − before‖ / ‖before‖` of every row; raises UserError for a row of zeros, NonFiniteError on NaN."""
    old, new = check_finite(before, "first"), check_finite(after, "second")
    length = old.norm(dim=-1)
    if not (length > 0).all():
        row = int((length == 0).nonzero()[0])
        raise UserError(f"row {row} of the first set is zero: a change relative to it means nothing")
    return (new - old).norm(dim=-1) / length


def check_finite(rows: Float[Tensor, "n d_model"], which: str) -> Float[Tensor, "n d_model"]:
    """The rows in fp64; raises NonFiniteError naming the set and its first bad row."""
    bad = ~torch.isfinite(rows).all(-1)
    if bad.any():
        raise NonFiniteError(
            f"row {int(bad.nonzero()[0])} of the {which} set holds NaN or infinity; check the activations"
        )
    return rows.double()
