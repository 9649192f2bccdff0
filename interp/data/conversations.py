"""What is asked in a row of chat data? The one question of a conversation, its system turn and its answer.

Turns are objects with `role` and `content`, or `from` and `value` (ShareGPT's form). A conversation of several questions is no prompt:
it is an error, since which of its turns is meant nothing says.
"""

from __future__ import annotations

import json
from typing import Any

from interp.data.rows import kind_of
from interp.errors import UserError

COLUMNS = ("messages", "conversations", "conversation")
ROLES = {
    "user": "user",
    "human": "user",
    "system": "system",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}


def conversation(value: Any) -> dict[str, str]:
    """The `text`, and where there are such turns the `system` and `response`, of a conversation; UserError for any other value."""
    if isinstance(value, str):  # a cell of a CSV
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise UserError("the conversation is a text that is not JSON") from error
    if not isinstance(value, list):
        raise UserError(f"the conversation is {kind_of(value)}, not a list of turns")
    found: dict[str, list[str]] = {"system": [], "user": [], "assistant": []}
    for turn in value:
        role, content = _turn(turn)
        found[role].append(content)
    if len(found["user"]) != 1 or len(found["system"]) > 1 or len(found["assistant"]) > 1:
        raise UserError(
            f"a conversation of {len(found['user'])} questions and {len(found['assistant'])} answers; only one question, with at most "
            "one system turn and one answer, is read"
        )
    names = {"system": "system", "user": "text", "assistant": "response"}
    return {names[role]: turns[0] for role, turns in found.items() if turns}


def _turn(turn: Any) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise UserError(f"a turn of the conversation is {kind_of(turn)}, not an object")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if role not in ROLES:
        raise UserError(
            f"a turn of the conversation has the role {role!r}, which is none of {', '.join(ROLES)}"
        )
    if not isinstance(content, str):
        raise UserError(f"the {role} turn of the conversation is {kind_of(content)}, not text")
    return ROLES[role], content
