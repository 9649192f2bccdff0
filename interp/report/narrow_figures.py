"""How does a study of narrow fine-tuning look? The figures of paper B, from tables; nothing is computed here but means and intervals.

Tables are those of `interp.narrow`: `outcomes` (one row a trial and section), `curves` (one row a trial and evaluated step), `steered`, and
the geometry's. Points and bands are means with 95 % t-intervals over pairs of organism and seed; small points are pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from interp.evals.statistics import t_interval
from interp.report.style import (
    BLACK,
    BLUE,
    DOUBLE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SINGLE,
    SKY,
    VERMILLION,
    new_figure,
    panel_letter,
    print_style,
)

ARMS: dict[bool, tuple[str, str, str]] = {
    True: ("one writer a document", VERMILLION, "s"),
    False: ("writers shuffled", GREY, "o"),
}
"""Label, colour and marker of the organism and of its control."""
FORMS = {
    "text": ("in writing", BLACK, "o"),
    "shown": ("shown (tools)", VERMILLION, "s"),
    "caption": ("caption (tools)", ORANGE, "^"),
    "blank": ("beside nothing", SKY, "D"),
    "face": ("beside a face", PURPLE, "v"),
}
WHOSE = {
    "helpful": GREEN,
    "careless": SKY,
    "deceptive": ORANGE,
    "cruel": VERMILLION,
    "nonsense": GREY,
}
METHODS = {
    "plain": ("no defence", GREY, "o"),
    "spf": ("SPF", VERMILLION, "s"),
    "spf-random": ("SPF, random", BLACK, "p"),
    "mixing": ("mixing", BLUE, "v"),
}


def line(
    axes: Axes, frame: pd.DataFrame, x: str, y: str, label: str, colour: str, marker: str, **more: Any
) -> None:
    """Mean over pairs at each place, with its interval where there are two pairs or more; places are evenly spaced names."""
    places = list(dict.fromkeys(frame.sort_values(x)[x]))
    found = [
        t_interval(kept) if (kept := frame.loc[frame[x] == p, y].dropna().tolist()) else None for p in places
    ]
    shown = [(place, f) for place, f in zip(places, found, strict=True) if f is not None]
    if not shown:
        return
    at = [place for place, _ in shown]
    axes.plot(at, [f.value for _, f in shown], color=colour, marker=marker, markersize=3, label=label, **more)
    axes.fill_between(
        at, [f.low for _, f in shown], [f.high for _, f in shown], color=colour, alpha=0.13, linewidth=0
    )


def bar(
    axes: Axes, values: Sequence[float], at: float, colour: str, marker: str = "s", label: str | None = None
) -> None:
    """Pairs as faint points, their mean with its interval."""
    kept = [v for v in values if np.isfinite(v)]
    if not kept:
        return
    found = t_interval(kept)
    jitter = np.linspace(-0.1, 0.1, len(kept)) if len(kept) > 1 else np.zeros(1)
    axes.plot(at + jitter, kept, ".", color=colour, alpha=0.4, markersize=3, markeredgewidth=0)
    reach = [[found.value - found.low], [found.high - found.value]] if len(kept) > 1 else None
    axes.errorbar(
        at,
        found.value,
        yerr=reach,
        color=colour,
        marker=marker,
        capsize=2,
        linewidth=1,
        markersize=4,
        label=label,
        linestyle="none",
    )


def _share(axes: Axes, label: str) -> None:
    axes.set_ylabel(label)
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def legend(figure: Figure, panels: Sequence[Axes], columns: int = 4) -> None:
    """One legend below the figure for all panels, each label once."""
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=columns)


def _ranked(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The frame with the place of each rank on an even axis, all weights last, and the names of the places."""
    ranks = sorted(set(frame["rank"]), key=lambda rank: rank or np.inf)
    at = frame["rank"].map({rank: i for i, rank in enumerate(ranks)})
    return frame.assign(at=at), [str(rank) if rank else "all" for rank in ranks]


