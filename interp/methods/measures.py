"""What was measured at each site, how sure is it, and what would chance give? One row a number, the same for every method."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from torch import Tensor

from interp.errors import SiteError
from interp.evals.statistics import Interval
from interp.models.activations import Activations
from interp.models.sites import Site

if TYPE_CHECKING:
    import pandas as pd

NULL_BAND = (0.025, 0.975)


@dataclass(frozen=True)
class Measure:
    """One number of one site.

    Args:
        name: what was measured. of: in which checkpoint or on which prompts, "" where there is only one.
        value, low, high: estimate and 95 % interval over clusters of prompts; NaN limits where there is none.
        n: clusters behind the interval.
        null_low, null_high: the middle 95 % of what the same procedure gives by chance; NaN where it was not drawn.
        ceiling: what perfect agreement would give with as much noise; NaN where that is not the question.
    """

    site: Site
    name: str
    of: str
    value: float
    low: float
    high: float
    n: int
    null_low: float = float("nan")
    null_high: float = float("nan")
    ceiling: float = float("nan")

    @classmethod
    def make(
        cls,
        site: Site,
        name: str,
        of: str,
        interval: Interval,
        null: Sequence[float] = (),
        ceiling: float = float("nan"),
    ) -> Measure:
        """A measure from its interval and the draws of its null."""
        low, high = np.quantile(np.array(null), NULL_BAND).tolist() if len(null) else (float("nan"),) * 2
        return cls(
            site, name, of, interval.value, interval.low, interval.high, interval.n, low, high, ceiling
        )


def frame(measures: Iterable[Measure]) -> pd.DataFrame:
    """One row a measure; its site as `site`, `layer` and `stream`, its name as `measure`."""
    import pandas as pd

    rows = []
    for measure in measures:
        row = asdict(measure) | {"site": str(measure.site), "measure": measure.name}
        place = {"site": row.pop("site"), "layer": measure.site.layer, "stream": measure.site.stream}
        name = {"measure": row.pop("measure")}
        del row["name"]
        rows.append(place | name | row)
    return pd.DataFrame(rows)


def one_row_each(activations: Activations) -> Float[Tensor, "site prompt d_model"]:
    """The values of activations with one row a prompt; raises SiteError where a prompt has several."""
    values = activations.by_prompt()
    if values.shape[2] != 1:
        raise SiteError(
            f"{activations.positions!r} gives {values.shape[2]} rows a prompt; capture with last, mean or an index"
        )
    return values[:, :, 0]


def check_same(first: Activations, second: Activations, *, prompts: bool = True) -> None:
    """Raise SiteError unless both hold the same sites in the same order, and the same prompts where those must agree."""
    if first.sites != second.sites:
        odd = sorted(set(first.sites) ^ set(second.sites))
        what = f"{odd[0]} is in one of them only" if odd else "their order differs"
        raise SiteError(f"{first.model} and {second.model} were captured at different sites: {what}")
    if prompts and first.prompt_ids != second.prompt_ids:
        odd_ids = sorted(set(first.prompt_ids) ^ set(second.prompt_ids))
        what = f"{odd_ids[0]!r} is in one of them only" if odd_ids else "their order differs"
        raise SiteError(f"{first.model} and {second.model} were captured on different prompts: {what}")
    if prompts and first.positions != second.positions:
        raise SiteError(
            f"{first.model} was captured at {first.positions!r}, {second.model} at {second.positions!r}"
        )
