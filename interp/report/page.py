"""How does a page look that is no study's? Sections of sentences, figures, tables and links, in the style of the study's page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from interp.report.html import environment, figure_context, row_labels
from interp.report.style import save_figure
from interp.report.tables import Table, shown


@dataclass(frozen=True)
class PageFigure:
    """A figure with what stands under it."""

    title: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it: sentences, figures by name, tables, links as (target, label)."""

    title: str
    sentences: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    links: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Page:
    """A title, a line under it, sections, and where everything comes from."""

    title: str
    lead: str
    sections: tuple[Section, ...]
    provenance: Mapping[str, str]
    figures: Mapping[str, PageFigure] = field(default_factory=dict)


def render_page(page: Page, directory: Path, name: str = "report.html") -> Path:
    """Write the page, and its figures as ``figures/*.pdf|png``, into an existing directory; the page needs no other file."""
    drawn = {}
    for figure, content in page.figures.items():
        (directory / "figures").mkdir(exist_ok=True)
        _, png = save_figure(content.figure, directory / "figures", figure)
        drawn[figure] = figure_context(
            figure, content.title, content.caption, content.figure, png.read_bytes()
        )
    path = directory / name
    text = (
        environment()
        .get_template("page.html")
        .render(page=page, figures=drawn, shown=shown, row_labels=row_labels)
    )
    path.write_text(text, encoding="utf-8")
    return path
