"""What does a finished study say at a glance? A table for the terminal."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from interp.evals.verdicts import Outcome
from interp.results import StudyResult


def print_study(result: StudyResult, directory: Path) -> None:
    """Print a study's summary and where its report and figures are."""
    print_summary(result)
    print(f"\nreport:  {directory / 'report.html'}\nfigures: {directory / 'figures'}")


def print_summary(result: StudyResult) -> None:
    """Print what each checkpoint answers and refuses, by modality where there are several."""
    # A log has no width: give long checkpoint names room there.
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False, markup=False)
    table = Table(box=None, padding=(0, 2, 0, 0))
    headings = ("JSR [95 %]", "over-refusal", "JSR − aligned", "lost at")
    table.add_column("checkpoint")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    # What the other columns take at their widest; names are cut from the left, where paths are alike.
    room = max(12, console.width - len("0.00 [0.00, 0.00]  over-refusal  +0.00 [+0.00, +0.00]  layer 00    "))
    rows = [(result.aligned, result.harmful, result.harmless, "", "")]
    for tuned in result.tuned:
        test = tuned.vs_aligned
        lost_at = "" if tuned.lost_at is None else f"layer {tuned.lost_at}"
        difference = (
            "same weights"
            if tuned.same_weights
            else f"{test.difference:+.2f} [{test.low:+.2f}, {test.high:+.2f}]"
        )
        rows.append((tuned.name, tuned.harmful, tuned.harmless, difference, lost_at))
    for name, harmful, harmless, difference, lost_at in rows:
        jsr, over_refusal = harmful.rate(Outcome.COMPLIED_HARMFUL), harmless.rate(Outcome.REFUSED)
        table.add_row(
            name if len(name) <= room else f"…{name[1 - room :]}",
            f"{jsr.estimate:.2f} [{jsr.low:.2f}, {jsr.high:.2f}]",
            f"{over_refusal.estimate:.2f}",
            difference,
            lost_at,
        )
    console.print("harmful requests answered (JSR, jailbreak success rate)")
    console.print(table)
    if result.modalities is not None:
        console.print(f"\nharmful requests refused, by modality (above: {result.modalities.reference})")
        for found in result.modalities.checkpoints:
            rates = (
                (m, found.behaviour[m]["harmful"].rate(Outcome.REFUSED)) for m in result.modalities.names
            )
            shares = ", ".join(
                f"{m} {rate.estimate:.2f} [{rate.low:.2f}, {rate.high:.2f}]" for m, rate in rates
            )
            console.print(
                f"{found.name if len(found.name) <= room else f'…{found.name[1 - room :]}'}  {shares}"
            )
