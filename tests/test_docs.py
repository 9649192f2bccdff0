"""What the documents show works: every command runs or at least parses, every prompt file reads, every Python block runs.

A fenced `bash` block runs, in order with the others of its page, in an empty directory beside the shared organism. One
that cannot run here (a hub model, an accelerator, a scheduler) says `bash no-run`: then its `interp` commands are parsed by the real
command line, down to the script of `interp probe` and `interp run`, and its `make` targets must exist.
"""

import importlib
import re
import runpy
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from interp import cli, scripts
from interp.data.prompts import read_prompts
from interp.organisms import text_finetunes

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"^```(\w+)[ \t]*([^\n]*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
OTHERS = {"cd", "cp", "git", "hf", "inspect", "sbatch"}
"""Commands of other people that a page may show."""


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: str
    line: int
    language: str
    runs: bool
    text: str
    file: str | None = None

    def commands(self) -> list[str]:
        """The commands of a shell block, continued lines joined, comments and blank lines left out."""
        lines = re.sub(r"\\\n\s*", " ", self.text).splitlines()
        return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        language, info, body = match.groups()
        named = re.fullmatch(r"as ([\w.-]+)", info)
        assert named or info in ("", "no-run"), f"{page.name}: unknown words after ```{language}: {info!r}"
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(page.name, line, language, info != "no-run", body, named[1] if named else None))
    return found


ALL = [block for page in PAGES for block in blocks(page)]


def _deaf(command: Any) -> None:
    """Replace what every command does by nothing, so that only its parsing is left."""
    for inner in getattr(command, "commands", {}).values():
        _deaf(inner)
    if not getattr(command, "commands", {}):
        command.callback = lambda **_: None


def _parse(command: Any, words: list[str]) -> None:
    _deaf(command)
    command(words, standalone_mode=False)


def parse(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse `interp WORDS` as the command line would, without running it."""
    _parse(typer.main.get_command(cli.app), list(words))
    if words[0] in ("probe", "run") and len(words) > 1 and words[1] != "--help":
        package = {"probe": "probes", "run": "experiments"}[words[0]]
        module = importlib.import_module(f"{package}.{scripts.find(package, words[1])}")

        def only_parse(command: Callable[..., Any], argv: list[str], *_: str) -> int:
            app = typer.Typer(add_completion=False)
            app.command()(command)
            _parse(typer.main.get_command(app), list(argv))
            return 0

        monkeypatch.setattr(scripts, "call", only_parse)
        assert module.main(words[2:]) == 0


def _make_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return {
        name for line in re.findall(r"^([\w -]+):(?!=)", text, flags=re.MULTILINE) for name in line.split()
    }


@pytest.fixture
def demo(text_organism, tmp_path, monkeypatch):
    """What `make demo` leaves behind, and an empty directory to work in."""
    text_finetunes.tune("benign", progress=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_renamed_flag_is_noticed(monkeypatch):
    parse(["study", "a", "b", "--dry-run"], monkeypatch)
    with pytest.raises(Exception, match="--no-such-flag"):
        parse(["study", "a", "b", "--no-such-flag"], monkeypatch)
    with pytest.raises(Exception, match="--no-such-flag"):
        parse(["probe", "refusal_direction", "a", "--no-such-flag"], monkeypatch)


@pytest.mark.parametrize(
    "block", [b for b in ALL if b.language == "bash"], ids=lambda b: f"{b.page}:{b.line}"
)
def test_commands_parse(block, monkeypatch):
    for command in block.commands():
        words = shlex.split(command, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*|srun|export", words[0]):
            words = words[1:]
        if not words:
            continue
        where = f"{block.page}:{block.line}: {command}"
        if words[0] == "interp":
            if words[1:]:
                parse(words[1:], monkeypatch)
        elif words[0] == "make":
            assert set(words[1:]) <= _make_targets(), where
        else:
            assert words[0] in OTHERS or words[0].startswith("."), f"{where}: unknown command"


@pytest.mark.organism
@pytest.mark.xdist_group("organism")
@pytest.mark.parametrize(
    "page",
    [p for p in PAGES if any(b.runs and b.language == "bash" for b in blocks(p))],
    ids=lambda p: p.name,
)
def test_commands_run(page, demo, capsys):
    for block in blocks(page):
        if block.file:
            Path(block.file).write_text(block.text, encoding="utf-8")
        if block.language != "bash" or not block.runs:
            continue
        for command in block.commands():
            words = shlex.split(command, comments=True)
            if words[0] == "interp":  # in this process: importing torch anew costs more than most commands
                code = cli.main(words[1:])
                error = capsys.readouterr().err
            else:
                done = subprocess.run(["bash", "-ec", command], capture_output=True, text=True, check=False)
                code, error = done.returncode, done.stderr
            assert code == 0, f"{block.page}:{block.line}: {command}: {error}"


@pytest.mark.parametrize(
    "block", [b for b in ALL if b.language in ("json", "jsonl", "csv")], ids=lambda b: f"{b.page}:{b.line}"
)
def test_prompt_files_read(block, tmp_path):
    path = tmp_path / f"prompts.{block.language}"
    path.write_text(block.text, encoding="utf-8")
    assert len(read_prompts(path, label="harmful")) >= 1


@pytest.mark.organism
@pytest.mark.xdist_group("organism")
@pytest.mark.parametrize(
    "page",
    [p for p in PAGES if any(b.runs and b.language == "python" for b in blocks(p))],
    ids=lambda p: p.name,
)
def test_python_runs(page, demo):
    code = [block.text for block in blocks(page) if block.language == "python" and block.runs]
    (demo / "blocks.py").write_text("".join(code), encoding="utf-8")
    runpy.run_path("blocks.py")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_pages_hold_what_they_should():
    assert {"bash", "jsonl", "python"} <= {block.language for block in ALL}
    assert any(block.runs for block in ALL if block.language == "bash")
