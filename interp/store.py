"""Where do results live, and can they be trusted? A result directory is complete or absent, and a kill costs one step.

1. The identity of a run is the hash of its config, of its inputs' contents and of the source files that produce it.
2. Work happens in `<root>/<study>/.partial-<hash8>/` under a file lock. Each step writes its product aside, syncs it
   and renames it; a run started again finds finished steps and loads them.
3. Finishing writes `manifest.json` (sha256 of every file, versions, command, times), syncs, and renames the directory
   to `<root>/<study>/<date>-<slug>-<hash8>/`; then the symlink `latest` is replaced. Renames are atomic, so whatever
   bears a final name is complete.
"""

import hashlib
import importlib.metadata
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self, TypeVar

import filelock

from interp.errors import ResultError
from interp.files import (
    SCRATCH,
    atomic_write,
    canonical,
    content_hash,
    load_arrays,
    load_json,
    load_table,
    plain,
    remove,
    save_arrays,
    save_json,
    save_table,
    sync,
    tree_hashes,
    writing,
)

__all__ = [
    "Run", "atomic_write", "command_line", "content_hash", "find_run", "identify", "load_arrays", "load_json", "load_run",
    "load_table", "open_run", "read_manifest", "save_arrays", "save_json", "save_table", "slugify", "verify", "versions",
]  # fmt: skip

T = TypeVar("T")
MANIFEST = "manifest.json"
_STARTED = ".started.json"
_RECORDED_PACKAGES = (
    "interp", "torch", "transformers", "peft", "accelerate", "safetensors", "numpy", "nnsight", "transformer-lens",
)  # fmt: skip
_FORMATS: dict[str, tuple[Callable[[Path, Any], object], Callable[[Path], Any]]] = {
    ".json": (save_json, load_json),
    ".safetensors": (save_arrays, load_arrays),
    ".parquet": (save_table, load_table),
}


def open_run(
    root: Path | str,
    study: str,
    slug: str,
    config: Any,
    inputs: Mapping[str, Path | str] | None = None,
    sources: Sequence[ModuleType | Path] = (),
) -> "Run":
    """Open the run that this config, these inputs and these sources identify: finished, half-done or new.

    Args:
        root: the directory of all results, created when missing.
        study: name of the kind of result, a directory under `root`.
        slug: readable part of the directory's name; anything that is not a letter or digit becomes a dash.
        config: a pydantic model, dataclass or mapping of JSON values.
        inputs: name -> file or directory (a `Path`, hashed by content), or a string that identifies the content.
        sources: modules, packages or files whose code produces the result.

    Raises ResultError when `root` cannot be written or a finished directory has been damaged. Waits, saying so on
    stderr, while another process works on the same run. Use it as a context manager: leaving it normally finishes
    the run, leaving it by an exception keeps the finished steps for the next attempt.
    """
    identity, digest = identify(study, config, inputs, sources)
    home = Path(root) / study
    lock = filelock.FileLock(home / f".lock-{digest[:8]}")
    with writing(home):
        home.mkdir(parents=True, exist_ok=True)
        _acquire(lock, f"{home.name} {digest[:8]}")
    try:
        finished = find_run(home, digest)
        if finished is not None:
            _point_latest(finished)
            return Run(finished, read_manifest(finished), lock)
        partial = home / f".partial-{digest[:8]}"
        _prepare(partial)
        return Run(partial, {"hash": digest, "slug": slugify(slug), **identity}, lock)
    except BaseException:
        lock.release()
        raise


def identify(
    study: str,
    config: Any,
    inputs: Mapping[str, Path | str] | None = None,
    sources: Sequence[ModuleType | Path] = (),
) -> tuple[dict[str, Any], str]:
    """What identifies a run, and its hash; the arguments are `open_run`'s."""
    identity = {
        "study": study,
        "config": plain(config),
        "inputs": {
            name: content_hash(value) if isinstance(value, Path) else value
            for name, value in (inputs or {}).items()
        },
        "sources": _source_hashes(sources),
    }
    return identity, hashlib.sha256(canonical(identity).encode()).hexdigest()


def load_run(path: Path | str) -> "Run":
    """Open a finished result directory (or a `latest` link) for reading; ResultError when it is not a complete one."""
    directory = Path(path).resolve()
    return Run(directory, read_manifest(directory))


