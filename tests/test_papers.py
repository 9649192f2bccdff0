"""Outcomes are read off intervals and margins, and the index page links every figure and table there is."""

import csv
import html
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments import all as papers
from interp import cli, scripts
from interp.errors import ResultError, UserError
from interp.evals.statistics import Interval
from interp.report.claims import ABSENT, NOT, OPEN, REPRODUCED, Claim, PaperResult, claims_table, read_papers
from interp.report.tables import shown

ALL = read_papers(papers.PUBLISHED)


def claim(expects, margin):
    return Claim(id="c", text="t", published="p", measure="m", unit="u", expects=expects, margin=margin)


@pytest.mark.parametrize(
    ("expects", "low", "high", "word"),
    [
        ("above", 0.11, 0.3, REPRODUCED),
        ("above", 0.05, 0.3, OPEN),
        ("above", -0.2, 0.1, NOT),
        ("below", -0.3, 0.09, REPRODUCED),
        ("below", 0.05, 0.3, OPEN),
        ("below", 0.1, 0.3, NOT),
        ("within", -0.09, 0.05, REPRODUCED),
        ("within", -0.2, 0.05, OPEN),
        ("within", 0.1, 0.3, NOT),
        ("within", -0.3, -0.1, NOT),
        ("above", math.nan, math.nan, OPEN),
    ],
)
def test_the_word_is_read_off_the_interval_and_the_margin(expects, low, high, word):
    assert claim(expects, 0.1).outcome(Interval((low + high) / 2, low, high, 8)) == word
    assert claim(expects, 0.1).outcome(None) == ABSENT


def test_the_data_file_names_experiments_sources_and_margins():
    assert [paper.experiment for paper in ALL] == [
        "text_organism",
        "audio_benign",
        "vlm_narrow",
        "spf",
        "sarsteer",
    ]
    assert all(re.search(r"arXiv \d{4}\.\d{5}", paper.source) for paper in ALL)
    measures = [c.measure for paper in ALL for c in paper.claims]
    assert len(measures) == len(set(measures))


def test_a_damaged_data_file_is_named(tmp_path):
    path = tmp_path / "published.yaml"
    text = papers.PUBLISHED.read_text()
    for old, new, said in (
        ("expects: above", "expects: over", r"claims\.\d+\.expects"),
        ("id: rank\n", "id: mixture\n", "'vlm-narrow/mixture' stands twice"),
        ("papers:", "essays:", "cannot be read as a list of papers"),
    ):
        path.write_text(text.replace(old, new))
        with pytest.raises(ResultError, match=said):
            read_papers(path)


@pytest.fixture
def faked(monkeypatch, tmp_path):
    """Two experiments that are there, and what they leave."""
    directories = [tmp_path / "results" / "study" / f"seed-{i}" for i in range(2)]
    for directory in directories:
        for name in ("figures/layers.pdf", "tables/layers.csv", "report.html", "notes.txt"):
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(b"%PDF-1.4" if name.endswith("pdf") else b"x")
    (tmp_path / "results" / "spf").mkdir()
    (tmp_path / "results" / "spf" / "pareto.pdf").write_bytes(b"%PDF-1.4")
    made = {
        "text_organism": PaperResult(
            {"ablated_jsr": Interval(0.8, 0.7, 0.9, 5), "ablated_random_jsr": Interval(0.0, -0.01, 0.01, 5)},
            tuple(directories),
        ),
        "spf": PaperResult(
            {"spf_minus_mixing_jsr": Interval(0.35, 0.18, 0.51, 7)}, (tmp_path / "results" / "spf",)
        ),
    }
    asked = []

    def module(name):
        def for_papers(**options):
            asked.append((name, options))
            return made[name]

        return SimpleNamespace(for_papers=for_papers)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(papers, "_module", module)
    monkeypatch.setattr(scripts, "available", lambda package: {"text_organism": "", "spf": "", "demo": ""})
    return asked


