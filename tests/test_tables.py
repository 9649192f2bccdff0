"""Tables carry the raw numbers in CSV and escaped, rounded ones in LaTeX."""

import csv
import math
import re

import pytest
from study_fixture import BENIGN_NAME, N_LAYERS, study_result

from interp.evals.statistics import Interval, Proportion
from interp.report.tables import (
    Points,
    PValue,
    Table,
    csv_rows,
    escape_latex,
    save_tables,
    shown,
    tables,
    to_latex,
)


def test_csv_keeps_raw_numbers(tmp_path):
    save_tables(study_result(3), tmp_path)
    with (tmp_path / "behaviour.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    row = next(row for row in rows if row["checkpoint"] == BENIGN_NAME)
    assert (row["JSR: count"], row["JSR: asked"], float(row["JSR: rate"])) == ("122", "200", 0.61)
    assert float(row["JSR of scored: rate"]) == pytest.approx(122 / 199)
    assert float(row["Δ JSR"]) == pytest.approx(0.59) and float(row["p (Δ JSR)"]) < 1e-20
    assert rows[0]["Δ JSR"] == ""
    with (tmp_path / "layers.csv").open(newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 3 * N_LAYERS
    assert {path.suffix for path in tmp_path.iterdir()} == {".csv", ".tex"}


def test_every_row_is_as_wide_as_its_header():
    for table in tables(study_result(6)).values():
        assert {len(row) for row in table.rows} == {len(table.header)}, table.name
        assert len({len(row) for row in csv_rows(table)}) == 1, table.name


def test_outcomes_add_up_to_the_asked():
    for row in tables(study_result(3))["outcomes"].rows:
        assert sum(row[2:-1]) == row[-1]


def test_causal_compares_with_no_edit():
    rows = tables(study_result(1))["causal"].rows
    direction = next(row for row in rows if row[1:3] == ("ablated", "direction"))
    assert direction[4].interval.value == pytest.approx(-0.94)
    assert [row[2] for row in rows[4:]] == ["none", "direction", "random", "shuffled"]


def test_latex_is_balanced_and_escaped():
    nasty = r"50% of $x_1$ & \input{/etc/passwd} #{}~^ <b>" + "\x00\n"
    latex = to_latex(Table("t", nasty, (nasty, "n"), ((nasty, 3), ("[x]", 4))))
    assert r"\input" not in latex and "\x00" not in latex
    bare = re.sub(r"\\.", "", latex)
    assert bare.count("{") == bare.count("}")
    body = [line for line in latex.splitlines() if line.endswith(r" \\")]
    assert all(len(re.findall(r"(?<!\\)&", line)) == 1 for line in body) and len(body) == 3
    assert not re.search(r"(?<!\\)[%$#_](?!.*needs)", escape_latex("50% $ # _").replace("$-$", ""))
    assert r"\toprule" in latex and r"\bottomrule" in latex


def test_latex_holds_no_character_that_plain_engines_lack():
    for table in tables(study_result(3)).values():
        assert not set(to_latex(table)) & set("−–…≥≤×‖\u00a0"), table.name


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (Proportion(122, 200, 0.61, 0.541, 0.675), "61 % [54, 68]"),
        (Proportion(0, 0, math.nan, math.nan, math.nan), "none asked"),
        (Interval(0.21, 0.18, 0.25, 9), "0.210 [0.180, 0.250]"),
        (Interval(0.21, math.nan, math.nan, 1), "0.210 [no interval]"),
        (Points(Interval(-0.94, -0.97, 0.0, 200)), "−94.0 [−97.0, 0.0]"),
        (PValue(1e-9), "< 0.001"),
        (PValue(0.5), "0.500"),
        (-0.00001234, "−1.2e−05"),
        (100.0, "100"),
        (0.0212, "0.021"),
        (math.nan, "–"),
        (None, "–"),
        (7, "7"),
    ],
)
def test_cells_read_well(cell, text):
    assert shown(cell).replace("\u00a0", " ") == text
