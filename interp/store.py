"""Where do results live, and can they be trusted? A result directory is complete or absent, and a kill costs one step.

1. The identity of a run is the hash of its config, of its inputs' contents and of the source files that produce it.
2. Work happens in `<root>/<study>/.partial-<hash8>/` under a file lock. Each step writes its product aside, syncs it
   and renames it; a run started again finds finished steps and loads them.
3. Finishing writes `manifest.json` (sha256 of every file, versions, command, times), syncs, and renames the directory
   to `<root>/<study>/<date>-<slug>-<hash8>/`; then the symlink `latest` is replaced. Renames are atomic, so whatever
   bears a final name is complete.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self, TypeVar
from uuid import uuid4

import filelock

from interp.errors import ResultError

T = TypeVar("T")
MANIFEST = "manifest.json"
_SCRATCH = ".writing-"
_STARTED = ".started.json"
_RECORDED_PACKAGES = (
    "interp", "torch", "transformers", "peft", "accelerate", "safetensors", "numpy", "nnsight", "transformer-lens",
)  # fmt: skip


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
        inputs: name -> file or directory (hashed by content), or a string that already identifies the content.
        sources: modules, packages or files whose code produces the result.

    Raises ResultError when `root` cannot be written or a finished directory has been damaged. Waits, saying so on
    stderr, while another process works on the same run. Use it as a context manager: leaving it normally finishes
    the run, leaving it by an exception keeps the finished steps for the next attempt.
    """
    record = {
        "study": study,
        "config": _plain(config),
        "inputs": {name: _identify(value) for name, value in (inputs or {}).items()},
        "sources": {name: value for source in sources for name, value in _source_hashes(source).items()},
    }
    digest = hashlib.sha256(_canonical(record).encode()).hexdigest()
    home = Path(root) / study
    with _writing(home):
        home.mkdir(parents=True, exist_ok=True)
    return Run(home, slugify(slug), digest, record)


def load_run(path: Path | str) -> "Run":
    """Open a finished result directory (or a `latest` link) for reading; ResultError when it is not a complete one."""
    directory = Path(path).resolve()
    manifest = read_manifest(directory)
    run = Run.__new__(Run)
    run._attach(directory, manifest)
    return run


