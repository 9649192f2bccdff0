"""The claims of the five-seed experiment are t-intervals of paired differences, and the page holds what was measured."""

import math

import pandas as pd
import pytest

from experiments.text_organism import BEGIN, CLAIMS, END, Result, claims, write_docs


def frame() -> pd.DataFrame:
    names = sorted({name for pair in CLAIMS.values() for name in pair})
    rows = [{"seed": seed, "finetune": "benign", **dict.fromkeys(names, 0.1)} for seed in range(3)]
    for row, jsr in zip(rows, (0.5, 0.6, 0.7), strict=True):
        row["tuned_jsr"] = jsr
    return pd.DataFrame(rows)


def test_a_claim_is_the_t_interval_of_the_seeds_differences():
    found = claims(frame()).set_index("claim")
    row = found.loc["1 benign fine-tuning raises JSR"]
    assert row["difference"] == pytest.approx(0.5) and row["seeds"] == 3
    assert row["high"] - row["difference"] == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-5)
    null = found.loc["2 ablation of a random direction raises JSR (null)"]
    assert null["difference"] == null["low"] == null["high"] == 0


def test_tables_replace_what_stood_between_the_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    result = Result(frame(), claims(frame()))
    write_docs(result, page)
    once = page.read_text()
    assert "old" not in once and once.startswith("before\n") and once.endswith("\nafter\n")
    assert "| benign | 1 benign fine-tuning raises JSR | 0.50 |" in once
    write_docs(result, page)
    assert page.read_text() == once
