"""How are engines timed fairly? One process an engine, asked in turn, medians over the rounds.

1. Every engine is set up (imports, weights, warm-up) in a process of its own, so that memory is its own too.
2. A round asks each engine once, one after another, in an order that rotates; noise of the machine hits all alike.
3. Seconds are wall clock; the processor's seconds, which a busy machine disturbs less, are kept beside them.
4. Memory is measured afterwards, in one more run of each engine in a fresh process whose allocator gives freed blocks
   back at once (else the figure is an accident of fragmentation): the kernel's high-water mark of resident memory during
   the run, less what was resident before it. None where the kernel keeps no such mark.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel

PACKAGES = ("torch", "transformers", "transformer-lens", "nnsight")
# blocks of a MiB and more are mapped one by one and unmapped when freed (glibc)
EXACT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
ROOT = Path(__file__).parents[1]

# what an engine's set-up returns: one run, which writes under the directory and returns what it found
Run = Callable[[Path], dict[str, Any]]


class Worker:
    """An engine in a process of its own; a benchmark module offers it as `ENGINES[name](config) -> Run`."""

    def __init__(
        self,
        module: str,
        engine: str,
        config: BaseModel,
        threads: int,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.engine = engine
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.harness", module, engine, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={
                **os.environ,
                "OMP_NUM_THREADS": str(threads),
                "HF_HUB_OFFLINE": "1",
                "TOKENIZERS_PARALLELISM": "false",
                **(environment or {}),
            },
        )
        self._ask(config.model_dump_json())

    def run(self, out: Path) -> dict[str, Any]:
        """One timed run: `seconds`, `cpu_seconds`, `peak_growth` in bytes or None, what the engine returned as `found`."""
        return self._ask(str(out))

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def _ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"engine {self.engine} ended without an answer; its error is above")
        return json.loads(answer)


def interleave(
    module: str,
    engines: Sequence[str],
    config: BaseModel,
    *,
    threads: int,
    repeats: int,
    memory: bool,
    check: Callable[[dict[str, Path]], dict[str, Any]],
) -> dict[str, Any]:
    """Time the engines in turn.

    Args:
        module: dotted name of the benchmark module with its `ENGINES`.
        memory: measure memory too, which takes as long as one more round.
        check: given what each engine wrote in the first round, by engine, returns the agreement to be kept.
    """
    workers: dict[str, Worker] = {}
    runs: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
    load: list[float] = []
    agreement: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        try:
            for engine in engines:
                workers[engine] = Worker(module, engine, config, threads)
            for i in range(repeats):
                load.append(round(os.getloadavg()[0], 2))
                places = {engine: Path(directory) / f"{i}-{engine}" for engine in engines}
                for engine in [*engines[i % len(engines) :], *engines[: i % len(engines)]]:
                    places[engine].mkdir()
                    runs[engine].append(workers[engine].run(places[engine]))
                    print(
                        f"  round {i + 1}/{repeats}  {engine}: {runs[engine][-1]['seconds']:.2f} s",
                        flush=True,
                    )
                if i == 0:
                    agreement = check(places)
        finally:
            for worker in workers.values():
                worker.close()
        growth = {
            engine: _peak_growth(module, engine, config, threads, Path(directory)) if memory else None
            for engine in engines
        }
    return {
        "threads": threads,
        "repeats": repeats,
        "load_average": load,
        "engines": {
            engine: summary(found) | {"peak_growth": growth[engine]} for engine, found in runs.items()
        },
        "agreement": agreement,
    }


def _peak_growth(module: str, engine: str, config: BaseModel, threads: int, out: Path) -> int | None:
    place = out / f"memory-{engine}"
    place.mkdir()
    worker = Worker(module, engine, config, threads, EXACT_MEMORY)
    try:
        found = worker.run(place)["peak_growth"]
    finally:
        worker.close()
    print(f"  memory  {engine}: {mebibytes(found)}", flush=True)
    return found


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median, extremes and all values of the seconds."""
    seconds = [run["seconds"] for run in runs]
    return {
        "median_s": statistics.median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "seconds": seconds,
        "cpu_seconds": [run["cpu_seconds"] for run in runs],
        "found": runs[0]["found"],
    }


def paired_ratio(engines: dict[str, Any], slow: str, fast: str, clock: str = "seconds") -> float:
    """Median over rounds of the ratio of two engines' times; what slows a whole round cancels."""
    pairs = zip(engines[slow][clock], engines[fast][clock], strict=True)
    return statistics.median(a / b for a, b in pairs)


def seconds(found: dict[str, Any]) -> str:
    """Median and extremes of an engine's seconds, for a table."""
    return f"{found['median_s']:.3g} ({found['min_s']:.3g} to {found['max_s']:.3g})"


def seconds_note(result: dict[str, Any]) -> str:
    """How many rounds, threads, and how busy the machine was."""
    load = result["load_average"]
    return (
        f"{result['repeats']} rounds, {result['threads']} threads; load average of the machine {min(load):.1f} to "
        f"{max(load):.1f}. Ratios are medians over the rounds."
    )


def mebibytes(n_bytes: int | None) -> str:
    """Bytes for a table."""
    return "not measured" if n_bytes is None else f"{n_bytes / 2**20:.0f} MiB"


def target(name: str, measured: str, met: bool) -> dict[str, Any]:
    """What was to be reached, what was, and whether that is enough."""
    return {"target": name, "measured": measured, "met": met}


def verdicts(targets: Sequence[dict[str, Any]]) -> str:
    """Targets as a Markdown table."""
    rows = (f"| {t['target']} | {t['measured']} | {'met' if t['met'] else '**missed**'} |" for t in targets)
    return "\n".join(["| target | measured | |", "|---|---|---|", *rows])


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpu": _cpu_model(),
        "cores": psutil.cpu_count(logical=True),
        "ram_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    names = info.read_text().splitlines() if info.is_file() else []
    found = next((line.partition(":")[2].strip() for line in names if line.startswith("model name")), "")
    return found or platform.processor() or platform.machine()


def resident() -> int:
    """Bytes of this process in memory now."""
    return psutil.Process().memory_info().rss


def reset_peak() -> bool:
    """Set the kernel's high-water mark to what is resident now; False where there is none."""
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak() -> int:
    """The high-water mark of resident memory since `reset_peak`, in bytes."""
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def serve(module: str, engine: str, threads: int) -> None:
    """The worker's side: a line with the config, then a line for each run; one line of JSON answers each."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries may print

    import torch

    torch.set_num_threads(threads)
    benchmark = importlib.import_module(module)
    run: Run = benchmark.ENGINES[engine](benchmark.Config.model_validate_json(sys.stdin.readline()))
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        marked, before = reset_peak(), resident()
        start, start_cpu = time.perf_counter(), time.process_time()
        found = run(Path(line.strip()))
        answer = {
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - start_cpu,
            "peak_growth": peak() - before if marked else None,
            "found": found,
        }
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