class Run:
    """One result directory: `path`, `finished`, and steps that are computed once."""

    path: Path
    finished: bool

    def __init__(self, home: Path, slug: str, digest: str, record: dict[str, Any]) -> None:
        self._home, self._slug, self._digest, self._record = home, slug, digest, record
        self._lock = filelock.FileLock(home / f".lock-{digest[:8]}")
        with _writing(home):
            self._acquire()
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _attach(self, directory: Path, manifest: dict[str, Any]) -> None:
        self.path, self.finished, self.manifest = directory, True, manifest
        self._digest = manifest["hash"]

    def _acquire(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            print(f"waiting: another process works on {self._home.name} {self._digest[:8]}", file=sys.stderr)
            self._lock.acquire()

    def _open(self) -> None:
        for directory in sorted(self._home.glob(f"*-{self._digest[:8]}")):
            if not directory.name.startswith(".") and (directory / MANIFEST).is_file():
                manifest = read_manifest(directory)
                if manifest["hash"] == self._digest:
                    _check_sizes(directory, manifest)
                    self._attach(directory, manifest)
                    self._point_latest()
                    return
        self.finished = False
        self.path = self._home / f".partial-{self._digest[:8]}"
        with _writing(self.path):
            self.path.mkdir(exist_ok=True)
            for scratch in [*self.path.rglob(f"{_SCRATCH}*")]:
                _remove(scratch)
            # A manifest here means that the kill came between writing it and the rename; finishing writes it anew.
            (self.path / MANIFEST).unlink(missing_ok=True)
            if not (self.path / _STARTED).exists():
                save_json(self.path / _STARTED, {"started": _now()})

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

    @property
    def hash8(self) -> str:
        """The eight characters that name this run."""
        return self._digest[:8]

    def file(self, name: str) -> Path:
        """The path of `name` inside the run, its parent directory made; write it with `atomic_write` or as a step."""
        path = self.path / name
        if Path(name).is_absolute() or ".." in Path(name).parts or path == self.path:
            raise ResultError(
                f"{name!r} is not a name inside a result directory; give a relative one without '..'"
            )
        if not self.finished:
            with _writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def step(
        self,
        name: str,
        compute: Callable[[], T],
        save: Callable[[Path, T], object] | None = None,
        load: Callable[[Path], T] | None = None,
    ) -> T:
        """Return what `compute` gives, from disk when this step was finished before.

        Args:
            name: file or directory of the product inside the run, such as `scores.safetensors`. A name without suffix
                is a directory, made empty before `save`.
            compute: does the work; not called when the step is finished.
            save: writes a value to a path; by default chosen by suffix (.json, .safetensors, .parquet).
            load: reads it back.

        Raises ResultError when the product cannot be written, and whatever `compute` raises.
        """
        if save is None or load is None:
            if Path(name).suffix not in _FORMATS:
                raise ResultError(
                    f"step {name!r} needs save and load; only {', '.join(_FORMATS)} have them built in"
                )
            save, load = save or _FORMATS[Path(name).suffix][0], load or _FORMATS[Path(name).suffix][1]
        path = self.file(name)
        if not path.exists():
            if self.finished:
                raise ResultError(f"{self.path}: has no {name}; delete the directory to compute it anew")
            value = compute()
            with atomic_write(path) as aside:
                if not path.suffix:
                    aside.mkdir()
                save(aside, value)
        return load(path)

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
        manifest = {
            "hash": self._digest,
            **self._record,
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "started": started,
            "finished": _now(),
            "versions": versions(),
            "files": _file_hashes(self.path),
        }
        final = self._home / f"{started[:10]}-{self._slug}-{self.hash8}"
        with _writing(final):
            for path in self.path.rglob("*"):
                _sync(path)
            save_json(self.path / MANIFEST, manifest)
            if final.exists():
                raise ResultError(f"{final}: is in the way and not a complete result; remove it")
            self.path.rename(final)
            _sync(self._home)
            (final / _STARTED).unlink()
        self._attach(final, manifest)
        self._point_latest()
        return final

    def _point_latest(self) -> None:
        link = self._home / "latest"
        if link.is_symlink() and os.readlink(link) == self.path.name:
            return
        with atomic_write(link) as aside:
            aside.symlink_to(self.path.name)

    def close(self) -> None:
        """Give the lock back; the steps of an unfinished run stay for the next attempt."""
        if hasattr(self, "_lock"):
            self._lock.release()


def verify(path: Path | str) -> None:
    """Hash every file of a finished result directory again; ResultError names the first that differs from the manifest."""
    directory = Path(path).resolve()
    recorded = read_manifest(directory)["files"]
    found = _file_hashes(directory)
    for name in sorted(recorded.keys() | found.keys()):
        if name not in found:
            raise ResultError(f"{directory / name}: is missing; delete the directory and compute it anew")
        if name not in recorded:
            raise ResultError(f"{directory / name}: is not in the manifest; remove it")
        if recorded[name] != found[name]:
            raise ResultError(
                f"{directory / name}: was changed after it was computed; delete the directory, run again"
            )


def read_manifest(directory: Path | str) -> dict[str, Any]:
    """The manifest of a finished result directory; ResultError when it has none or it cannot be read."""
    path = Path(directory) / MANIFEST
    if not path.is_file() or path.resolve().parent.name.startswith("."):
        raise ResultError(
            f"{directory}: is no complete result (no {MANIFEST}); run the command that makes it again"
        )
    manifest = load_json(path)
    if not isinstance(manifest, dict) or not {"hash", "files"} <= manifest.keys():
        raise ResultError(f"{path}: is not a manifest; delete the directory and run again")
    return manifest


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yield a path beside `path` to write a file or directory to; on a normal exit it is synced and takes its place.

    On an exception nothing appears under the name. Raises ResultError when the disk refuses.
    """
    target = Path(path)
    aside = target.with_name(f"{_SCRATCH}{uuid4().hex[:8]}-{target.name}")
    try:
        with _writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            yield aside
            for part in [aside, *aside.rglob("*")]:
                _sync(part)
            aside.replace(target)
            _sync(target.parent)
    except BaseException:
        _remove(aside)
        raise


def slugify(text: str) -> str:
    """A short name for file systems: letters, digits, dots and single dashes, at most 60 characters."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-.")[:60] or "run"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on, read without importing them."""
    found = {"python": platform.python_version()}
    for package in _RECORDED_PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def content_hash(path: Path | str) -> str:
    """sha256 of a file's bytes, or of the names and hashes of all files in a directory; ResultError when unreadable."""
    path = Path(path)
    try:
        if path.is_dir():
            return hashlib.sha256(_canonical(_tree_hashes(path)).encode()).hexdigest()
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ResultError(
            f"{path}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from error


def save_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; dataclasses, pydantic models and arrays become plain values.

    Raises ResultError on NaN or infinity, which JSON cannot hold.
    """
    try:
        text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError as error:
        raise ResultError(
            f"{path.name}: not JSON ({error}); use null, or keep arrays in safetensors"
        ) from error
    with atomic_write(path) as aside:
        aside.write_text(text + "\n", encoding="utf-8")


def load_json(path: Path) -> Any:
    """Read a JSON file; ResultError names it when it is missing or malformed."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultError(
            f"{path}: cannot be read as JSON ({error}); delete its directory and run again"
        ) from error


