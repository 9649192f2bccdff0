"""How does every figure look? Print widths, fonts, colours that colour-blind readers tell apart, and label helpers.

Colours: Okabe & Ito (2008), "Color Universal Design". DejaVu Sans ships with matplotlib, so figures look the same on
every machine; fonts are embedded as Type 42, as publishers ask.
"""

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from interp.evals.statistics import Proportion
from interp.evals.verdicts import Outcome

NBSP = "\u00a0"
SINGLE = 3.35
DOUBLE = 6.9
"""Widths of one and of two printed columns, in inches."""

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
GREY, PALE = "#7F7F7F", "#E4E4E4"

ALIGNED, TUNED = BLUE, VERMILLION
SERIES = (VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P")

OUTCOMES: dict[Outcome, tuple[str, str, str]] = {
    Outcome.COMPLIED_HARMFUL: ("complied, harmful", VERMILLION, ""),
    Outcome.REFUSED: ("refused", BLUE, ""),
    Outcome.COMPLIED_BENIGN: ("complied, benign", GREEN, ""),
    Outcome.INCOHERENT: ("incoherent", YELLOW, "////"),
    Outcome.EMPTY: ("empty", PALE, ""),
    Outcome.UNSCORED: ("unscored", "#FFFFFF", "xxxx"),
}
"""Label, colour and hatch of each outcome."""

ARM_STYLES: dict[str, tuple[str, str]] = {
    "none": ("no edit", GREY),
    "direction": ("refusal direction", VERMILLION),
    "random": ("random direction", SKY),
    "shuffled": ("shuffled labels", ORANGE),
}
"""Label and colour of each arm of the causal test."""

_PARAMETERS: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "hatch.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "axes.unicode_minus": True,
}


@contextmanager
def print_style() -> Iterator[None]:
    """Apply the print style inside the block and nowhere else."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_PARAMETERS)  # type: ignore[arg-type]
        yield


class PrintFigure(Figure):
    """A figure that shows itself in Jupyter whatever matplotlib backend is active there."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=150)
        return buffer.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches, laid out so that nothing overlaps, drawn without a display."""
    figure = PrintFigure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.04, wspace=0.04, hspace=0.06)  # type: ignore[call-arg, union-attr]
    return figure


def save_figure(figure: Figure, directory: Path, name: str) -> tuple[Path, Path]:
    """Write ``name.pdf`` (vector, fonts embedded) and ``name.png`` (220 dpi) into `directory`; return both paths."""
    pdf, png = directory / f"{name}.pdf", directory / f"{name}.png"
    with print_style():
        # No creation date: the same result gives the same bytes.
        figure.savefig(pdf, metadata={"CreationDate": None})
        figure.savefig(png, dpi=220, metadata={"Software": None})
    return pdf, png


def panel_letter(axes: Axes, letter: str, title: str = "") -> None:
    """Put a bold panel letter above the top left corner of the axes, and after it a title already made :func:`plain`."""
    axes.set_title(rf"$\mathbf{{{letter}}}$  {title}".rstrip(), loc="left", fontsize=7.5, linespacing=1.15)


def layer_axis(axes: Axes, n_layers: int, label: str | None = "layer") -> None:
    """Make x the layer axis: whole numbers, half a layer of margin, `label` beneath unless None."""
    axes.set_xlim(-0.5, n_layers - 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=2))
    if label:
        axes.set_xlabel(label)


def printable(text: str) -> str:
    """Text with control characters and the like spelled out as Python would, e.g. a newline as ``\\n``."""
    return "".join(
        c if c.isprintable() or c == NBSP else c.encode("unicode_escape").decode("ascii") for c in text
    )


def plain(text: str) -> str:
    """Text safe to draw: control characters made visible, no accidental mathematics."""
    return printable(text).replace("$", r"\$")


def rate_text(rate: Proportion) -> str:
    """A proportion with its interval, e.g. ``61 % [54, 68]``, unbroken at the percent sign and inside the brackets."""
    if rate.n == 0:
        return "none asked"
    return f"{percent(rate.estimate)}{NBSP}% [{percent(rate.low)},{NBSP}{percent(rate.high)}]"


def percent(share: float) -> str:
    """A share in percent: whole numbers, one decimal where rounding would claim 0 or 100, a dash for NaN."""
    if math.isnan(share):
        return "–"
    value = 100 * share
    whole = f"{value:.0f}"
    if abs(value - round(value)) > 1e-9 and whole.lstrip("-") in {"0", "100"}:
        whole = f"{value:.1f}"
    return whole.replace("-", "−")


def short_names(names: Sequence[str], width: int = 20, lines: int = 2) -> list[str]:
    """Names to draw: at most `lines` lines of `width` characters, the middle cut out of longer ones, still distinct.

    Args:
        names: names in drawing order; equal names stay equal.
        width: characters a line.
        lines: lines a name.
    """
    for length in range(width * lines, width, -1):
        wrapped = [_wrap(name, width) for name in cut_names(names, length)]
        if max(map(len, wrapped)) <= lines:
            break
    else:
        wrapped = [[name] for name in cut_names(names, width)]
    return ["\n".join(plain(line) for line in name) for name in wrapped]


def cut_names(names: Sequence[str], length: int) -> list[str]:
    """Names of at most `length` characters, the middle cut out of longer ones; different names stay different."""
    taken: dict[str, str] = {}
    for name in names:
        short = _cut(printable(name), length)
        if name not in taken and short in taken.values():
            mark = f" ({len(taken) + 1})"
            short = _cut(printable(name), length - len(mark)) + mark
        taken.setdefault(name, short)
    return [taken[name] for name in names]


def _cut(name: str, length: int) -> str:
    if len(name) <= length:
        return name
    tail = (length - 1) * 3 // 5
    return f"{name[: length - 1 - tail]}…{name[-tail:]}"


def _wrap(text: str, width: int) -> list[str]:
    """Break after separators where one lies in the second half of the line, else at the width."""
    lines = []
    while len(text) > width:
        breaks = [match.end() for match in re.finditer(r"[/:@+_\-.\s]", text[:width])]
        at = breaks[-1] if breaks and breaks[-1] > width // 2 else width
        lines.append(text[:at].rstrip())
        text = text[at:]
    return [*lines, text]
