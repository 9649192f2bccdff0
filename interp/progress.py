"""How far is the work, how fast does it go and how long is left? One bar on stderr or in a notebook, silent in a log."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

# The display now on screen: an inner loop adds its line there, since two live displays overwrite each other.
_display: "Progress | None" = None


@contextmanager
def progress(label: str, total: int | None, enabled: bool = True) -> Iterator[Callable[[int], None]]:
    """Show a bar named `label` and yield `advance(k)`, which counts k further units of `total` (None: unknown).

    Writes nothing when `enabled` is false, or where nobody looks: stderr is no terminal and this is no notebook (with
    ipywidgets, which a live display there needs). Bars nest: an inner one disappears when done.
    """
    global _display
    if not enabled or not (sys.stderr.isatty() or _in_notebook()):
        yield lambda k: None
        return
    if _display is not None:
        display = _display
        task = display.add_task(label, total=total)
        try:
            yield lambda k: display.advance(task, k)
        finally:
            display.remove_task(task)
        return
    with _new_display() as display:
        _display = display
        task = display.add_task(label, total=total)
        try:
            yield lambda k: display.advance(task, k)
        finally:
            _display = None


def _in_notebook() -> bool:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return (
        type(shell).__name__ == "ZMQInteractiveShell" and importlib.util.find_spec("ipywidgets") is not None
    )


def _new_display() -> "Progress":
    # rich.progress costs 50 ms to import, which `interp --help` must not pay.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class RateColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            rate = task.finished_speed or task.speed
            return Text("" if rate is None else f"{rate:.3g}/s" if rate >= 1 else f"{1 / rate:.3g} s each")

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