class Run:
    """One result directory: its `path`, its `manifest`, and steps that are computed once. Made by `open_run`."""

    def __init__(
        self, path: Path, manifest: dict[str, Any], lock: filelock.BaseFileLock | None = None
    ) -> None:
        self.path = path
        self.manifest = manifest
        self._lock = lock

    @property
    def finished(self) -> bool:
        """Whether the directory is complete; it then never changes."""
        return "files" in self.manifest

    @property
    def hash8(self) -> str:
        """The eight characters that name this run."""
        return str(self.manifest["hash"])[:8]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self.close()

    def step(
        self,
        name: str,
        compute: Callable[[], T],
        save: Callable[[Path, T], object] | None = None,
        load: Callable[[Path], T] | None = None,
    ) -> T:
        """Return what `compute` gives, from disk when this step was finished before.

        Args:
            name: file or directory of the product inside the run, such as `scores.safetensors`. A name without a
                suffix is a directory, made empty before `save`.
            compute: does the work; not called when the step is finished.
            save: writes a value to a path; by default chosen by suffix (.json, .safetensors, .parquet).
            load: reads it back.

        Raises ResultError when the product cannot be written, and whatever `compute` raises.
        """
        suffix = Path(name).suffix
        if (save is None or load is None) and suffix not in _FORMATS:
            raise ResultError(
                f"step {name!r} needs save and load; only {', '.join(_FORMATS)} have them built in"
            )
        load = load or _FORMATS[suffix][1]
        path = self.file(name)
        if not path.exists():
            if self.finished:
                raise ResultError(f"{self.path}: has no {name}; delete the directory to compute it anew")
            value = compute()
            if save is None:
                _FORMATS[suffix][0](path, value)  # atomic by itself
            else:
                with atomic_write(path) as aside:
                    if not suffix:
                        aside.mkdir()
                    save(aside, value)
        return load(path)

    def file(self, name: str) -> Path:
        """The path of `name` inside the run, its parent directory made; write it with `atomic_write` or as a step."""
        if Path(name).is_absolute() or ".." in Path(name).parts or not Path(name).name:
            raise ResultError(
                f"{name!r} is not a name inside a result directory; give a relative one without '..'"
            )
        path = self.path / name
        if not self.finished:
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def save_json(self, name: str, value: Any) -> None:
        """Write `value` as JSON to `name` inside the run."""
        save_json(self._writable(name), value)

    def load_json(self, name: str) -> Any:
        """Read JSON from `name` inside the run."""
        return load_json(self.file(name))

    def save_arrays(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Write arrays or tensors by name as safetensors to `name` inside the run."""
        save_arrays(self._writable(name), arrays)

    def load_arrays(self, name: str) -> dict[str, Any]:
        """Read the arrays or tensors of `name` inside the run."""
        return load_arrays(self.file(name))

    def save_table(self, name: str, table: Any) -> None:
        """Write a pandas DataFrame as parquet to `name` inside the run."""
        save_table(self._writable(name), table)

    def load_table(self, name: str) -> Any:
        """Read the pandas DataFrame of `name` inside the run."""
        return load_table(self.file(name))

    def _writable(self, name: str) -> Path:
        if self.finished:
            raise ResultError(f"{self.path}: is finished and cannot change; tried to write {name}")
        return self.file(name)

    def finish(self) -> Path:
        """Make the run complete under its final name and return that path; a finished run stays as it is."""
        if self.finished:
            return self.path
        started = load_json(self.path / _STARTED)["started"]
        final = self.path.parent / f"{started[:10]}-{self.manifest['slug']}-{self.hash8}"
        with writing(final):
            manifest = self.manifest | {
                "command": command_line(),
                "started": started,
                "finished": _now(),
                "versions": versions(),
                "files": _files(self.path),
            }
            for path in self.path.rglob("*"):
                sync(path)
            save_json(self.path / MANIFEST, manifest)
            if final.exists():
                raise ResultError(f"{final}: is in the way and not a complete result; remove it")
            self.path.rename(final)
            sync(final.parent)
            (final / _STARTED).unlink()
        self.path, self.manifest = final, manifest
        _point_latest(final)
        return final

    def close(self) -> None:
        """Give the lock back; the steps of an unfinished run stay for the next attempt."""
        if self._lock is not None:
            self._lock.release()


def verify(path: Path | str) -> None:
    """Hash every file of a finished result again; ResultError names the first one that differs from the manifest."""
    directory = Path(path).resolve()
    recorded = read_manifest(directory)["files"]
    found = _files(directory)
    for name in sorted(recorded.keys() | found.keys()):
        if name not in found:
            raise ResultError(f"{directory / name}: is missing; delete the directory and compute it anew")
        if name not in recorded:
            raise ResultError(f"{directory / name}: is not in the manifest; remove it")
        if recorded[name] != found[name]:
            raise ResultError(
                f"{directory / name}: was changed since it was computed; delete the directory, run again"
            )


def read_manifest(directory: Path | str) -> dict[str, Any]:
    """The manifest of a finished result directory; ResultError when it has none or it cannot be read."""
    path = Path(directory) / MANIFEST
    # A name with a leading dot is a run in the middle of finishing.
    if not path.is_file() or path.resolve().parent.name.startswith("."):
        raise ResultError(
            f"{directory}: is no complete result (no {MANIFEST}); run the command that makes it again"
        )
    manifest = load_json(path)
    if not isinstance(manifest, dict) or not {"hash", "files"} <= manifest.keys():
        raise ResultError(f"{path}: is not a manifest; delete the directory and run again")
    return manifest


def slugify(text: str) -> str:
    """A short name for file systems: letters, digits, dots and single dashes, at most 60 characters."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text)[:60].strip("-.") or "run"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on, read without importing them."""
    found = {"python": platform.python_version()}
    for package in _RECORDED_PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def command_line() -> str:
    """The command that started this process, as one would type it."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _acquire(lock: filelock.BaseFileLock, what: str) -> None:
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        print(f"waiting: another process works on {what}", file=sys.stderr)
        lock.acquire()


def find_run(home: Path, digest: str) -> Path | None:
    """The finished directory of this hash under `home`, if any; ResultError when it has been damaged."""
    for directory in sorted(home.glob(f"*-{digest[:8]}")):
        if not directory.name.startswith(".") and (directory / MANIFEST).is_file():
            manifest = read_manifest(directory)
            if manifest["hash"] == digest:
                _check_sizes(directory, manifest)
                return directory
    return None


def _prepare(partial: Path) -> None:
    with writing(partial):
        partial.mkdir(exist_ok=True)
        for scratch in [*partial.rglob(f"{SCRATCH}*")]:
            remove(scratch)
        # A manifest here means that the kill came between writing it and the rename; finishing writes it anew.
        remove(partial / MANIFEST)
        if not (partial / _STARTED).exists():
            save_json(partial / _STARTED, {"started": _now()})


def _point_latest(directory: Path) -> None:
    link = directory.parent / "latest"
    if link.is_symlink() and os.readlink(link) == directory.name:
        return
    # A fixed name, so that what a kill leaves behind is used up by the next attempt.
    aside = link.with_name(f"{SCRATCH}{directory.name}")
    with writing(link):
        remove(aside)
        aside.symlink_to(directory.name)
        aside.replace(link)


def _source_hashes(sources: Sequence[ModuleType | Path]) -> dict[str, str]:
    hashes: dict[str, str] = {}
    for source in sources:
        if isinstance(source, Path):
            name, path = source.name, source
        elif source.__file__ is None:
            raise ResultError(
                f"{source.__name__}: has no source file to hash; give a module or package with code"
            )
        else:
            name, path = source.__name__, Path(source.__file__)
            path = path.parent if path.name == "__init__.py" else path
        if name in hashes:
            raise ResultError(
                f"two sources are called {name}; give the directory that holds them, or the modules"
            )
        hashes[name] = content_hash(path)
    return hashes


def _files(directory: Path) -> dict[str, dict[str, Any]]:
    return {
        name: {"sha256": sha256, "bytes": (directory / name).stat().st_size}
        for name, sha256 in tree_hashes(directory).items()
        if name not in (MANIFEST, _STARTED)
    }


def _check_sizes(directory: Path, manifest: Mapping[str, Any]) -> None:
    # Sizes at every use, hashes on demand (`verify`): a result may hold gigabytes of activations.
    for name, recorded in manifest["files"].items():
        path = directory / name
        if not path.is_file() or path.stat().st_size != recorded["bytes"]:
            raise ResultError(f"{path}: is missing or was changed; delete {directory} and run again")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
