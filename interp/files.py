"""How does a file come to be whole or not at all? Written aside, synced, renamed; and one form for each kind of data.

JSON for metadata, safetensors for arrays and tensors, parquet for tables. No pickle. Every failure is a `ResultError`.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from interp.errors import ResultError

# Names that start so are half-written; whoever owns the directory may remove them.
SCRATCH = ".writing-"


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yield a path beside `path` to write a file or directory to; on a normal exit it is synced and takes its place.

    On an exception nothing appears under the name. Raises ResultError when the disk refuses.
    """
    target = Path(path)
    aside = target.with_name(f"{SCRATCH}{uuid4().hex[:8]}-{target.name}")
    try:
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            yield aside
            for part in [aside, *aside.rglob("*")]:
                sync(part)
            aside.replace(target)
            sync(target.parent)
    except BaseException:
        remove(aside)
        raise


@contextmanager
def replacing_files(directory: Path | str) -> Iterator[Path]:
    """Yield an empty directory; on a normal exit each file in it takes its place under `directory`, others there stay.

    On an exception `directory` is as it was. Raises ResultError when the disk refuses.
    """
    target = Path(directory)
    aside = target / f"{SCRATCH}{uuid4().hex[:8]}"
    with writing(target):
        aside.mkdir(parents=True)
        try:
            yield aside
            for path in sorted(path for path in aside.rglob("*") if path.is_file()):
                place = target / path.relative_to(aside)
                place.parent.mkdir(parents=True, exist_ok=True)
                sync(path)
                path.replace(place)
        finally:
            remove(aside)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a refusal of the disk or of permissions in the body into a `ResultError` about `path`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise ResultError(
            f"{path}: cannot be written ({reason}); free space or choose another place"
        ) from error


def replace_between(page: Path, begin: str, end: str, body: str) -> None:
    """Put text between the two markers of a page, which it must have; what was between them goes."""
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ResultError(f"{page} has no {begin} … {end} to write between")
    with atomic_write(page) as aside:
        aside.write_text(f"{before}{begin}\n{body}\n{end}{after}", encoding="utf-8")


def content_hash(path: Path | str) -> str:
    """sha256 of a file's bytes, or of the names and hashes of all files in a directory; ResultError when unreadable."""
    path = Path(path)
    try:
        if path.is_dir():
            return hashlib.sha256(canonical(tree_hashes(path)).encode()).hexdigest()
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
        text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False, default=plain)
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

    torch_arrays = any(type(array).__module__.startswith("torch") for array in arrays.values())
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


def plain(value: Any) -> Any:
    """The JSON form of a value that is not JSON itself, one level deep; TypeError when it has none."""
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


def canonical(value: Any) -> str:
    """One text for equal values, to be hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=plain)


def tree_hashes(directory: Path) -> dict[str, str]:
    """sha256 of every file under a directory by relative name; compiled Python left out."""
    files = (path for path in directory.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(directory).as_posix(): content_hash(path) for path in sorted(files)}


def sync(path: Path) -> None:
    """Have the disk hold what was written to a file or directory."""
    if path.is_symlink():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file or a whole directory, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        path.unlink()
