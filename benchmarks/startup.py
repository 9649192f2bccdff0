"""How long does a user wait for `interp --help`? Wall clock of the whole process, beside an interpreter that does nothing."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from typing import Any

from pydantic import BaseModel, ConfigDict

from benchmarks.harness import machine, seconds, seconds_note, target, verdicts

TARGET = 0.5
COMMANDS = {
    "`interp --help`": [sys.executable, "-m", "interp", "--help"],
    "`python -c pass`": [sys.executable, "-c", "pass"],
}


class Config(BaseModel):
    """Nothing to choose."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def run(config: Config, *, threads: int, repeats: int) -> dict[str, Any]:
    """Time the commands in turn; raises CalledProcessError when one fails."""
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    load = round(os.getloadavg()[0], 2)
    for i in range(repeats + 1):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            if i > 0:  # the first round fills the disk cache
                found[name].append(time.perf_counter() - start)
    engines = {
        name: {"median_s": statistics.median(s), "min_s": min(s), "max_s": max(s), "seconds": s}
        for name, s in found.items()
    }
    median = statistics.median(found["`interp --help`"])
    return {
        "threads": threads,
        "repeats": repeats,
        "load_average": [load],
        "engines": engines,
        "targets": [target("under 0.5 s", f"{median:.2f} s", median < TARGET)],
        "machine": machine(),
    }


def tables(result: dict[str, Any]) -> str:
    """The timings as Markdown, then the target."""
    rows = ["| command | seconds, median (min to max) |", "|---|---|"]
    rows += [f"| {name} | {seconds(found)} |" for name, found in result["engines"].items()]
    return "\n".join([*rows, "", seconds_note(result), "", verdicts(result["targets"])])