def test_the_page_links_what_there_is_and_names_what_there_is_not(faked, tmp_path, capsys):
    papers.experiment(quick=True)
    assert [name for name, _ in faked] == ["text_organism", "spf"]
    assert all(options["quick"] is True for _, options in faked)
    home = tmp_path / "results" / "papers-quick"
    page = (home / "index.html").read_text()
    links = re.findall(r'href="([^#"]+)"', page)
    assert links and all((home / link).exists() for link in links)
    assert {link for link in links if link.startswith("pdf/")} == {
        "pdf/refusal-direction-seed-0-figures-layers.pdf", "pdf/refusal-direction-seed-1-figures-layers.pdf", "pdf/spf-pareto.pdf",
    }  # fmt: skip
    assert sum(link.endswith("tables/layers.csv") for link in links) == 2 and not any(
        link.endswith(".txt") for link in links
    )
    assert "0.350 [0.180, 0.510]" in page.replace("\xa0", " ") and NOT in page and REPRODUCED in page
    assert "The experiment audio_benign does not exist yet" in page
    for paper in ALL:
        for one in paper.claims:
            assert one.text in html.unescape(page.replace("<wbr>", "")), "a claim is shown whole"
    assert "Kimi-Audio, Audio Flamingo 3, Qwen2.5-Omni, which are not tested here" in page
    said = capsys.readouterr().out
    assert "there is no experiment vlm_narrow yet" in said
    with (home / "claims.csv").open(newline="") as file:
        rows = [row for row in csv.reader(file) if row and row[-1] in (REPRODUCED, NOT, OPEN, ABSENT)]
    assert len(rows) == sum(len(paper.claims) for paper in ALL)
    assert [row[-1] for row in rows[:2]] == [REPRODUCED, REPRODUCED]


def test_some_papers_have_a_page_of_their_own_and_write_into_the_docs(faked, tmp_path):
    page = tmp_path / "PAPERS.md"
    marks = [(f"<!-- claims: {paper.id} -->", f"<!-- end of claims: {paper.id} -->") for paper in ALL]
    page.write_text("\n".join(f"{begin}\nNot run.\n{end}" for begin, end in marks))
    papers.experiment(paper=["spf", "audio-benign"], docs=page)
    assert [name for name, _ in faked] == ["spf"]
    assert (tmp_path / "results" / "papers-audio-benign-spf" / "index.html").is_file()
    assert not (tmp_path / "results" / "papers").exists()
    text = page.read_text()
    inside = text.split("<!-- claims: spf -->")[1].split("<!-- end")[0]
    rows = [line for line in inside.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(next(paper for paper in ALL if paper.id == "spf").claims)
    assert "0.350 [0.180, 0.510]" in inside.replace("\xa0", " ") and NOT in inside
    assert text.count("Not run.") == len(ALL) - 1, "what was not run stays as it was"
    with pytest.raises(UserError, match="no paper 'spv'; there are: refusal-direction, audio-benign"):
        papers.experiment(paper=["spv"])
    with pytest.raises(UserError, match="quick ones claim nothing"):
        papers.experiment(quick=True, docs=page)


def test_the_docs_have_a_place_for_every_paper():
    text = (Path(papers.__file__).parents[1] / "docs" / "PAPERS.md").read_text()
    for paper in ALL:
        assert (
            text.count(f"<!-- claims: {paper.id} -->")
            == text.count(f"<!-- end of claims: {paper.id} -->")
            == 1
        )
        assert paper.title in text and paper.source.split(", ")[-1].removeprefix("arXiv ") in text


def test_a_claims_table_has_a_row_a_claim_and_no_bare_number():
    paper = ALL[0]
    table = claims_table(paper, {"ablated_jsr": Interval(0.2, 0.1, 0.35, 5)})
    assert [row[-1] for row in table.rows] == [OPEN, ABSENT, ABSENT]
    assert table.rows[0][3] == "> 0.3" and table.rows[1][3] == "within ±0.05"
    dust = claims_table(paper, {"ablated_jsr": Interval(-1e-18, -3e-18, 2e-18, 5)}).rows[0]
    assert shown(dust[-2]).replace("\xa0", " ") == "0.00 [0.00, 0.00]"


def test_the_command_is_there(capsys):
    assert cli.main(["run", "all", "--help"]) == 0
    assert "interp run all --quick" in capsys.readouterr().out
