"""What has a model's processor already made of an image or a sound? The last of it is kept, so that a prompt asked twice is processed once.

Patching asks the same prompts at every layer: without this, speech is turned into spectrograms again each time. Kept by the prompt *object* and its rendered text; the oldest goes when the tensors exceed `limit`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from interp.data.prompts import Prompt
from interp.models.tokens import Tokens


class MediaCache:
    """Rows by prompt and rendered text. limit: bytes of media tensors that are kept; a row larger than that is not."""

    def __init__(self, limit: int = 1 << 28) -> None:
        self.limit, self.size = limit, 0
        # the prompt is kept too: while it lives, no other object can have its id
        self._rows: OrderedDict[tuple[int, str], tuple[Prompt, Tokens]] = OrderedDict()

    def get(self, prompt: Prompt, text: str, make: Callable[[], Tokens]) -> Tokens:
        """The row of the prompt under this text, made where it is not kept."""
        key = id(prompt), text
        if key in self._rows:
            self._rows.move_to_end(key)
            return self._rows[key][1]
        made = make()
        self._rows[key] = prompt, made
        self.size += _bytes(made)
        while self.size > self.limit:
            _, (_, oldest) = self._rows.popitem(last=False)
            self.size -= _bytes(oldest)
        return made


def _bytes(row: Tokens) -> int:
    return sum(value.numel() * value.element_size() for value in row.media.values())