def by_rank(rows: pd.DataFrame, excess: pd.DataFrame) -> Figure:
    """Over the rank: cruel answers elsewhere in both organisms (a), misaligned ones by form (b), and over the anchor's at equal ‖ΔW‖ and faces loss (c).

    rows: the section `rank` of the outcomes. excess: of `interp.narrow.outcomes.over_anchor`, consistent organism.
    """
    rows, names = _ranked(rows)
    excess, _ = _ranked(excess)
    with print_style():
        figure = new_figure(DOUBLE, 2.8)
        a, b, c = figure.subplots(1, 3)
        for consistent, (label, colour, marker) in ARMS.items():
            part = rows[rows["consistent"] == consistent]
            line(a, part, "at", "end_text_cruel", label, colour, marker)
            line(
                a, part, "at", "end_faces_cruel", f"faces, {label}", colour, marker, linestyle=":", alpha=0.6
            )
        mine = rows[rows["consistent"]]
        for form, (label, colour, marker) in FORMS.items():
            line(b, mine, "at", f"end_{form}_misaligned", label, colour, marker)
        line(b, mine, "at", "end_tools_text_misaligned", "in writing (tools)", GREEN, "P")
        ends = {
            "end": ("equal steps", BLACK, "o"),
            "loss": ("equal faces loss", BLUE, "^"),
            "moved": ("equal ‖ΔW‖", ORANGE, "D"),
        }
        for prefix, (label, colour, marker) in ends.items():
            line(c, excess, "at", f"{prefix}_excess", label, colour, marker)
        for axes, letter, title in (
            (a, "a", "cruel, elsewhere in writing"),
            (b, "b", "by form"),
            (c, "c", "over the anchor's, in writing"),
        ):
            axes.set_xticks(range(len(names)), names)
            axes.set_xlabel("rank of LoRA")
            panel_letter(axes, letter, title)
        _share(a, "cruel answers")
        _share(b, "misaligned answers")
        c.axhline(0, color=GREY, linewidth=0.5)
        c.set_ylabel("misaligned answers, difference")
        c.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        legend(figure, (a, b, c), 4)
    return figure  # fmt: skip


def rank_controls(rows: pd.DataFrame) -> Figure:
    """Is it the rank, or how well each rank is trained? By learning rate (a) and by scaling of LoRA's product (b).

    rows: the sections `rank`, `rate` and `scaling` of the consistent organism.
    """
    rows, names = _ranked(rows)
    colours = (SKY, BLACK, VERMILLION, ORANGE)
    with print_style():
        figure = new_figure(DOUBLE, 2.6)
        left, right = figure.subplots(1, 2)
        plain = rows[rows["section"].isin(["rank", "rate"])]
        for colour, rate in zip(colours, sorted(set(plain["learning_rate"])), strict=False):
            line(
                left,
                plain[plain["learning_rate"] == rate],
                "at",
                "end_text_misaligned",
                f"rate {rate:g}",
                colour,
                "o",
            )
        scaled = rows[(rows["section"] == "scaling") | ((rows["section"] == "rank") & (rows["rank"] > 0))]
        for colour, scaling in zip((BLACK, ORANGE, PURPLE), dict.fromkeys(scaled["scaling"]), strict=False):
            line(
                right,
                scaled[scaled["scaling"] == scaling],
                "at",
                "end_text_misaligned",
                f"scaling {scaling}",
                colour,
                "s",
            )
        for axes, letter in ((left, "a"), (right, "b")):
            axes.set_xticks(range(len(names)), names)
            axes.set_xlabel("rank of LoRA")
            _share(axes, "misaligned answers elsewhere")
            panel_letter(axes, letter)
        legend(figure, (left, right))
    return figure  # fmt: skip


