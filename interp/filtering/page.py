"""What does a filter leave behind? The items kept, a table of all distances, and one page to read before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from interp.data.subset import write_rows
from interp.errors import UserError
from interp.files import content_hash, replacing_files
from interp.filtering.pipeline import Axis, FilterConfig, Filtered, run_filter
from interp.report.filter_figures import distance_histograms
from interp.report.page import Page, PageFigure, Section, render_page
from interp.report.style import printable
from interp.report.tables import Cell, Table, number_text
from interp.store import command_line, versions

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 20  # items in a table
EITHER_SIDE = 5  # items beside the cut
LIMITS = (
    "Distance to known harm is not harm: read the nearest items above, and the table of all.",
    "Nothing was trained. In the source (Roh and Houmansadr 2026, three audio models) fine-tuning on the most distant items mostly left "
    "under 6 % of harmful requests answered; what it leaves of another model is to be measured, by fine-tuning on the kept and on as many "
    "random items (--keep random) and interp study ALIGNED TUNED TUNED.",
    "What lies near harm may be what the fine-tuning is for: compare what was left out with the task.",
)


def filter_file(config: FilterConfig, out: Path) -> Filtered:
    """Filter a file and write `kept.*`, `distances.csv`, `report.html` and `figures/` into `out`; nothing on an error.

    Raises what `run_filter` raises, UserError where an input or another filter's items would be written over, and ResultError when the
    disk refuses.
    """
    _spare(config, out)
    found = run_filter(config)
    place = {name: i for i, name in enumerate(found.benign.ids)}
    with replacing_files(out) as aside:
        target = aside / f"kept{config.benign.suffix}"
        write_rows(config.benign, [place[name] for name in found.kept], target, directory=out)
        found.to_frame().to_csv(aside / "distances.csv", index=False, errors="backslashreplace")
        render_page(page(found), aside)
    return found


def _spare(config: FilterConfig, out: Path) -> None:
    """Raise where a filter would take its own input away, or leave the items of two filters under one report."""
    kept = f"kept{config.benign.suffix}"
    written = {(out / name).resolve() for name in (kept, "distances.csv", "report.html")}
    for given in (config.benign, Path(config.harmful)):
        if given.resolve() in written:
            raise UserError(
                f"{given} would be written over by what is kept of it; give another directory with -o"
            )
    for other in sorted(out.glob("kept.*")):
        if other.name != kept:
            raise UserError(
                f"{other} is of another filter, whose report would be written over; remove it, or give another directory with -o"
            )


def page(found: Filtered) -> Page:
    """The page of one filter."""
    config, frame = found.config, found.to_frame()
    n, size, n_harmful = len(found.benign), len(found.kept), len(found.harmful)
    kept = set(found.kept)
    figure = PageFigure(
        "Distances",
        f"How far {n} items lie from {n_harmful} harmful ones on each axis; kept and left out above each other.",
        distance_histograms(
            {_axis_label(axis): axis.values.numpy() for axis in found.axes},
            np.array([name in kept for name in found.benign.ids]),
        ),
    )
    cut = _cut(frame)
    sections = (
        Section(
            "What was done", (*summary(found), *found.notes), ("distances",), (_statistics(found, frame),)
        ),
        Section(
            "Nearest to harm",
            (
                "The items nearest to harm, and the harmful item that each is nearest to. All others are in distances.csv.",
            ),
            tables=tuple(_nearest(found, frame, axis, i) for i, axis in enumerate(found.axes, start=1)),
        ),
        *(
            [Section("At the cut", ("What keeping a few more or fewer would change.",), tables=(cut,))]
            if cut
            else []
        ),
        Section("Limits", LIMITS),
    )
    provenance = {
        "command": command_line(),
        "seed of ties and random subsets": str(config.seed),
        f"sha256 of {config.benign.name}": content_hash(config.benign),
        f"hash of the prompts of {found.harmful.name}": found.harmful.sha256,
        **versions(),
    }
    lead = f"{size} of {n} items, by their distance to the {n_harmful} of {found.harmful.name}"
    return Page(f"What was kept of {config.benign.name}", lead, sections, provenance, {"distances": figure})


def summary(found: Filtered) -> list[str]:
    """What was kept and how far it lies, in sentences."""
    keep, _, like = found.config.keep.partition(":")
    n, size, n_harmful = len(found.benign), len(found.kept), len(found.harmful)
    what = {
        "distant": f"those farthest from {n_harmful} harmful items",
        "proximate": f"those nearest to {n_harmful} harmful items",
        "random": "drawn at random",
        "matched": f"drawn at random with the lengths of the {like} ones",
    }[keep]
    by = " and ".join(map(_axis_label, found.axes)) + (", combined rank" if len(found.axes) > 1 else "")
    sentences = [f"Kept {size} of {n} items ({size / n:.1%}): {what}, by {by}."]
    frame = found.to_frame()
    word = "Combined rank" if len(found.axes) > 1 else "Distance"
    for label, part in (("kept", frame[frame["kept"]]), ("left out", frame[~frame["kept"]])):
        low, middle, high = (number_text(float(part["score"].quantile(q))) for q in (0, 0.5, 1))
        sentences.append(f"{word} of the {len(part)} {label}: {low} to {high}, median {middle}.")
    return sentences


def _axis_label(axis: Axis) -> str:
    return f"{axis.name} ({'centred' if axis.centred else 'raw'} {axis.measure})"


def _nearest(found: Filtered, frame: pd.DataFrame, axis: Axis, number: int) -> Table:
    """The items nearest by what the axis orders them by; beside it, where that is another measure, the distance to the nearest item."""
    values = dict(zip(found.benign.ids, axis.values.tolist(), strict=True))
    part = frame.assign(by=frame["id"].map(values)).sort_values("by", kind="stable").head(SHOWN)
    other = axis.measure != "min"
    rows: list[tuple[Cell, ...]] = [
        (row["id"], *([row["by"]] if other else []), row[f"{axis.name} raw min"] if f"{axis.name} raw min" in part else None,
         row[f"{axis.name} centred min"] if f"{axis.name} centred min" in part else None,
         _short(row["text"]), _short(row[f"{axis.name} nearest text"]), _word(row))
        for _, row in part.iterrows()
    ]  # fmt: skip
    measured = (f"{axis.measure} distance",) if other else ()
    header = ("item", *measured, "raw, to the nearest", "centred", "asks", "nearest harmful item", "")
    return Table(f"nearest-{number}", f"By {axis.name}", header, tuple(rows))


def _cut(frame: pd.DataFrame) -> Table | None:
    """The items on either side of the cut, where there is one."""
    changes = frame["kept"].astype(int).diff().fillna(0).abs().to_numpy()
    if changes.sum() != 1:
        return None
    at = int(changes.argmax())
    rows: list[tuple[Cell, ...]] = [
        (row["id"], float(row["score"]), _short(row["text"]), _word(row))
        for _, row in frame.iloc[max(0, at - EITHER_SIDE) : at + EITHER_SIDE].iterrows()
    ]
    return Table(
        "cut",
        "Items on either side of the cut, nearest to harm first",
        ("item", "score", "asks", ""),
        tuple(rows),
    )


def _statistics(found: Filtered, frame: pd.DataFrame) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for axis in found.axes:
        for kind in ("raw", "centred"):
            if f"{axis.name} {kind} min" in frame:
                values = frame[f"{axis.name} {kind} min"]
                spread = (float(values.quantile(q)) for q in (0, 0.25, 0.5, 0.75, 1))
                rows.append((f"{axis.name}, {kind}", *spread, float(values.std())))
    header = ("axis", "least", "quarter", "median", "three quarters", "most", "standard deviation")
    return Table("statistics", "Distance to the nearest harmful item, over all items", header, tuple(rows))


def _word(row: pd.Series) -> str:
    return "kept" if row["kept"] else "left out"


def _short(text: str, most: int = 200) -> str:
    text = printable(" ".join(text.split()))
    return (text if len(text) <= most else text[: most - 1] + "…") or "(no text)"