def save_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write numpy arrays, or torch tensors, by name as safetensors, atomically."""
    import numpy as np
    from safetensors import SafetensorError

    torch_arrays = any(type(array).__module__ == "torch" for array in arrays.values())
    with atomic_write(path) as aside:
        try:
            if torch_arrays:
                from safetensors.torch import save_file as save_torch

                tensors = {name: array.detach().contiguous() for name, array in arrays.items()}
                save_torch(tensors, aside, metadata={"framework": "torch"})
            else:
                from safetensors.numpy import save_file as save_numpy

                # asarray with order C makes it contiguous and, unlike ascontiguousarray, keeps a scalar's shape.
                plain = {name: np.asarray(array, order="C") for name, array in arrays.items()}
                save_numpy(plain, aside, metadata={"framework": "numpy"})
        except SafetensorError as error:
            raise ResultError(
                f"{path}: cannot be written ({error}); free space or choose another place"
            ) from error


def load_arrays(path: Path) -> dict[str, Any]:
    """Read safetensors by name: torch tensors (on the CPU) where tensors were saved, else numpy arrays."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            framework = (file.metadata() or {}).get("framework", "numpy")
        if framework == "torch":
            from safetensors.torch import load_file as load_torch

            return load_torch(path)
        from safetensors.numpy import load_file as load_numpy

        return load_numpy(path)
    except (OSError, SafetensorError) as error:
        raise ResultError(f"{path}: cannot be read ({error}); delete its directory and run again") from error


def save_table(path: Path, table: Any) -> None:
    """Write a pandas DataFrame as parquet, atomically."""
    with atomic_write(path) as aside:
        table.to_parquet(aside)


def load_table(path: Path) -> Any:
    """Read a pandas DataFrame from parquet; ResultError names the file when it cannot be read."""
    import pandas as pd

    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise ResultError(f"{path}: cannot be read ({error}); delete its directory and run again") from error


_FORMATS: dict[str, tuple[Callable[[Path, Any], object], Callable[[Path], Any]]] = {
    ".json": (save_json, load_json),
    ".safetensors": (save_arrays, load_arrays),
    ".parquet": (save_table, load_table),
}


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # One level only: json calls back for what is nested, so each type is treated by the same rules.
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain)


def _identify(value: Path | str) -> str:
    return content_hash(value) if isinstance(value, Path) else value


def _source_hashes(source: ModuleType | Path) -> dict[str, str]:
    if isinstance(source, Path):
        return {source.name: content_hash(source)}
    if source.__file__ is None:
        raise ResultError(
            f"{source.__name__}: has no source file to hash; give a module or package with code"
        )
    path = Path(source.__file__)
    return {source.__name__: content_hash(path.parent if path.name == "__init__.py" else path)}


def _tree_hashes(directory: Path) -> dict[str, str]:
    files = (path for path in directory.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(directory).as_posix(): content_hash(path) for path in sorted(files)}


def _file_hashes(directory: Path) -> dict[str, dict[str, Any]]:
    return {
        name: {"sha256": sha256, "bytes": (directory / name).stat().st_size}
        for name, sha256 in _tree_hashes(directory).items()
        if name not in (MANIFEST, _STARTED)
    }


def _check_sizes(directory: Path, manifest: Mapping[str, Any]) -> None:
    for name, recorded in manifest["files"].items():
        path = directory / name
        if not path.is_file() or path.stat().st_size != recorded["bytes"]:
            raise ResultError(f"{path}: is missing or was changed; delete {directory} and run again")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _sync(path: Path) -> None:
    if path.is_symlink():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ResultError(
            f"{path}: cannot be written ({reason}); free space or choose another place"
        ) from error
