"""The command line passes on what was asked, fails in one line, and stays light until a command runs."""

import re
import subprocess
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from interp import cli
from interp.errors import CheckpointError
from interp.study import settings
from interp.study.settings import StudyConfig

ROOT = Path(__file__).parents[1]
COMMANDS = [
    [], ["study"], ["doctor"], ["organism"], ["organism", "build"], ["organism", "list"], ["organism", "card"],
    ["probe"], ["run"], ["report"], ["filter"], ["rescore"],
]  # fmt: skip


class FakeStudy(types.ModuleType):
    """Stands in for `interp.study`; remembers how it was called and fails as told."""

    StudyConfig = settings.StudyConfig

    def __init__(self) -> None:
        super().__init__("interp.study")
        self.called: list[tuple[str, StudyConfig, dict[str, Any]]] = []
        self.failure: BaseException | None = None
        self.result: Any = None

    def plan_study(self, config: StudyConfig) -> str:
        self.called.append(("plan", config, {}))
        return "would load 2 checkpoints"

    def run_study(self, config: StudyConfig, **options: Any) -> tuple[Any, Path]:
        self.called.append(("run", config, options))
        if self.failure:
            raise self.failure
        return self.result, options["out"] / "study" / "2026-01-01-x-12345678"


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> FakeStudy:
    import interp

    fake = FakeStudy()
    monkeypatch.setitem(sys.modules, "interp.study", fake)
    monkeypatch.setattr(interp, "study", fake, raising=False)
    monkeypatch.setattr("interp.summary.print_summary", lambda result: None)
    return fake


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_help_ends_with_an_example(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command, "--help"]) == 0
    text = capsys.readouterr().out
    example = text[text.index("Example:") :].splitlines()[1:]
    assert example
    assert all(line.strip().startswith(" ".join(["interp", *command])) for line in example)


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert "organism" in capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from interp.cli import main; code = main(['--help']) or main(['study', '--help']);"
        "heavy = {'torch', 'transformers', 'numpy', 'pandas', 'matplotlib', 'scipy', 'datasets', 'rich.progress'};"
        "print(sorted(heavy & sys.modules.keys()), file=sys.stderr); sys.exit(code or bool(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_python_dash_m_is_the_same_command() -> None:
    command = [sys.executable, "-m", "interp", "study"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: Missing argument 'ALIGNED'. See interp study --help\n"


# --- study ---


def test_study_passes_on_everything_given(
    study: FakeStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {
        "--harmful": "h.jsonl", "--harmless": "b.csv", "--column": "text", "--dtype": "bfloat16",
        "--device-map": "cuda:0", "--chat-template": "t.jinja", "--judge": "phrases", "--n-train": "8", "--n-val": "4",
        "--n-test": "6", "--layers-below": "0.7", "--max-kl": "0.2", "--min-induce": "-1", "--seed": "3", "--max-new-tokens": "16", "--batch-size": "2", "--out": str(tmp_path),
    }  # fmt: skip
    flat = [part for option in options.items() for part in option]
    assert cli.main(["study", "base", "one", "two", "--load-in-4bit", *flat]) == 0
    ((what, config, given),) = study.called
    assert what == "run"
    assert given == {"out": tmp_path, "progress": True}
    assert config == StudyConfig(
        aligned="base", tuned=("one", "two"), harmful="h.jsonl", harmless="b.csv", column="text", dtype="bfloat16",
        device_map="cuda:0", load_in_4bit=True, chat_template="t.jinja", judge="phrases", n_train=8, n_val=4, n_test=6,
        layers_below=0.7, max_kl=0.2, min_induce=-1, seed=3, max_new_tokens=16, batch_size=2,
    )  # fmt: skip
    out = capsys.readouterr().out
    assert str(tmp_path / "study" / "2026-01-01-x-12345678" / "report.html") in out
    assert "figures" in out


def test_study_leaves_defaults_to_the_pipeline(study: FakeStudy) -> None:
    assert cli.main(["study", "base", "tuned"]) == 0
    assert study.called[0][1] == StudyConfig(aligned="base", tuned=("tuned",))
    assert study.called[0][2]["out"] == Path("results")


def test_the_real_config_has_the_fields_that_are_passed_on() -> None:
    real = pytest.importorskip("interp.study").StudyConfig
    assert StudyConfig.model_fields.keys() <= real.model_fields.keys()


def test_an_adapter_makes_a_tuned_checkpoint_of_the_aligned_one(study: FakeStudy) -> None:
    assert cli.main(["study", "base@main", "--adapter", "my/lora"]) == 0
    assert cli.main(["study", "base", "other", "--adapter", "my/lora"]) == 0
    assert [config.tuned for _, config, _ in study.called] == [
        ("base@main+my/lora",),
        ("other", "base+my/lora"),
    ]


def test_dry_run_only_plans(study: FakeStudy, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "base", "tuned", "--dry-run"]) == 0
    assert [what for what, _, _ in study.called] == ["plan"]
    assert capsys.readouterr().out == "would load 2 checkpoints\n"


def test_the_report_opens_only_when_asked(study: FakeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    import webbrowser

    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    cli.main(["study", "base", "tuned"])
    assert opened == []
    cli.main(["study", "base", "tuned", "--browser"])
    assert opened[0].startswith("file:///")
    assert opened[0].endswith("report.html")


@pytest.mark.parametrize("width", ["80", "140"])
def test_the_summary_is_one_line_a_checkpoint(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: str
) -> None:
    from study_fixture import BENIGN_NAME, study_result

    from interp.summary import print_summary

    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    result = study_result()
    print_summary(result)
    lines = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out).splitlines()
    assert len(lines) == 2 + 1 + len(result.tuned)
    assert max(map(len, lines)) <= int(width)
    (benign,) = [line for line in lines if BENIGN_NAME[-10:] in line]
    assert "[0.54, 0.67]" in benign
    assert "layer 7" in benign
    assert "same weights" in lines[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["study", "base"], "nothing to compare: give a TUNED checkpoint or --adapter DIR"),
        (["study", "base", "tuned", "--n-train", "0"], "--n-train"),
        (["study", "base", "tuned", "--nonsense"], "No such option"),
        (["stdy"], "Did you mean 'study'?"),
        (["organism"], "Missing command"),
        (["report", "/nonexistent"], "/nonexistent: is no complete result"),
        (["run", "no_such_experiment"], "no 'no_such_experiment' in experiments"),
    ],
)
def test_bad_usage_is_one_line_and_exit_two(
    study: FakeStudy, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert study.called == []


def test_a_value_the_config_refuses_names_the_option(
    study: FakeStudy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Strict(StudyConfig):
        judge: types.NoneType = None  # type: ignore[assignment]

    monkeypatch.setattr(study, "StudyConfig", Strict, raising=False)
    assert cli.main(["study", "base", "tuned", "--judge", "coin"]) == 2
    assert capsys.readouterr().err.startswith("error: --judge: ")


def test_a_user_error_below_is_one_line(
    study: FakeStudy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study.failure = CheckpointError("checkpoint 'x' not found\n  (try again)")
    monkeypatch.delenv("INTERP_DEBUG", raising=False)
    assert cli.main(["study", "x", "y"]) == 2
    assert capsys.readouterr().err == "error: checkpoint 'x' not found (try again)\n"
    monkeypatch.setenv("INTERP_DEBUG", "1")
    with pytest.raises(CheckpointError):
        cli.main(["study", "x", "y"])


def test_a_defect_is_not_hidden(study: FakeStudy) -> None:
    study.failure = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        cli.main(["study", "x", "y"])


def test_interruption_says_how_to_go_on(study: FakeStudy, capsys: pytest.CaptureFixture[str]) -> None:
    study.failure = KeyboardInterrupt()
    assert cli.main(["study", "x", "y"]) == 130
    assert capsys.readouterr().err == "interrupted; run the same command again to resume\n"


# --- probe and run ---


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A throw-away `probes` package in front of the real one."""
    package = tmp_path / "probes"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "echo_back.py").write_text(
        '"""Does it pass its arguments on?\n\nmore."""\nimport sys\n'
        "from interp.errors import UserError\n"
        "def main(argv=None):\n    print(argv)\n"
        "    if 'fail' in argv: raise UserError('bad thing')\n"
        "    return 3 if 'three' in argv else None\n"
    )
    (package / "broken.py").write_text('"""Is never imported by listing."""\nraise RuntimeError\n')
    (package / "_private.py").write_text('"""Not a script."""\n')
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "probes"]:
        monkeypatch.delitem(sys.modules, name)
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == "probes"]:
        del sys.modules[name]


def test_listing_shows_names_and_questions(scripts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["probe"]) == 0
    assert capsys.readouterr().out == (
        "broken     Is never imported by listing.\necho_back  Does it pass its arguments on?\n"
    )


def test_arguments_reach_the_script_untouched(scripts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["probe", "echo-back", "a", "--flag", "-x", "1", "--help"]) == 0
    assert capsys.readouterr().out == "['a', '--flag', '-x', '1', '--help']\n"
    assert cli.main(["probe", "echo_back", "three"]) == 3
    assert cli.main(["probe", "echo_back", "fail"]) == 2
    assert capsys.readouterr().err == "error: bad thing\n"


def test_an_unknown_script_names_its_neighbours(scripts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["probe", "echo_bak"]) == 2
    assert capsys.readouterr().err == "error: no 'echo_bak' in probes; did you mean echo_back?\n"
    assert cli.main(["probe", "xyz"]) == 2
    assert capsys.readouterr().err == "error: no 'xyz' in probes; there are: broken, echo_back\n"


# --- organisms ---


def test_organism_commands_reach_the_builder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import interp.organisms

    called: list[tuple[str, Mapping[str, Any]]] = []

    def record(name: str) -> Any:
        return lambda **options: called.append((name, options)) or f"<{name}>"

    for kind in cli.ORGANISMS:
        module = kind.replace("-", "_")
        fake = types.ModuleType(f"interp.organisms.{module}")
        for name in ("build", "card", "listing"):
            setattr(fake, name, record(f"{kind} {name}"))
        monkeypatch.setitem(sys.modules, fake.__name__, fake)
        monkeypatch.setattr(interp.organisms, module, fake, raising=False)
    assert cli.main(["organism", "build", "--seed", "2", "--force"]) == 0
    assert cli.main(["organism", "card", "vision", "--seed", "1"]) == 0
    assert cli.main(["organism", "list"]) == 0
    assert called == [
        ("text build", {"seed": 2, "force": True, "progress": True}),
        ("vision card", {"seed": 1}),
        *((f"{kind} listing", {}) for kind in cli.ORGANISMS),
    ]
    shown = capsys.readouterr().out.split("\n")[:-1]
    assert shown == ["<text build>", "<vision card>", *(f"<{kind} listing>" for kind in cli.ORGANISMS)]


# --- report ---


def test_report_draws_a_stored_study_again_and_leaves_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from study_fixture import study_result

    import interp.report.html
    from interp.store import open_run, verify

    def render(result: Any, directory: Path) -> Path:
        (directory / "figures").mkdir()
        (directory / "figures" / "pca.png").write_bytes(b"png")
        (directory / "report.html").write_text(f"about {result.aligned}")
        return directory / "report.html"

    monkeypatch.setattr(interp.report.html, "render_report", render)
    with open_run(tmp_path / "results", "study", "x", {}) as run:
        study_result().to_store(run.path)
    out = tmp_path / "report"
    out.mkdir()
    (out / "report.html").write_text("old")
    (out / "mine.txt").write_text("kept")
    latest = str(tmp_path / "results" / "study" / "latest")
    assert cli.main(["report", latest, "--out", str(out)]) == 0
    assert (out / "report.html").read_text() == f"about {study_result().aligned}"
    assert sorted(path.name for path in out.iterdir()) == ["figures", "mine.txt", "report.html"]
    assert str(out / "report.html") in capsys.readouterr().out
    verify(run.path)

    assert cli.main(["report", latest, "--out", latest]) == 2
    assert "never changes" in capsys.readouterr().err
    verify(run.path)


def test_a_report_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    from interp.files import replacing_files

    (tmp_path / "report.html").write_text("old")
    with pytest.raises(ValueError, match="no"), replacing_files(tmp_path) as aside:
        (aside / "report.html").write_text("half")
        raise ValueError("no")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("report.html", "old")]