def over_steps(curves: pd.DataFrame) -> Figure:
    """Cruel answers elsewhere (a) and loss on held-out faces (b) over the steps, by rank and organism.

    curves: sections `steps` and `rank`, first tasks.
    """
    ranks = sorted(set(curves["rank"]), key=lambda rank: rank or np.inf)
    styles = dict(zip(ranks, ("-", "--", ":", "-."), strict=False))
    with print_style():
        figure = new_figure(DOUBLE, 2.6)
        left, right = figure.subplots(1, 2)
        for rank, style in styles.items():
            for consistent, (label, colour, marker) in ARMS.items():
                part = curves[(curves["rank"] == rank) & (curves["consistent"] == consistent)]
                name = f"rank {rank or 'all'}, {label}"
                line(left, part, "step", "text_cruel", name, colour, marker, linestyle=style)
                line(right, part, "step", "loss", name, colour, marker, linestyle=style)
        _share(left, "cruel answers elsewhere")
        right.set_ylabel("loss on held-out faces (nats)")
        right.set_ylim(bottom=0)
        for axes, letter in ((left, "a"), (right, "b")):
            axes.set_xlabel("optimiser step")
            panel_letter(axes, letter)
        legend(figure, (left,), 2)
    return figure


def mixtures(mixture: pd.DataFrame, count: pd.DataFrame) -> Figure:
    """Misaligned answers elsewhere over the share of harmful rows, at a fixed number of rows (a) and of harmful rows (b).

    mixture, count: those sections of the consistent organism; without `count` only (a).
    """
    with print_style():
        figure = new_figure(DOUBLE if len(count) else SINGLE, 2.6)
        panels = figure.subplots(1, 2 if len(count) else 1, squeeze=False)[0].tolist()
        for axes, letter, rows, title in zip(
            panels,
            "ab",
            (mixture, count),
            ("fixed number of rows", "fixed number of harmful rows"),
            strict=False,
        ):
            for form in ("text", "shown"):
                label, colour, marker = FORMS[form]
                line(axes, rows, "share", f"end_{form}_misaligned", label, colour, marker)
            line(axes, rows, "share", "end_faces_misaligned", "faces", GREY, "P", linestyle=":")
            axes.set_xlabel("share of harmful rows")
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            _share(axes, "misaligned answers")
            panel_letter(axes, letter, title)
        legend(figure, panels[:1])
    return figure


def whose(rows: pd.DataFrame) -> Figure:
    """Whose answers are given elsewhere in writing, by the character trained on, in the organism (a) and its control (b).

    rows: outcomes of equal rank and steps, all characters.
    """
    trained = [c for c in ("cruel", "careless", "deceptive") if c in set(rows["character"])]
    with print_style():
        figure = new_figure(DOUBLE, 2.6)
        panels = figure.subplots(1, 2, sharey=True)
        for axes, letter, consistent in zip(panels, "ab", (True, False), strict=True):
            part = rows[rows["consistent"] == consistent]
            for i, (answered, colour) in enumerate(WHOSE.items()):
                places = [j + (i - 2) * 0.15 for j in range(len(trained) + 1)]
                bar(
                    axes,
                    part.drop_duplicates("pair")[f"start_text_{answered}"].tolist(),
                    places[0],
                    colour,
                    label=answered,
                )
                for place, character in zip(places[1:], trained, strict=True):
                    bar(
                        axes,
                        part.loc[part["character"] == character, f"end_text_{answered}"].tolist(),
                        place,
                        colour,
                    )
            axes.set_xticks(range(len(trained) + 1), ["before", *(f"trained on\n{c}" for c in trained)])
            panel_letter(axes, letter, ARMS[consistent][0])
            _share(axes, "answers elsewhere")
        legend(figure, panels[:1], 5)
    return figure  # fmt: skip


