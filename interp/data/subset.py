"""How is a part of somebody's file written so that it stays that file? The kept rows as they were, in the same format.

Lines of JSONL and cells of CSV are copied, not made anew; a list of JSON keeps its values, Parquet its schema. Only relative paths of
images and audio are changed, and only where the part lies in another directory than the whole.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from interp.data.attachments import MEDIA, absolute, portable
from interp.data.rows import SUFFIXES
from interp.errors import PromptFileError
from interp.files import atomic_write


def write_rows(source: Path, rows: Sequence[int], target: Path, directory: Path | None = None) -> None:
    """Write the rows of `source` at these 0-based places, in its order, to `target`, whose name ends as the source's does.

    directory: where the written file will lie in the end, if not where `target` says. Rows are counted as `read_prompts` counts
    them: blank lines are none. Raises PromptFileError for a file that is not one of
    SUFFIXES and for rows that it does not have; ResultError when the disk refuses.
    """
    suffix = source.suffix.lower()
    if suffix not in SUFFIXES or target.suffix.lower() != suffix:
        raise PromptFileError(
            f"{target}: a part of {source.name} is written as one of the kinds {', '.join(SUFFIXES)}, and its own"
        )
    wanted = sorted(rows)

    def place(path: str) -> str:
        return portable(absolute(path, str(source.parent)), str(directory or target.parent))

    moved = source.parent.resolve() != (directory or target.parent).resolve()
    if suffix == ".parquet":
        _parquet(source, wanted, target, place if moved else None)
        return
    text = source.read_bytes().decode("utf-8-sig")
    make = {".csv": _csv, ".tsv": _csv, ".json": _json}.get(suffix, _jsonl)
    try:
        content = make(text, wanted, place if moved else None, "\t" if suffix == ".tsv" else ",")
    except IndexError as error:
        raise PromptFileError(
            f"{source}: has no row {wanted[-1] + 1}; it changed while it was read"
        ) from error
    try:
        encoded = content.encode()
    except UnicodeEncodeError as error:
        raise PromptFileError(
            f"{source}: a row to be kept holds half a character ({content[error.start : error.end]!a}), which cannot be written; remove it"
        ) from error
    with atomic_write(target) as aside:
        aside.write_bytes(encoded)


Place = Callable[[str], str] | None


def _jsonl(text: str, rows: Sequence[int], place: Place, _: str) -> str:
    lines = [line.rstrip("\r") for line in text.split("\n") if line.strip()]
    kept = [lines[i] for i in rows]
    if place is not None:
        kept = [_line(line, place) for line in kept]
    return "".join(line + "\n" for line in kept)


def _line(line: str, place: Callable[[str], str]) -> str:
    item = json.loads(line)
    placed = _placed(item, place)
    return line if placed == item else json.dumps(placed, ensure_ascii=False)


def _json(text: str, rows: Sequence[int], place: Place, _: str) -> str:
    items = json.loads(text)
    kept = [items[i] for i in rows]
    if place is not None:
        kept = [_placed(item, place) for item in kept]
    return json.dumps(kept, ensure_ascii=False, indent=2) + "\n"


def _csv(text: str, rows: Sequence[int], place: Place, delimiter: str) -> str:
    header, *lines = (
        cells for cells in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if cells
    )
    kept = [lines[i] for i in rows]
    if place is not None:
        media = [i for i, name in enumerate(header) if name.strip().lower() in MEDIA]
        for cells in kept:
            for i in media:
                cells[i] = _cell(cells[i], place)
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter, lineterminator="\n").writerows([header, *kept])
    return out.getvalue()


def _cell(cell: str, place: Callable[[str], str]) -> str:
    if cell in ("", "nan", "NaN"):
        return cell
    if cell.lstrip().startswith("["):
        try:
            return json.dumps([place(path) for path in json.loads(cell)], ensure_ascii=False)
        except (ValueError, TypeError):
            pass  # a file name may start with a bracket
    return place(cell)


def _placed(item: Any, place: Callable[[str], str]) -> Any:
    """A row with its paths of media moved."""
    if not isinstance(item, dict):
        return item
    return {
        key: _moved(value, place) if key.strip().lower() in MEDIA else value for key, value in item.items()
    }


def _moved(value: Any, place: Callable[[str], str]) -> Any:
    if isinstance(value, list):
        return [_moved(part, place) for part in value]
    return place(value) if isinstance(value, str) and value else value


def _parquet(source: Path, rows: Sequence[int], target: Path, place: Place) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(source).take(pa.array(rows, pa.int64()))
    for i, field in enumerate(table.schema if place is not None else ()):
        if field.name.strip().lower() in MEDIA and place is not None:
            moved = [_moved(value, place) for value in table.column(i).to_pylist()]
            table = table.set_column(i, field, pa.array(moved, field.type))
    with atomic_write(target) as aside:
        pq.write_table(table, aside)
