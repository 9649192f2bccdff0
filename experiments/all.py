"""Do the papers' claims come out in the organisms? Every experiment in order, and one page of claims, figures and tables.

`interp run all`, `python -m experiments.all` or `make papers`; `--quick` is a look with one seed each and claims nothing, `--paper ID` takes
that paper alone. Finished experiments are read back. Writes `results/papers/` (`papers-quick/`, `papers-ID/`): `index.html`, which links every
figure and table beside the source's claim and what was measured (`experiments/published.yaml`), `claims.csv`, and `pdf/`, the figures as they
go to print. `--docs docs/PAPERS.md` writes the claims of the papers that were run into that page.
"""

import csv
import importlib
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from interp import cli, scripts
from interp.errors import UserError
from interp.files import replace_between, replacing_files
from interp.report.claims import Paper, PaperResult, claims_table, read_papers
from interp.report.page import Page, Section, render_page
from interp.report.tables import Table, csv_rows, shown
from interp.store import command_line, versions

PUBLISHED = Path(__file__).with_name("published.yaml")


def run(papers: Sequence[Paper], *, quick: bool, out: Path) -> dict[str, PaperResult]:
    """Run the experiment of every paper that has one; by the paper's id."""
    there, found = scripts.available("experiments"), {}
    for paper in papers:
        if paper.experiment not in there:
            print(f"{paper.id}: there is no experiment {paper.experiment} yet")
            continue
        print(f"{paper.id}: experiments.{paper.experiment}", flush=True)
        found[paper.id] = _module(paper.experiment).for_papers(quick=quick, out=out)
    return found


def _module(name: str) -> Any:
    return importlib.import_module(f"experiments.{name}")


def write(papers: Sequence[Paper], found: Mapping[str, PaperResult], target: Path, *, quick: bool) -> Path:
    """Write the index page, the table of all claims and the figures for print; returns the page."""
    with replacing_files(target) as aside:
        (aside / "pdf").mkdir()
        sections = []
        with (aside / "claims.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            for paper in papers:
                result = found.get(paper.id, PaperResult({}, ()))
                table = claims_table(paper, result.measured)
                writer.writerows([[], [paper.title, paper.source], *csv_rows(table)])
                links = [_printed(paper, path, result, aside) for path in result.files(".pdf")]
                links += [
                    (os.path.relpath(path.resolve(), target.resolve()), f"{_name(path, result)}")
                    for path in result.files(".csv", ".html", ".md")
                ]
                sections.append(
                    Section(
                        paper.title, _about(paper, paper.id in found), tables=(table,), links=tuple(links)
                    )
                )
        lead = "Quick settings: one seed each, a look that claims nothing." if quick else (
            "An outcome is read off the 95 % interval and a margin; every number is of small organisms and says nothing of large models."
        )  # fmt: skip
        page = Page(
            "The papers' claims in the organisms",
            lead,
            tuple(sections),
            {"command": command_line(), **versions()},
        )
        render_page(page, aside, "index.html")
    return target / "index.html"


def _about(paper: Paper, measured: bool) -> tuple[str, ...]:
    models = ", ".join(paper.models)
    tested = f"Shown by the source on {models}, which are not tested here."
    return (
        (tested,)
        if measured
        else (tested, f"The experiment {paper.experiment} does not exist yet: nothing was measured.")
    )


def _printed(paper: Paper, path: Path, result: PaperResult, aside: Path) -> tuple[str, str]:
    name = _name(path, result)
    printed = f"pdf/{paper.id}-{name.replace('/', '-')}"
    shutil.copyfile(path, aside / printed)
    return printed, name


def _name(path: Path, result: PaperResult) -> str:
    """A file by its directory, where an experiment has several, and its place there."""
    home = next(directory for directory in result.directories if directory in path.parents)
    inner = path.relative_to(home).as_posix()
    return inner if len(result.directories) == 1 else f"{home.name}/{inner}"


def write_docs(papers: Sequence[Paper], found: Mapping[str, PaperResult], page: Path) -> None:
    """Put each run paper's claims and outcomes between its markers of a page."""
    for paper in papers:
        if paper.id in found:
            header, *rows = in_words(claims_table(paper, found[paper.id].measured))
            lines = [header, ["---"] * len(header), *rows]
            body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
            replace_between(page, f"<!-- claims: {paper.id} -->", f"<!-- end of claims: {paper.id} -->", body)


def in_words(table: Table) -> list[list[str]]:
    """Header and rows as people read them."""
    return [[shown(cell) for cell in row] for row in (table.header, *table.rows)]


def experiment(
    quick: Annotated[bool, typer.Option("--quick", help="One seed each: a look, no claim.")] = False,
    paper: Annotated[
        list[str] | None, typer.Option(help="Only this paper, by its id; may be given again.")
    ] = None,
    docs: Annotated[Path | None, typer.Option(help="Write the claims into this page.")] = None,
    out: Annotated[Path, typer.Option(help="Where results are kept.")] = Path("results"),
) -> None:
    """Run every paper's experiment and write the page of claims."""
    if quick and docs is not None:
        raise UserError("--docs takes the full runs: quick ones claim nothing")
    every = read_papers(PUBLISHED)
    if unknown := set(paper or ()) - {one.id for one in every}:
        raise UserError(f"no paper {min(unknown)!r}; there are: {', '.join(one.id for one in every)}")
    papers = [one for one in every if not paper or one.id in paper]
    found = run(papers, quick=quick, out=out)
    # a page of some papers does not take the place of one of all
    name = "-".join(["papers", *([one.id for one in papers] if paper else []), *(["quick"] if quick else [])])
    page = write(papers, found, out / name, quick=quick)
    if docs is not None:
        write_docs(papers, found, docs)
    print(f"claims: {page}\nfigures for print: {page.parent / 'pdf'}")


def main(argv: Sequence[str]) -> int:
    """Run all experiments with a command line."""
    return scripts.call(experiment, argv, "interp run all", "interp run all --quick")


if __name__ == "__main__":
    raise SystemExit(cli.main(["run", "all", *sys.argv[1:]]))
