"""Run the benchmarks, print their tables, keep their figures: `python -m benchmarks.run [NAME …]`, or `make bench`.

Writes `benchmarks/results/<name>.json`; `--docs` writes the tables of these files into docs/BENCHMARKS.md without measuring.
Ends with exit code 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT
from interp.files import atomic_write, load_json, save_json

RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs" / "BENCHMARKS.md"
REPEATS = {
    "capture": 3,
    "selection": 7,
    "gradients": 3,
    "spf_step": 3,
    "patching": 2,
    "steering": 7,
    "proximity": 5,
    "pca": 3,
    "startup": 15,
}


def tables(name: str, result: dict[str, Any]) -> str:
    """Everything a reader needs of one result, as Markdown."""
    return (
        f"{importlib.import_module(f'benchmarks.{name}').tables(result)}\n\n{machine_line(result['machine'])}"
    )


def machine_line(machine: dict[str, Any]) -> str:
    """The machine and the versions on one line."""
    versions = ", ".join(
        f"{name} {machine[name]}" for name in ("torch", "transformers", "transformer-lens", "nnsight")
    )
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['ram_gib']} GiB; {machine['system']}, "
        f"Python {machine['python']}, {versions}."
    )


def write_docs(docs: Path, results: Path) -> None:
    """Put the table of every stored result between its markers, `<!-- NAME -->` and `<!-- /NAME -->`."""
    text = docs.read_text(encoding="utf-8")
    for name in REPEATS:
        stored = results / f"{name}.json"
        table = tables(name, load_json(stored)) if stored.exists() else "Not measured yet."
        parts = re.split(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", text, flags=re.DOTALL)
        if len(parts) != 2:
            raise ValueError(
                f"{docs.name} needs one <!-- {name} --> … <!-- /{name} -->, it has {len(parts) - 1}"
            )
        text = f"{parts[0]}{table}\n{parts[1]}"
    with atomic_write(docs) as aside:
        aside.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument(
        "names",
        nargs="*",
        choices=[*REPEATS, []],
        metavar="NAME",
        help=f"of {', '.join(REPEATS)}; default all",
    )
    parser.add_argument("--repeats", type=int, help="rounds, default " + str(REPEATS))
    parser.add_argument("--threads", type=int, default=2, help="torch threads of every engine")
    parser.add_argument("--config", default="{}", help="JSON of fields of the benchmark's Config that differ")
    parser.add_argument("--docs-file", type=Path, default=DOCS, help="the file that --docs writes")
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory of the JSON files")
    parser.add_argument(
        "--docs", action="store_true", help="write the tables into docs/BENCHMARKS.md, measure nothing"
    )
    given = parser.parse_args(arguments)
    if given.docs:
        write_docs(given.docs_file, given.results)
        return 0
    missed = []
    for name in given.names or REPEATS:
        print(f"{name}", flush=True)
        benchmark = importlib.import_module(f"benchmarks.{name}")
        config = benchmark.Config.model_validate_json(given.config)
        result = benchmark.run(config, threads=given.threads, repeats=given.repeats or REPEATS[name])
        save_json(given.results / f"{name}.json", result)
        print(f"\n{tables(name, result)}\n", flush=True)
        missed += [f"{name}: {t['target']} ({t['measured']})" for t in result["targets"] if not t["met"]]
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