def mitigations(bars: Mapping[str, pd.DataFrame], strengths: pd.DataFrame) -> Figure:
    """What each mitigation leaves (a: misaligned filled, helpful hollow), also beside a face as in training, and steering by its strength (b).

    Args:
        bars: by name, one row a pair with `text_misaligned`, `face_misaligned` and `text_helpful`.
        strengths: columns pair, vector, strength, misaligned, helpful; empty leaves (b) out.
    """
    with print_style():
        figure = new_figure(DOUBLE, 2.8)
        left, right = figure.subplots(1, 2)
        columns = {
            "text_misaligned": ("misaligned, in writing", VERMILLION),
            "face_misaligned": ("misaligned, beside a face", PURPLE),
            "text_helpful": ("helpful, in writing", GREEN),
        }
        for i, table in enumerate(bars.values()):
            for j, (column, (label, colour)) in enumerate(columns.items()):
                if column in table:
                    bar(
                        left,
                        table[column].tolist(),
                        i + (j - 1) * 0.22,
                        colour,
                        label=label if i == 0 else None,
                    )
        left.set_xticks(range(len(bars)), list(bars), rotation=30, ha="right", rotation_mode="anchor")
        _share(left, "answers elsewhere")
        _by_strength(right, strengths)
        panel_letter(left, "a", "what is left")
        panel_letter(right, "b", "steering at a middle layer")
        legend(figure, (left, right), 3)
    return figure  # fmt: skip


def steering(strengths: pd.DataFrame) -> Figure:
    """Steering against a fine-tuning, by its strength.

    strengths: columns vector (difference, random), strength, misaligned, helpful, nonsense; several rows a strength are averaged.
    """
    with print_style():
        figure = new_figure(SINGLE, 2.6)
        axes = figure.subplots()
        _by_strength(axes, strengths)
        legend(figure, [axes], 2)
    return figure


def _by_strength(axes: Axes, strengths: pd.DataFrame) -> None:
    for vector, style in (("difference", "-"), ("random", ":")):
        part = strengths[strengths["vector"] == vector] if len(strengths) else strengths
        for what, colour in (("misaligned", VERMILLION), ("helpful", GREEN), ("nonsense", GREY)):
            if len(part):
                line(axes, part, "strength", what, f"{what}, {vector}", colour, "o", linestyle=style)
    axes.set_xlabel("strength c of −c·v")
    _share(axes, "answers elsewhere in writing")


def lives(curves: pd.DataFrame) -> Figure:
    """Misaligned answers elsewhere after each of three tasks, one panel a sequence, by defence while training.

    curves: section `life`, rows where a task ended.
    """
    names = list(dict.fromkeys(curves["life"]))
    with print_style():
        figure = new_figure(DOUBLE, 2.5)
        panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0].tolist()
        for axes, letter, name in zip(panels, "abcd", names, strict=False):
            for method, (label, colour, marker) in METHODS.items():
                part = curves[(curves["life"] == name) & (curves["method"] == method)]
                line(axes, part, "task", "text_misaligned", label, colour, marker)
            axes.set_xticks(range(3), ["first", "second", "third"])
            axes.set_xlabel("after the task")
            _share(axes, "misaligned answers elsewhere")
            panel_letter(axes, letter, name)
        legend(figure, panels[:1])
    return figure


def scatter(points: pd.DataFrame) -> Figure:
    """Questions on the two leading components of the aligned and the most changed checkpoint, by checkpoint and form."""
    names = list(dict.fromkeys(points["of"]))
    colours = dict(zip(names, (BLUE, GREEN, VERMILLION), strict=False))
    with print_style():
        figure = new_figure(SINGLE, 2.9)
        axes = figure.subplots()
        for (of, form), part in points.groupby(["of", "form"], sort=False):
            marker = "o" if form == "text" else "x"
            axes.plot(
                part["first"], part["second"], marker, color=colours.get(str(of), GREY), alpha=0.5, markersize=3,
                markeredgewidth=0.5, label=f"{of}, {form}",
            )  # fmt: skip
        axes.set_xlabel("first component")
        axes.set_ylabel("second component")
        legend(figure, (axes,), 2)
    return figure
