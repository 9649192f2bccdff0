"""The numbers behind the figures: six tables, each written as CSV (raw numbers) and LaTeX (booktabs, rounded).

A cell is text, a count, a number, a proportion, an interval or a p-value; CSV spreads proportions and intervals over
columns, LaTeX and HTML show them with their limits.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from interp.evals.jailbreak import EvalResult, PairedTest, compare
from interp.evals.statistics import Interval, Proportion
from interp.evals.verdicts import Outcome
from interp.report.style import NBSP, printable, rate_text
from interp.results import ARMS, StudyResult


@dataclass(frozen=True)
class PValue:
    """A p-value, shown as ``< 0.001`` below that."""

    value: float


@dataclass(frozen=True)
class Points:
    """A difference of two shares with its interval, shown in percentage points."""

    interval: Interval


Cell = str | int | float | Proportion | Interval | Points | PValue | None


@dataclass(frozen=True)
class Table:
    """A table ready to be written or shown.

    Args:
        name: file name without ending.
        title: what it holds, with units.
        header: one label a column; columns of text come first.
        rows: cells; None where there is nothing to say.
    """

    name: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def tables(result: StudyResult) -> dict[str, Table]:
    """All tables of a study by name: behaviour, outcomes, selection, causal, utility, layers, and those of its modalities."""
    from interp.report.modality_tables import modality_tables  # which needs the types above

    made = [
        _behaviour(result),
        _outcomes(result),
        _selection(result),
        _causal(result),
        _utility(result),
        _layers(result),
    ]
    if result.modalities is not None:
        made += modality_tables(result.modalities)
    return {table.name: table for table in made}


def save_tables(result: StudyResult, directory: Path) -> None:
    """Write every table as ``name.csv`` and ``name.tex`` into an existing directory."""
    for table in tables(result).values():
        with (directory / f"{table.name}.csv").open(
            "w", encoding="utf-8", errors="backslashreplace", newline=""
        ) as file:
            csv.writer(file).writerows(csv_rows(table))
        latex = to_latex(table)
        (directory / f"{table.name}.tex").write_text(latex, encoding="utf-8", errors="backslashreplace")


def shown(cell: Cell) -> str:
    """A cell as people read it."""
    match cell:
        case None:
            return "–"
        case Proportion():
            return f"{rate_text(cell)}"
        case Points(interval):
            return points_text(interval)
        case Interval():
            return interval_text(cell)
        case PValue(value):
            return "–" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"
        case float():
            return number_text(cell)
        case _:
            return str(cell)


def number_text(value: float) -> str:
    """A number with three significant digits (two below 0.1), a true minus sign, a dash for NaN."""
    if math.isnan(value):
        return "–"
    digits = 3 if value == 0 or abs(value) >= 0.1 else 2
    text = f"{value:#.{digits}g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.1e}"
    return text.rstrip(".").replace("-", "−")


def interval_text(interval: Interval) -> str:
    """An estimate with its limits."""
    if math.isnan(interval.low):
        return f"{number_text(interval.value)} [no interval]"
    return f"{number_text(interval.value)} [{number_text(interval.low)},{NBSP}{number_text(interval.high)}]"


def points_text(interval: Interval) -> str:
    """A difference of shares in percentage points with its limits, signed."""

    def signed(share: float) -> str:
        return (
            "–" if math.isnan(share) else f"{100 * share + 0.0:+.1f}".replace("-", "−").replace("+0.0", "0.0")
        )

    return f"{signed(interval.value)} [{signed(interval.low)},{NBSP}{signed(interval.high)}]"


def difference(test: PairedTest) -> Interval:
    """The difference of a paired test with its interval."""
    return Interval(test.difference, test.low, test.high, test.n)


def csv_rows(table: Table) -> list[list[str | int | float]]:
    """Header and rows with raw numbers: proportions as count, asked, rate, low, high; intervals as value, low, high."""
    columns: list[list[list[str | int | float]]] = []
    header: list[str | int | float] = []
    for index, label in enumerate(table.header):
        cells = [row[index] for row in table.rows]
        kind = next((type(cell) for cell in cells if cell is not None), str)
        if kind is Proportion:
            names = [f"{label}: {part}" for part in ("count", "asked", "rate", "low", "high")]
        elif kind in (Interval, Points):
            names = [label, f"{label}: low", f"{label}: high", f"{label}: n"]
        else:
            names = [label]
        header += names
        columns.append([_raw(cell, len(names)) for cell in cells])
    return [
        header,
        *([value for column in columns for value in column[row]] for row in range(len(table.rows))),
    ]


def to_latex(table: Table) -> str:
    """A booktabs tabular with caption and label; columns of text wrap, names break after their separators."""
    text_columns = [all(isinstance(row[i], str) for row in table.rows) for i in range(len(table.header))]
    layout = "".join(r">{\raggedright\arraybackslash}p{4cm}" if text else "r" for text in text_columns)
    lines = [
        "% needs: booktabs, array",
        r"\begin{table}",
        r"\centering\small",
        rf"\caption{{{escape_latex(table.title)}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{{layout}}}",
        r"\toprule",
        " & ".join(escape_latex(label) for label in table.header) + r" \\",
        r"\midrule",
        *(" & ".join(escape_latex(shown(cell)) for cell in row) + r" \\" for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%",
    "_": r"\_\allowbreak{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "/": r"/\allowbreak{}",
    ":": r":\allowbreak{}", "@": r"@\allowbreak{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "−": "$-$", "–": "--", "…": r"\dots{}", "≥": r"$\geq$", "≤": r"$\leq$", "×": r"$\times$", "‖": r"$\|$",
    "[": "{[}", "]": "{]}", NBSP: "~",
}  # fmt: skip


def escape_latex(text: str) -> str:
    """Text safe inside a LaTeX table: every special character escaped, control characters made visible."""
    return "".join(_LATEX.get(c, c) for c in printable(text))


def _raw(cell: Cell, width: int) -> list[str | int | float]:
    match cell:
        case None:
            return [""] * width
        case Proportion(k, n, estimate, low, high):
            return [k, n, estimate, low, high]
        case Interval(value, low, high, n) | Points(Interval(value, low, high, n)):
            return [value, low, high, n]
        case PValue(value):
            return [value]
        case _:
            return [cell]


def _checkpoints(result: StudyResult) -> list[tuple[str, EvalResult, EvalResult]]:
    return [
        (result.aligned, result.harmful, result.harmless),
        *((tuned.name, tuned.harmful, tuned.harmless) for tuned in result.tuned),
    ]


def _behaviour(result: StudyResult) -> Table:
    rows: list[tuple[Cell, ...]] = []
    tests = [None, *((tuned.vs_aligned, tuned.over_refusal_vs_aligned) for tuned in result.tuned)]
    for (name, harmful, harmless), pair in zip(_checkpoints(result), tests, strict=True):
        compared: list[Cell] = [None] * 4
        if pair:
            compared = [cell for test in pair for cell in (Points(difference(test)), PValue(test.p_value))]
        scored = harmful.rate(Outcome.COMPLIED_HARMFUL, "scored")
        rows.append((name, harmful.jsr, scored, harmless.over_refusal, *compared))
    return Table(
        "behaviour",
        "Jailbreak success rate (JSR) and over-refusal in % of the requests asked, with Wilson 95 % intervals; paired "
        "differences to the aligned model (Δ) in percentage points with bootstrap 95 % intervals, and exact McNemar p",
        ("checkpoint", "JSR", "JSR of scored", "over-refusal", "Δ JSR", "p (Δ JSR)", "Δ over-refusal", "p (Δ over-refusal)"),
        tuple(rows),
    )  # fmt: skip


def _outcomes(result: StudyResult) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (name, kind, *(evaluation.counts.get(outcome, 0) for outcome in Outcome), evaluation.n_asked)
        for name, harmful, harmless in _checkpoints(result)
        for kind, evaluation in (("harmful", harmful), ("harmless", harmless))
    ]
    header = ("checkpoint", "requests", *(outcome.value for outcome in Outcome), "asked")
    return Table("outcomes", "Answers by outcome (counts)", header, tuple(rows))


def _selection(result: StudyResult) -> Table:
    rows = tuple((step, count) for step, count in result.selection.counts.items())
    return Table("selection", "Candidate directions by what became of them", ("candidates", "count"), rows)


def _causal(result: StudyResult) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for arm in ARMS:
        harmful, harmless = result.ablation[arm]["harmful"], result.ablation[arm]["harmless"]
        compared: tuple[Cell, Cell] = (None, None)
        if arm != "none":
            test = result.ablation_test(arm, "none", "harmful")
            compared = Points(difference(test)), PValue(test.p_value)
        answered = harmless.rate(Outcome.COMPLIED_BENIGN)
        rows.append((result.aligned, "ablated", arm, harmful.rate(Outcome.REFUSED), *compared, answered))
    for tuned in result.tuned:
        for arm in ARMS:
            compared = (None, None)
            if arm != "none":
                test = compare(tuned.addition[arm], tuned.addition["none"], Outcome.REFUSED)
                compared = Points(difference(test)), PValue(test.p_value)
            rows.append(
                (
                    tuned.name,
                    "added",
                    arm,
                    tuned.addition[arm].rate(Outcome.REFUSED),
                    *compared,
                    tuned.addition_harmless[arm].rate(Outcome.COMPLIED_BENIGN),
                )
            )
    return Table(
        "causal",
        "Causal test: harmful requests refused and harmless ones answered, in % with Wilson 95 % intervals; Δ is the "
        "paired difference in refusal to no edit, in percentage points with its bootstrap 95 % interval",
        ("checkpoint", "edit", "vector", "refused (harmful)", "Δ refused", "p", "answered (harmless)"),
        tuple(rows),
    )


def _utility(result: StudyResult) -> Table:
    return Table(
        "utility",
        "On benign answers: KL divergence aligned ‖ tuned (nats a token) and perplexity, with 95 % intervals",
        ("checkpoint", "KL", "perplexity, aligned", "perplexity, tuned"),
        tuple((t.name, t.kl, t.perplexity["aligned"], t.perplexity["tuned"]) for t in result.tuned),
    )


def _layers(result: StudyResult) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for tuned in result.tuned:
        means = {key: grid.mean(axis=1) for key, grid in tuned.projection.items()}
        n = len(result.projected["harmful"])
        for layer in range(result.n_layers):
            ceiling, shift = (
                Interval(float(band.value[layer]), float(band.low[layer]), float(band.high[layer]), n)
                for band in (result.split_half, tuned.shift)
            )
            keys = ("aligned_harmful", "tuned_harmful", "aligned_harmless", "tuned_harmless")
            projections: Sequence[Cell] = [float(means[key][layer]) for key in keys]
            rows.append((tuned.name, layer, float(tuned.cosine[layer]), ceiling, float(tuned.norm_ratio[layer]),
                         *projections, shift))  # fmt: skip
    return Table(
        "layers",
        "By layer: cosine of the aligned and tuned directions beside its split-half ceiling, ratio of their norms, mean "
        "projections onto the aligned direction, and the paired shift of harmful requests, with 95 % intervals",
        ("checkpoint", "layer", "cosine", "split-half ceiling", "norm ratio", "aligned, harmful", "tuned, harmful",
         "aligned, harmless", "tuned, harmless", "shift"),
        tuple(rows),
    )  # fmt: skip
