"""Which prompts did somebody else's harness ask, and what was answered? Prompts and responses out of a file of any shape.

1. The rows: JSONL, CSV, TSV, Parquet, a JSON list, or a JSON object that holds one list of objects (`completions`, `samples`), or nothing
   but lists of objects by key (HarmBench), which is then their group.
2. The prompt and the response of a row: columns named by the caller, with dots into nested objects (`output.completion`), or guessed where
   exactly one fits. A list of one text is that text; of chat messages, the last of the user or of the assistant.
3. The other columns fill the fields of a prompt as in `read_prompts`.

Rows with the same id, or without ids the same prompt, are several answers to it: they are numbered and share a cluster.
A response that is missing is no empty answer: nobody knows what the model said.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from interp.data.columns import PROMPT_COLUMNS, prompt_fields
from interp.data.prompts import Label, Prompt, PromptSet
from interp.data.rows import Row, file_rows, kind_of
from interp.errors import PromptFileError, UserError

ASKED = (*PROMPT_COLUMNS[:1], ("test_case", *PROMPT_COLUMNS[1][:-1]), ("messages",))
ANSWERED = (
    "response",
    "completion",
    "generation",
    "output",
    "answer",
    "model_response",
    "model_output",
    "resps",
)
Pairing = Literal["auto", "id", "prompt"]
PAIRINGS: tuple[Pairing, ...] = ("auto", "id", "prompt")
# CSV cannot tell a missing cell from an empty text, and models do answer nothing
_UNTYPED = (".csv", ".tsv")


@dataclass(frozen=True)
class Answers:
    """What one file holds.

    prompts: one an answer, in order; by their `id` two files meet. responses: None where the file holds none.
    keys: the id or text of the prompt behind each answer; several answers share one. path: where they were read.
    """

    prompts: PromptSet
    responses: tuple[str | None, ...]
    keys: tuple[str, ...]
    path: str

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def by_id(self) -> dict[str, str | None]:
        """The responses by the prompt's id."""
        return dict(zip(self.prompts.ids, self.responses, strict=True))


def read_answers(
    path: str | Path,
    *,
    prompt: str | None = None,
    response: str | None = None,
    rows: str | None = None,
    group: str | None = None,
    by: Pairing = "auto",
    label: Label | None = None,
) -> Answers:
    """Read prompts and responses.

    prompt, response: columns, with dots into nested objects; guessed when exactly one fits. rows: which list of a JSON object holds
    the rows; needed where it holds several. group: the column of the cluster (a verb, a category). by: what a prompt is known by; `auto`
    is the column `id` where every row has one, else the prompt's text. label: given to prompts that have none.
    Raises PromptFileError, one line with the file and the row.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise PromptFileError(f"{path}: no such file")
    found = file_rows(path, inside=rows or "")
    if not found:
        raise PromptFileError(f"{path}: holds no rows")
    for place, item in found:
        if not isinstance(item, Mapping):
            raise PromptFileError(f"{path}: {place}: holds {kind_of(item)}, not an object with a response")
    columns = list(dict.fromkeys(key for _, item in found for key in item))
    prompt = _column(path, "prompt", columns, ASKED, prompt)
    response = _column(path, "response", [c for c in columns if c != prompt], (ANSWERED,), response)
    with_id = by != "prompt" and all(item.get("id") is not None for _, item in found)
    if by == "id" and not with_id:
        place = next(place for place, item in found if item.get("id") is None)
        raise PromptFileError(f"{path}: {place}: has no id; pair the rows by prompt")
    prompts, responses, keys = [], [], []
    untyped = path.suffix.lower() in _UNTYPED
    for place, item in found:
        try:
            prompts.append(_prompt(item, prompt, response, group))
            responses.append(_response(item, response, untyped))
        except UserError as error:
            raise PromptFileError(f"{path}: {place}: {error}") from error
        keys.append(str(item["id"]) if with_id else " ".join(prompts[-1].text.split()))
    return _keyed(str(path), found, prompts, responses, keys, label)


def _keyed(
    path: str,
    rows: Sequence[Row],
    prompts: Sequence[Prompt],
    responses: Sequence[str | None],
    keys: Sequence[str],
    label: Label | None,
) -> Answers:
    """Number the answers to one prompt, and make them a cluster where there are several."""
    texts: dict[str, tuple[str, str]] = {}
    seen: Counter[str] = Counter()
    several = len(set(keys)) < len(keys)
    named = []
    for (place, _), prompt, key in zip(rows, prompts, keys, strict=True):
        first, text = texts.setdefault(key, (place, prompt.text))
        if " ".join(text.split()) != " ".join(prompt.text.split()):
            raise PromptFileError(f"{path}: {place}: id {key!r} stands for another prompt in {first}")
        seen[key] += 1
        named.append(
            replace(
                prompt,
                id=key if seen[key] == 1 else f"{key} #{seen[key]}",
                group=prompt.group if prompt.group is not None or not several else key,
                label=prompt.label or label,
            )
        )
    return Answers(PromptSet(named, Path(path).stem), tuple(responses), tuple(keys), path)


def _column(
    path: Path, what: str, columns: Sequence[str], tiers: Sequence[Sequence[str]], asked: str | None
) -> str:
    listed = ", ".join(columns) or "none"
    if asked is not None:
        if asked not in columns and asked.partition(".")[0] not in columns:
            raise PromptFileError(f"{path}: no column {asked!r} for the {what}; there are: {listed}")
        return asked
    for tier in tiers:
        fitting = [c for c in columns if c.strip().lower() in tier]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise PromptFileError(
                f"{path}: {' and '.join(fitting)} could hold the {what}; say which with --{what}-column"
            )
    raise PromptFileError(
        f"{path}: no column looks like the {what}; say which with --{what}-column (columns: {listed})"
    )


def _value(item: Mapping[str, Any], column: str) -> Any:
    """What a row holds under a name, or under a path of names; None where it ends early."""
    if column in item:
        return item[column]
    value: Any = item
    for part in column.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def _text(value: Any, role: str) -> Any:
    """The text inside a list of one, or of the last message of a role; anything else as it is."""
    while isinstance(value, list | tuple) and len(value) == 1 and not isinstance(value[0], Mapping):
        value = value[0]
    if isinstance(value, list) and value and all(isinstance(m, Mapping) and "role" in m for m in value):
        turns = [m.get("content") for m in value if m["role"] == role]
        return turns[-1] if turns else None
    return value


def _prompt(item: Mapping[str, Any], column: str, response: str, group: str | None) -> Prompt:
    text = _text(_value(item, column), "user")
    # an id is the key; the response is judged, not a field
    left_out = {column.partition(".")[0], response.partition(".")[0]}
    kept = {k: v for k, v in item.items() if k not in left_out and k.strip().lower() != "id"}
    fields = prompt_fields(kept, None)
    prompt = Prompt(**{**fields, "text": text if isinstance(text, str) else _no_text(text)})
    if group is None:
        return prompt
    value = _value(item, group)
    if value is None:
        raise UserError(f"has no {group!r} to cluster by")
    return replace(prompt, group=str(value))


def _no_text(value: Any) -> str:
    raise UserError(f"the prompt is {kind_of(value)}, not text")


def _response(item: Mapping[str, Any], column: str, untyped: bool) -> str | None:
    value = _text(_value(item, column), "assistant")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "" if untyped else None
    if not isinstance(value, str):
        raise UserError(f"the response is {kind_of(value)}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"half a surrogate pair at character {error.start} of the response") from error
    return value
