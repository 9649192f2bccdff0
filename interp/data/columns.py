"""Which column of somebody else's file holds the prompt, and what do the others say about it?

The prompt's column is guessed only when one fits; every other case is a question for the caller. Only where images or
audio are the prompt may there be none. What stands in a column of media is media, or an error: a request whose picture
went unseen would be another request.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from interp.data import conversations
from interp.data.attachments import MEDIA, media_fields
from interp.errors import MediaError, PromptFileError

# A column of the first row of names is taken before one of the second: JailbreakBench has `Goal` (the request) and
# `Behavior` (its short title); HarmBench has only `Behavior`. Two of one row are a question for the caller.
PROMPT_COLUMNS = (
    ("instruction", "prompt", "goal", "question", "request", "query", "user_prompt", "forbidden_prompt"),
    ("behavior", "behaviour", "text", "input", "content"),
)
RESPONSE_COLUMNS = ("response", "completion", "output")


def prompt_column(where: str, columns: Sequence[str], asked: str | None) -> str | None:
    """Return the column holding the prompt: the one asked for, or the only one that fits; else PromptFileError.

    None where no column fits but one holds images or audio, whose prompts have no text.
    """
    listed = ", ".join(map(str, columns)) or "none"
    if asked is not None:
        if asked not in columns:
            raise PromptFileError(f"{where}: no column {asked!r}; --column must be one of: {listed}")
        return asked
    for tier in PROMPT_COLUMNS:
        fitting = [c for c in columns if c.strip().lower() in tier]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise PromptFileError(
                f"{where}: {' and '.join(fitting)} could hold the prompt; say which with --column"
            )
    chats = [c for c in columns if c.strip().lower() in conversations.COLUMNS]
    if len(chats) == 1:
        return chats[0]
    if any(c.strip().lower() in MEDIA for c in columns):
        return None
    raise PromptFileError(
        f"{where}: no column looks like the prompt; say which with --column (columns: {listed})"
    )


def text_beside(media: Mapping[str, Any], text: Any) -> Any:
    """Return the text of a prompt: empty where none is given but images or audio are."""
    return "" if _missing(text) and any(media.values()) else text


def prompt_fields(row: Mapping[str, Any], column: str | None) -> dict[str, Any]:
    """Return the fields of a prompt: known columns by name, whatever the case, the rest as JSON values in `meta`."""
    values: dict[str, Any] = {}
    media: dict[str, Any] = {}
    meta: dict[str, Any] = {}
    for key, value in row.items():
        known = key.strip().lower()
        if key == column or _missing(value):
            continue
        if known in MEDIA:
            if known in media:
                raise MediaError(f"two columns are named `{known}`; keep one of them")
            media[known] = value
            continue
        if known in RESPONSE_COLUMNS and isinstance(value, str):
            known = "response"
        if known == "label":
            value = {"harmless": "benign"}.get(value, value) if isinstance(value, str) else value
            usable = value in ("harmful", "benign")
        elif known == "id":
            value, usable = str(value), True
        else:
            usable = known in ("system", "response", "category", "source", "group") and isinstance(value, str)
        if usable and known not in values:
            values[known] = value
        else:
            meta[key] = json.loads(json.dumps(value, default=_as_text))
    found = media_fields(media, encoded=True)
    text = None if column is None else row.get(column)
    if column is not None and column.strip().lower() in conversations.COLUMNS:
        turns = conversations.conversation(text)
        text = turns.pop("text")
        if double := set(turns) & set(values):
            raise PromptFileError(
                f"`{min(double)}` stands in a column and in the conversation; keep one of them"
            )
        values |= turns
    return values | found | {"text": text_beside(found, text), "meta": meta}


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _as_text(value: Any) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else f"<{type(value).__name__}>"
