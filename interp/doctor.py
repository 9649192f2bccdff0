"""Can the lab work here? Versions, processor, memory, accelerator, caches and extras, each with the cure when it cannot.

No network call is made unless asked for.
"""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from interp.errors import ResultError

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
_OFFLINE_FLAGS = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


@dataclass(frozen=True)
class Finding:
    """One thing looked at: `ok`, a `note` that changes nothing, or a `problem` that stops work."""

    topic: str
    text: str
    level: Literal["ok", "note", "problem"] = "ok"


def examine(network: bool = False, results: Path = Path("results")) -> bool:
    """Print every finding and return whether the lab is usable."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    found = list(diagnose(network, results))
    colours = {"ok": "default", "note": "yellow", "problem": "bold red"}
    for finding in found:
        mark = "" if finding.level == "ok" else f"{finding.level}: "
        table.add_row(finding.topic, f"{mark}{finding.text}", style=colours[finding.level])
    usable = not any(finding.level == "problem" for finding in found)
    console = Console(highlight=False, markup=False)
    console.print(table)
    console.print("usable" if usable else "not usable: see the problems above")
    return usable


def diagnose(network: bool = False, results: Path = Path("results")) -> Iterator[Finding]:
    """Look at everything in turn; `network` allows one request to the Hugging Face hub."""
    yield from _python()
    yield from _packages()
    yield from _extras()
    yield from _machine()
    yield from _accelerator()
    yield from _caches()
    yield from _hub(network)
    yield from _unfinished(results)


def read_pins(path: Path) -> dict[str, str]:
    """Package name -> pinned version of a constraints file; ResultError names the line that is no pin."""
    pins: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        name, equals, version = text.partition("==")
        if not equals:
            raise ResultError(f"{path}:{number}: {text!r} is not NAME==VERSION; run make constraints")
        pins[canonicalize_name(name)] = version
    return pins


def _python() -> Iterator[Finding]:
    usable = sys.version_info >= (3, 11)
    where = f"{platform.python_version()} at {sys.executable}"
    yield Finding(
        "python", where if usable else f"{where}; 3.11 or newer is needed", "ok" if usable else "problem"
    )


def _requirements() -> list[Requirement]:
    return [Requirement(text) for text in importlib.metadata.requires("interp") or []]


def _missing(requirement: Requirement) -> str | None:
    """Why an installed distribution does not satisfy the requirement, or None."""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{requirement.name} {version} is not {requirement.specifier}"
    return None


def _packages() -> Iterator[Finding]:
    try:
        requirements = _requirements()
    except importlib.metadata.PackageNotFoundError:
        yield Finding(
            "packages", "interp runs from source, not installed; pip install -e . adds its scripts", "note"
        )
        requirements = []
    needed = [requirement for requirement in requirements if requirement.marker is None]
    for requirement in needed:
        if reason := _missing(requirement):
            yield Finding("packages", f"{reason}; pip install -c constraints.txt -e .", "problem")
    if not CONSTRAINTS.is_file():
        yield Finding(
            "versions", "no constraints.txt beside the library, so versions were not compared", "note"
        )
        return
    pins = read_pins(CONSTRAINTS)
    installed: dict[str, str] = {
        canonicalize_name(distribution.name): distribution.version
        for distribution in importlib.metadata.distributions()
    }
    # A local label such as +cpu names a build of the same version.
    differing = [
        f"{name} {installed[name]} (tested: {pin})"
        for name, pin in pins.items()
        if name in installed and installed[name].partition("+")[0] != pin
    ]
    if differing:
        yield Finding("versions", f"{', '.join(differing)}; make setup installs the tested ones", "note")
    else:
        present = sum(name in installed for name in pins)
        yield Finding("versions", f"{present} of {len(pins)} pinned packages installed, all as tested")


def _extras() -> Iterator[Finding]:
    try:
        requirements = _requirements()
    except importlib.metadata.PackageNotFoundError:
        return
    extras = importlib.metadata.metadata("interp").get_all("Provides-Extra") or []
    for extra in extras:
        wanted = [
            requirement
            for requirement in requirements
            if requirement.marker is not None and requirement.marker.evaluate({"extra": extra})
        ]
        absent = [requirement.name for requirement in wanted if _missing(requirement)]
        if absent:
            cure = f"pip install -c constraints.txt -e '.[{extra}]'"
            yield Finding(f"extra {extra}", f"without {', '.join(absent)}; {cure}", "note")
        else:
            yield Finding(f"extra {extra}", "installed")


def _machine() -> Iterator[Finding]:
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("processor", f"{platform.machine()}, {cores} usable cores, {platform.system()}")
    memory = psutil.virtual_memory()
    yield Finding("memory", f"{_size(memory.available)} of {_size(memory.total)} available")


def _accelerator() -> Iterator[Finding]:
    try:
        import torch
        import transformers  # noqa: F401
    except (ImportError, OSError) as error:
        # OSError: a shared library of a broken build.
        yield Finding("torch", f"cannot be imported ({error}); remove .venv and run make setup", "problem")
        return
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            yield Finding("accelerator", f"cuda:{index} {device.name}, {_size(device.total_memory)}")
    elif torch.backends.mps.is_available():
        yield Finding("accelerator", "mps")
    else:
        yield Finding(
            "accelerator",
            f"none; torch {torch.__version__} runs on {torch.get_num_threads()} threads",
            "note",
        )


def _caches() -> Iterator[Finding]:
    from huggingface_hub.constants import HF_HUB_CACHE

    from interp.models.checkpoint import cache_dir

    for topic, path, variable in (
        ("organisms", cache_dir(), "INTERP_CACHE"),
        ("hub cache", Path(HF_HUB_CACHE), "HF_HUB_CACHE"),
    ):
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        if not os.access(existing, os.W_OK):
            yield Finding(topic, f"{path} cannot be written; set {variable} to another directory", "problem")
        elif path.exists():
            yield Finding(topic, f"{path}, {_size(_used(path))} used, {_size(_free(existing))} free")
        else:
            yield Finding(topic, f"{path}, not made yet, {_size(_free(existing))} free")


def _hub(network: bool) -> Iterator[Finding]:
    flags = [f"{name}={os.environ[name]}" for name in _OFFLINE_FLAGS if os.environ.get(name)]
    if flags:
        yield Finding("hub", f"offline by {', '.join(flags)}: only cached models and data load", "note")
    if not network:
        if not flags:
            yield Finding("hub", "not tried; interp doctor --network does")
        return
    from urllib.error import URLError
    from urllib.request import urlopen

    from huggingface_hub.constants import ENDPOINT

    try:
        with urlopen(f"{ENDPOINT}/api/models?limit=1", timeout=10) as reply:
            yield Finding("hub", f"{ENDPOINT} answers ({reply.status})")
    except (URLError, TimeoutError) as error:
        reason = getattr(error, "reason", error)
        yield Finding(
            "hub", f"{ENDPOINT} cannot be reached ({reason}); local checkpoints and files still work", "note"
        )


def _unfinished(results: Path) -> Iterator[Finding]:
    for path in sorted(results.glob("*/.partial-*")):
        text = f"{path}, {_size(_used(path))}: run its command again to resume, or delete it"
        yield Finding("unfinished", text, "note")


def _used(directory: Path) -> int:
    """Bytes of the files under a directory; a link counts as its own few bytes, so shared files count once."""
    return sum(path.lstat().st_size for path in directory.rglob("*") if not path.is_dir())


def _free(path: Path) -> int:
    import shutil

    return shutil.disk_usage(path).free


def _size(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"
