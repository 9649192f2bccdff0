"""A small run of two steps and a file, that the tests of the store share."""

from pathlib import Path
from typing import Any

import numpy as np

from interp.store import Run, open_run


def complete(home: Path) -> list[Path]:
    """Whatever a person or a program would take for a finished result."""
    return [path for path in home.iterdir() if not path.name.startswith(".") and not path.is_symlink()]


class Steps:
    """Two steps and a plain file, counting what is computed."""

    def __init__(self) -> None:
        self.computed: list[str] = []

    def run(self, root: Path, **changes: Any) -> Run:
        arguments: dict[str, Any] = {"config": {"n": 3}, "slug": "a vs b", **changes}
        with open_run(root, "study", **arguments) as run:
            self.scores = run.step(
                "scores.safetensors", lambda: self._compute("scores", {"x": np.arange(3.0)})
            )
            self.words = run.step("words.json", lambda: self._compute("words", ["yes", "no"]))
            if not run.finished:
                run.save_json("result.json", {"ok": True})
        return run

    def _compute(self, name: str, value: Any) -> Any:
        self.computed.append(name)
        return value
