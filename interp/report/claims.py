"""Did it come out here as a source says? Published claims beside what was measured, in words from intervals and margins.

A claim says on which side of a margin a quantity lies, or within it on both. *Reproduced in the organism*: the whole interval lies there;
*not reproduced*: none of it does; *inconclusive*: else, and where there is no interval; *not measured*: nothing was run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from interp.errors import ResultError
from interp.evals.statistics import Interval
from interp.report.tables import Cell, Table

REPRODUCED, NOT, OPEN, ABSENT = "reproduced in the organism", "not reproduced", "inconclusive", "not measured"


class Claim(BaseModel):
    """One claim of a source; the fields are those of the data file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    text: str
    published: str
    measure: str
    unit: str
    expects: Literal["above", "below", "within"]
    margin: float
    set: str = "before the first run"

    def outcome(self, measured: Interval | None) -> str:
        """The word for what was measured."""
        if measured is None:
            return ABSENT
        low, high, margin = measured.low, measured.high, self.margin
        if not (math.isfinite(low) and math.isfinite(high)):
            return OPEN
        match self.expects:
            case "above":
                there, elsewhere = low > margin, high <= margin
            case "below":
                there, elsewhere = high < margin, low >= margin
            case _:
                there, elsewhere = -margin < low and high < margin, low >= margin or high <= -margin
        return REPRODUCED if there else NOT if elsewhere else OPEN


class Paper(BaseModel):
    """A source, the experiment that tests it here, and the models that it was shown on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    title: str
    source: str
    experiment: str
    models: tuple[str, ...] = Field(min_length=1)
    claims: tuple[Claim, ...] = Field(min_length=1)


@dataclass(frozen=True)
class PaperResult:
    """What an experiment hands over: intervals by the names of measures, and where its figures, tables and pages lie."""

    measured: Mapping[str, Interval]
    directories: tuple[Path, ...]

    def files(self, *suffixes: str) -> list[Path]:
        """Files of the directories with these endings, in order."""
        found = (path for directory in self.directories for path in sorted(directory.rglob("*")))
        return [path for path in found if path.suffix in suffixes]


def read_papers(path: Path) -> tuple[Paper, ...]:
    """Read the data file; raises ResultError naming what is wrong with it, or an id that stands twice."""
    try:
        papers = tuple(
            Paper.model_validate(item) for item in yaml.safe_load(path.read_text(encoding="utf-8"))["papers"]
        )
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ResultError(f"{path}: cannot be read as a list of papers ({error})") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ResultError(f"{path}: {where}: {first['msg']}") from error
    names = [paper.id for paper in papers] + [
        f"{paper.id}/{claim.id}" for paper in papers for claim in paper.claims
    ]
    if double := {name for name in names if names.count(name) > 1}:
        raise ResultError(f"{path}: {min(double)!r} stands twice")
    return papers


def claims_table(paper: Paper, measured: Mapping[str, Interval]) -> Table:
    """One row a claim: what the source says, what was measured, what had to be reached, the outcome."""
    rows: list[tuple[Cell, ...]] = []
    for claim in paper.claims:
        found = measured.get(claim.measure)
        if found is not None:  # a sum of shares that is nothing but rounding is nothing
            value, low, high = (round(edge, 12) + 0.0 for edge in (found.value, found.low, found.high))
            found = Interval(value, low, high, found.n)
        sign = {"above": "> ", "below": "< ", "within": "within ±"}[claim.expects]
        rows.append(
            (
                claim.text,
                claim.published,
                claim.unit,
                f"{sign}{claim.margin:g}",
                claim.set,
                found,
                claim.outcome(found),
            )
        )
    header = ("claim", "published", "measured here", "margin", "margin set", "value [95 %]", "outcome")
    return Table(f"claims-{paper.id}", f"{paper.title} ({paper.source})", header, tuple(rows))
