"""What did a model answer? One answer as data, so that judges need no torch to read it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Completion:
    """One answer: its text without special tokens, its length (a prefilled beginning counted in), whether the model ended it itself, and its tokens."""

    prompt_id: str
    text: str
    n_tokens: int
    stopped: bool
    token_ids: tuple[int, ...] = ()
