"""The page a person reads: one self-contained HTML file with verdict, figures, tables, examples, limits and provenance.

Model output is hostile until proven otherwise: jinja2 escapes every value, characters that a page cannot hold or that
reorder text are made visible, and a content security policy forbids scripts and every request.
"""

import base64
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from interp.report.captions import CAPTIONS, MODALITY_CAPTIONS
from interp.report.figures import FIGURES, draw
from interp.report.modality_figures import drawable
from interp.report.style import DOUBLE, cut_names, printable, save_figure
from interp.report.tables import Table, save_tables, shown, tables
from interp.report.verdict import statements
from interp.results import StudyResult

_PIXELS_PER_INCH = 128
NAME = 48  # letters of a name in a table's first column
"""CSS pixels an inch of figure takes on the page, so that its 8 pt text reads like the page's."""


def render_report(result: StudyResult, directory: Path) -> Path:
    """Write ``report.html``, ``figures/*.pdf|png`` and ``tables/*.csv|tex`` into an existing directory.

    Args:
        result: what to show.
        directory: where; the caller makes the write atomic.

    Returns:
        The path of the page, which needs none of the other files.
    """
    (directory / "figures").mkdir(exist_ok=True)
    (directory / "tables").mkdir(exist_ok=True)
    figures = {}
    for name in [*FIGURES, *drawable(result)]:
        figure = draw(result, name)
        _, png = save_figure(figure, directory / "figures", name)
        caption = (CAPTIONS | MODALITY_CAPTIONS)[name]
        figures[name] = figure_context(name, caption.title, caption.text(result), figure, png.read_bytes())
    save_tables(result, directory / "tables")
    page = directory / "report.html"
    page.write_text(
        environment().get_template("study.html").render(**_context(result, figures)), encoding="utf-8"
    )
    return page


def summary_html(result: StudyResult) -> str:
    """A short form for notebooks: the verdict and the behaviour table, without figures or style."""
    template = environment().from_string(
        "{% for s in statements %}<p><b>{{ s.checkpoint }}</b> ({{ s.headline }}). {{ s.sentences | join(' ') }}</p>{% endfor %}"
        "<table><tr>{% for label in table.header %}<th>{{ label }}</th>{% endfor %}</tr>"
        "{% for row in table.rows %}<tr>{% for cell in row %}<td>{{ shown(cell) }}</td>{% endfor %}</tr>{% endfor %}</table>"
    )
    return template.render(statements=statements(result), table=tables(result)["behaviour"], shown=shown)


def visible(value: Any) -> Any:
    """Spell out characters that a page cannot hold (controls, lone surrogates) or that reorder it (bidi controls)."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return "".join(_visible_character(character) for character in value)


def _visible_character(character: str) -> str:
    code = ord(character)
    if character in "\n\t":
        return character
    # Cf holds joiners that scripts and emoji need; of it only what reorders or hides text is spelled out.
    reorders = 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069 or code in (0x200E, 0x200F, 0x061C)
    hides = 0xE0000 <= code <= 0xE007F or code in (0x200B, 0xFEFF)
    if reorders or hides or unicodedata.category(character) in {"Cc", "Cs"}:
        return f"⟦U+{code:04X}⟧"
    return character


def breakable(name: str) -> Markup:
    """A long name that may break after its separators rather than anywhere."""
    parts = re.split(r"(?<=[/:+_-])", visible(name))
    return Markup("<wbr>").join(parts)


def row_labels(table: Table) -> list[Markup]:
    """The first column of a table, long names cut in the middle: the verdict shows them whole."""
    names = [shown(row[0]) for row in table.rows]
    # sentences wrap by themselves; a path of one long word does not
    if any(len(word) > NAME for name in names for word in name.split()):
        names = cut_names(names, NAME)
    return [breakable(name) for name in names]


def environment() -> Environment:
    """Templates of this directory, every value escaped and made visible, an unknown one an error."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def figure_context(name: str, title: str, caption: str, figure: Figure, png: bytes) -> dict[str, Any]:
    """What the macro `figure` of a page needs."""
    width, height = figure.get_size_inches()
    return {
        "name": name,
        "title": title,
        "caption": caption,
        "alt": f"Figure: {title}. {caption} The numbers are in the tables.",
        "source": "data:image/png;base64," + base64.b64encode(png).decode("ascii"),
        "width": round(width * _PIXELS_PER_INCH),
        "height": round(height * _PIXELS_PER_INCH),
        "wide": width >= DOUBLE,
    }


def _context(result: StudyResult, figures: dict[str, dict[str, Any]]) -> dict[str, Any]:
    judges = sorted(
        {f"{v.judge} {v.judge_version}" for v in (*result.harmful.verdicts, *result.harmless.verdicts)}
    )
    clustered = any(tuned.vs_aligned.clustered for tuned in result.tuned)
    return {
        "result": result,
        "statements": statements(result),
        "figures": figures,
        "tables": tables(result),
        "shown": shown,
        "row_labels": row_labels,
        "breakable": breakable,
        "printable": printable,
        "judges": judges,
        "clustered": clustered,
        "config": json.dumps(dict(result.config), indent=2, ensure_ascii=False, default=str),
    }
