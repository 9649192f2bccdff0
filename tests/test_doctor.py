"""The doctor names what is wrong with its cure, says what is fine, and makes no network call unasked."""

import builtins
import importlib.metadata
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from interp import cli, doctor
from interp.doctor import Finding, diagnose, read_pins
from interp.errors import ResultError


def findings(topic: str, **options: Any) -> list[Finding]:
    return [finding for finding in diagnose(**options) if finding.topic == topic]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the doctor called the network unasked")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def test_this_environment_is_usable(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    for topic in ("python", "versions", "processor", "memory", "accelerator", "organisms", "hub cache"):
        assert topic in out
    assert out.rstrip().endswith("usable")


def test_pins_cover_what_the_package_needs() -> None:
    pins = read_pins(doctor.CONSTRAINTS)
    assert pins["torch"] == "2.13.0"
    text = (doctor.CONSTRAINTS.parent / "pyproject.toml").read_text()
    import tomllib

    project = tomllib.loads(text)["project"]
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    for line in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])


def test_a_line_that_is_no_pin_is_named(tmp_path: Path) -> None:
    path = tmp_path / "constraints.txt"
    path.write_text("# header\na==1  # why\n\nb>=2\n")
    with pytest.raises(ResultError, match=r"constraints\.txt:4: 'b>=2'"):
        read_pins(path)


def test_another_version_than_tested_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = tmp_path / "constraints.txt"
    pins.write_text("torch==1.0.0\nnot-installed-here==2\n")
    monkeypatch.setattr(doctor, "CONSTRAINTS", pins)
    (finding,) = findings("versions")
    assert finding.level == "note"
    assert "(tested: 1.0.0)" in finding.text
    assert "not-installed-here" not in finding.text


def test_a_local_build_label_is_the_same_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = tmp_path / "constraints.txt"
    pins.write_text(f"torch=={importlib.metadata.version('torch').partition('+')[0]}\n")
    monkeypatch.setattr(doctor, "CONSTRAINTS", pins)
    assert findings("versions") == [Finding("versions", "1 of 1 pinned packages installed, all as tested")]


def test_a_missing_or_old_package_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        importlib.metadata, "requires", lambda name: ["torch>=999", "no-such-package-here", "rich"]
    )
    monkeypatch.setattr(
        importlib.metadata, "metadata", lambda name: importlib.metadata.distribution("rich").metadata
    )
    found = findings("packages")
    assert [finding.level for finding in found] == ["problem", "problem"]
    assert "is not >=999" in found[0].text
    assert "no-such-package-here is not installed; pip install" in found[1].text
    assert cli.main(["doctor"]) == 1


def test_a_missing_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Metadata(dict[str, list[str]]):
        def get_all(self, name: str) -> list[str]:
            return self[name]

    wanted = ["rich", 'rich; extra == "have"', 'no-such-package-here; extra == "lack"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: wanted)
    monkeypatch.setattr(
        importlib.metadata, "metadata", lambda name: Metadata({"Provides-Extra": ["have", "lack"]})
    )
    assert findings("extra have") == [Finding("extra have", "installed")]
    (lacking,) = findings("extra lack")
    assert lacking.level == "note"
    assert lacking.text == "without no-such-package-here; pip install -c constraints.txt -e '.[lack]'"


def test_running_from_source_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", absent)
    assert [finding.level for finding in findings("packages")] == ["note"]


def test_a_torch_that_does_not_import_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def broken(name: str, *arguments: Any) -> Any:
        if name == "torch":
            raise OSError("libtorch.so: cannot open shared object file")
        return original(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", broken)
    (finding,) = list(doctor._accelerator())
    assert finding.level == "problem"
    assert "libtorch.so" in finding.text


def test_caches_are_sized_and_an_unwritable_one_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    assert "not made yet" in findings("organisms")[0].text
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "weights").write_bytes(b"x" * 2_500_000)
    assert "2.5 MB used" in findings("organisms")[0].text
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    assert findings("organisms")[0].level == "problem"
    assert "set INTERP_CACHE" in findings("organisms")[0].text


def test_offline_flags_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "offline by HF_HUB_OFFLINE=1" in findings("hub")[0].text


def test_the_network_is_tried_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def unreachable(url: str, timeout: float) -> None:
        asked.append(url)
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    findings("hub")
    assert asked == []
    found = findings("hub", network=True)
    assert len(asked) == 1
    assert found[-1].level == "note"
    assert "no route to host" in found[-1].text


def test_unfinished_runs_are_listed(tmp_path: Path) -> None:
    partial = tmp_path / "study" / ".partial-12345678"
    partial.mkdir(parents=True)
    (partial / "x").write_bytes(b"x" * 1234)
    (finding,) = findings("unfinished", results=tmp_path)
    assert str(partial) in finding.text
    assert "1.23 kB" in finding.text


@pytest.mark.skipif(sys.platform != "linux", reason="affinity is a Linux notion")
def test_processor_counts_usable_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda pid: {0, 1, 2})
    assert "3 usable cores" in findings("processor")[0].text
