"""The bar counts, nests, shows rate and time left on a terminal, and is silent elsewhere."""

import io
import os
import subprocess
import sys
import types
from contextlib import redirect_stderr

import pytest

from interp.progress import progress


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_silent_when_stderr_is_not_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    with progress("captures", total=3) as advance:
        advance(1)
        advance(2)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_silent_when_switched_off() -> None:
    with redirect_stderr(Terminal()) as terminal, progress("captures", total=3, enabled=False) as advance:
        advance(3)
    assert terminal.getvalue() == ""


def test_shows_count_and_time_left() -> None:
    with redirect_stderr(Terminal()) as terminal, progress("captures", total=4) as advance:
        advance(1)
        advance(3)
    text = terminal.getvalue()
    assert "captures" in text
    assert "4/4" in text
    assert "left" in text
    assert "/s" in text or "s each" in text


def test_a_rate_below_one_reads_as_seconds_each(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.progress import Task

    monkeypatch.setattr(Task, "speed", property(lambda self: 0.25))
    with redirect_stderr(Terminal()) as terminal, progress("steps", total=4) as advance:
        advance(1)
    assert "4 s each" in terminal.getvalue()


def test_bars_nest_on_one_display() -> None:
    with redirect_stderr(Terminal()) as terminal, progress("outer", total=2) as outer:
        for _ in range(2):
            with progress("inner", total=5) as inner:
                inner(5)
            outer(1)
    text = terminal.getvalue()
    assert "outer" in text
    assert "2/2" in text


def test_an_exception_passes_through_and_the_next_bar_works() -> None:
    with redirect_stderr(Terminal()) as terminal:
        with pytest.raises(ValueError, match="broken"), progress("first", total=2):
            raise ValueError("broken")
        with progress("second", total=1) as advance:
            advance(1)
    assert "second" in terminal.getvalue()


def test_unknown_total() -> None:
    with redirect_stderr(Terminal()) as terminal, progress("reading", total=None) as advance:
        advance(7)
    assert "7/?" in terminal.getvalue()


def test_importing_it_does_not_import_rich() -> None:
    code = "import sys, interp.progress; sys.exit('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=os.getcwd(), check=False).returncode == 0


def test_shows_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    class ZMQInteractiveShell:
        """What IPython.get_ipython returns in a notebook."""

    notebook = types.ModuleType("IPython")
    notebook.get_ipython = ZMQInteractiveShell  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    for found, shown in ((None, False), (object(), True)):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, found=found: found)
        with redirect_stderr(io.StringIO()) as err, progress("captures", total=2) as advance:
            advance(2)
        assert ("captures" in err.getvalue()) == shown
