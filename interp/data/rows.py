"""Where rows come from: the files and data sets that prompts are read from, one dictionary (or text) a row.

Nothing is guessed and nothing repaired: whatever is malformed is an error of one line with the file and the row.
"""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

from interp.errors import PromptFileError
from interp.hub import offline_unless_reachable

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")

Row = tuple[str, Any]  # where it stands ("row 3"), and what it holds


def file_rows(path: Path, inside: str | None = None) -> list[Row]:
    """Return the rows of a file; raises PromptFileError with the file and the row.

    inside: where given, a JSON object may stand around the rows: the list of this name, or with "" the only list of objects in it.
    """
    if not path.is_file():
        raise PromptFileError(f"{path}: is a directory, not a prompt file")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise PromptFileError(f"{path}: unknown kind of file; prompts are read from {', '.join(SUFFIXES)}")
    if suffix == ".parquet":
        return _parquet_rows(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise PromptFileError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise PromptFileError(f"{path}: row {line}: not UTF-8; save the file as UTF-8") from error
    if suffix in (".csv", ".tsv"):
        return _csv_rows(path, text, "\t" if suffix == ".tsv" else ",")
    if suffix == ".json":
        return _json_rows(path, text, inside)
    return _jsonl_rows(path, text)


def _jsonl_rows(path: Path, text: str) -> list[Row]:
    rows: list[Row] = []
    # Not splitlines(): it would cut at U+2028, which JSON allows inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append((f"row {number}", json.loads(line)))
        except (json.JSONDecodeError, RecursionError) as error:
            detail = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            raise PromptFileError(f"{path}: row {number}: not JSON ({detail})") from error
    return rows


def _json_rows(path: Path, text: str, inside: str | None) -> list[Row]:
    if not text.strip():
        return []
    try:
        items = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; one object a line belongs in a .jsonl file" if error.msg == "Extra data" else ""
        raise PromptFileError(
            f"{path}: row {error.lineno}: not JSON ({error.msg}, column {error.colno}){hint}"
        ) from error
    except RecursionError as error:
        raise PromptFileError(f"{path}: nested too deeply to be a list of prompts") from error
    if isinstance(items, dict) and inside is not None:
        items = _inner_list(path, items, inside)
    if not isinstance(items, list):
        raise PromptFileError(f"{path}: holds {kind_of(items)}; a list of prompts is expected")
    return [(f"row {i}", item) for i, item in enumerate(items, start=1)]


def _inner_list(path: Path, whole: dict[str, Any], name: str) -> list[Any]:
    """The rows inside an object: one of its lists, or where it holds nothing but lists of objects all of them, with their key as `group`."""
    lists = {
        key: value
        for key, value in whole.items()
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
    }
    if name:
        if not isinstance(whole.get(name), list):
            raise PromptFileError(
                f"{path}: holds no list {name!r}; its lists are: {', '.join(lists) or 'none'}"
            )
        return whole[name]
    if len(lists) == 1:
        return next(iter(lists.values()))
    if lists and len(lists) == len(whole):
        return [{"group": key, **item} for key, items in lists.items() for item in items]
    raise PromptFileError(
        f"{path}: holds {len(lists)} lists of objects ({', '.join(lists)}); name one with --rows"
    )


def _csv_rows(path: Path, text: str, delimiter: str) -> list[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[Row] = []
    header: list[str] | None = None
    try:
        for cells in reader:
            if not cells:
                continue
            if header is None:
                header = cells
                if double := {c for c in header if c and header.count(c) > 1}:
                    raise PromptFileError(f"{path}: the column {min(double)!r} stands twice in the header")
                continue
            place = f"row {len(rows) + 1} (line {reader.line_num})"
            if len(cells) != len(header):
                raise PromptFileError(f"{path}: {place}: {len(cells)} cells under {len(header)} columns")
            # pandas writes a missing cell as nothing, other tools as NaN.
            values = {
                k: None if v in ("", "nan", "NaN") else v for k, v in zip(header, cells, strict=True) if k
            }
            rows.append((place, values))
    except csv.Error as error:
        raise PromptFileError(
            f"{path}: row {len(rows) + 1} (line {reader.line_num}): not CSV ({error})"
        ) from error
    return rows


def _parquet_rows(path: Path) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        items = pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise PromptFileError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from error
    return [(f"row {i}", item) for i, item in enumerate(items, start=1)]


def hub_rows(where: str) -> list[Row]:
    """Return the rows of `owner/name[:config[:split]]`, from the local cache when the hub is out of reach."""
    import datasets

    data_set, *rest = where.split(":")
    config = rest[0] if rest and rest[0] else None
    with offline_unless_reachable():
        try:
            splits = datasets.load_dataset(data_set, config)
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise PromptFileError(
                f"{where}: no such file, and no such data set within reach ({reason})"
            ) from error
    split = rest[1] if len(rest) > 1 else next(iter(splits)) if len(splits) == 1 else None
    if split not in splits:
        raise PromptFileError(
            f"{where}: name one of the splits {', '.join(splits)} as owner/name:config:split"
        )
    table = splits[split]
    for name, feature in table.features.items():
        if isinstance(
            feature, datasets.Audio
        ):  # its decoder is another package, whose absence is no row's fault
            table = table.cast_column(name, datasets.Audio(decode=False))
    return [(f"row {i}", dict(item)) for i, item in enumerate(table, start=1)]


def kind_of(value: object) -> str:
    """Say what a value is, for an error message."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "missing (an empty or NaN cell)"
    return f"of type {type(value).__name__}"
