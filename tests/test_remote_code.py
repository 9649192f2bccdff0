"""Code that comes with a checkpoint runs only when asked for by name, pinned, and where transformers has no class of its own."""

import json
import sys
import warnings

import pytest
import tiny
import torch
from transformers import AutoConfig, LlamaConfig

from interp import cli
from interp.errors import CheckpointError
from interp.models import remote_code
from interp.models.activations import capture
from interp.models.checkpoint import Checkpoint
from interp.models.cost import empty_model
from interp.models.finetune import save_checkpoint

CONFIGURATION = """
from transformers import LlamaConfig

class OwnConfig(LlamaConfig):
    model_type = "own_architecture"
"""
MODELLING = """
from pathlib import Path
from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig

Path({mark!r}).write_text("ran")

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """Where transformers copies the code that it runs; of this module's tests alone."""
    from transformers import dynamic_module_utils

    place = tmp_path_factory.mktemp("modules")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(place))
        patch.setattr(sys, "path", [*sys.path])
        yield place
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


@pytest.fixture
def own(tmp_path, modules):
    """A checkpoint of an architecture that only its own files describe; loading these leaves a mark."""
    directory = tmp_path / f"own-{tmp_path.name.replace('-', '_')}"
    save_checkpoint(tiny.model(), directory)
    (directory / "configuration_own.py").write_text(CONFIGURATION)
    (directory / "modeling_own.py").write_text(MODELLING.format(mark=str(tmp_path / "mark")))
    config = json.loads((directory / "config.json").read_text())
    config |= {
        "model_type": "own_architecture",
        "architectures": ["OwnForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_own.OwnConfig",
            "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
        },
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def rewrite(directory, **changes):
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_it_is_refused_by_default_with_what_to_do(own, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    for act in (Checkpoint.parse(own).load, lambda: empty_model(Checkpoint.parse(own))):
        with pytest.raises(CheckpointError) as found:
            act()
        text = str(found.value)
        for word in (
            "'own_architecture'",
            "modeling_own.OwnForCausalLM",
            "with your rights",
            "--trust-remote-code",
        ):
            assert word in text
    assert not (tmp_path / "mark").exists()
    files = []
    for kind in ("harmful", "harmless"):
        (tmp_path / f"{kind}.csv").write_text("prompt\n" + "\n".join(f"w{i}" for i in range(9)))
        files += [f"--{kind}", str(tmp_path / f"{kind}.csv")]
    assert cli.main(["study", str(own), str(own), *files, "--dry-run"]) == 2
    assert "--trust-remote-code" in capsys.readouterr().err


def test_asked_for_it_runs_says_so_and_is_the_model(own, tmp_path):
    with pytest.warns(UserWarning, match="running the code that comes with .*modeling_own.OwnForCausalLM"):
        model = Checkpoint.parse(own).load(trust_remote_code=True, device_map="cpu")
    assert (tmp_path / "mark").read_text() == "ran"
    assert type(model.module).__name__ == "OwnForCausalLM" and model.n_layers == 4
    theirs = tiny.model()
    prompts = tiny.prompts(3)
    ours, expected = (capture(m, prompts, "resid_post", "last", progress=False) for m in (model, theirs))
    assert torch.equal(ours.values, expected.values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, module = empty_model(Checkpoint.parse(own), trust_remote_code=True)
    assert sum(p.numel() for p in module.parameters()) == sum(p.numel() for p in theirs.module.parameters())


def test_an_architecture_of_transformers_runs_nothing_even_when_asked(own, tmp_path):
    rewrite(own, model_type="llama")
    model = Checkpoint.parse(own).load(trust_remote_code=True, device_map="cpu")
    assert type(model.module).__module__.startswith("transformers.models.llama")
    assert not (tmp_path / "mark").exists()


def test_its_code_is_part_of_the_fingerprint(own):
    before = Checkpoint.parse(own).fingerprint()
    with (own / "modeling_own.py").open("a") as file:
        file.write("\n# changed\n")
    assert Checkpoint.parse(own).fingerprint() != before


def test_code_that_fails_is_one_line(own):
    (own / "modeling_own.py").write_text("raise LookupError('no such\\nthing')")
    with (
        warnings.catch_warnings(),
        pytest.raises(CheckpointError, match="its own code fails .*no such thing"),
    ):
        warnings.simplefilter("ignore")
        Checkpoint.parse(own).load(trust_remote_code=True, device_map="cpu")


def test_code_of_another_repository_cannot_be_pinned(own, tmp_path):
    rewrite(own, auto_map={"AutoConfig": "stranger/code--configuration_own.OwnConfig"})
    with pytest.raises(CheckpointError, match="another repository \\(stranger/code--"):
        Checkpoint.parse(own).load(trust_remote_code=True)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("revision", [None, "main", "v1", "0123456", "F" * 40])
def test_on_the_hub_it_needs_a_commit(own, monkeypatch, revision):
    described = json.loads((own / "config.json").read_text())
    monkeypatch.setattr(remote_code.PreTrainedConfig, "get_config_dict", lambda *_, **__: (described, {}))
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *_, **__: pytest.fail("it ran"))
    with pytest.raises(
        CheckpointError, match=r"owner/name@(main|v1|0123456|F+) can be changed after .* 40 hexadecimal"
    ):
        remote_code.read_config("owner/name", revision, trust=True)
    with pytest.raises(CheckpointError, match="pin the commit that you read: owner/name@<its 40"):
        remote_code.read_config("owner/name", "0" * 40, trust=False)


def test_pinned_on_the_hub_the_commit_is_what_is_read(own, monkeypatch):
    described, asked = json.loads((own / "config.json").read_text()), []
    monkeypatch.setattr(remote_code.PreTrainedConfig, "get_config_dict", lambda *_, **__: (described, {}))
    monkeypatch.setattr(
        AutoConfig, "from_pretrained", lambda name, **given: asked.append((name, given)) or LlamaConfig()
    )
    with pytest.warns(UserWarning, match="owner/name@" + "a" * 40):
        remote_code.read_config("owner/name", "a" * 40, trust=True)
    assert asked == [("owner/name", {"revision": "a" * 40, "trust_remote_code": True})]


@pytest.mark.parametrize(
    ("probe", "n_models", "files"),
    [
        ("refusal_direction", 1, True),
        ("harm_recognition", 2, True),
        ("drift", 2, True),
        ("steer", 1, True),
        ("patch_refusal", 1, True),
        ("modality_gap", 1, False),
    ],
)
def test_every_probe_passes_the_permission_on(own, tmp_path, monkeypatch, probe, n_models, files):
    asked = []

    class Seen(Exception):
        pass

    def load(self, **given):
        asked.append(given["trust_remote_code"])
        raise Seen

    monkeypatch.setattr(Checkpoint, "load", load)
    made = []
    for kind in ("harmful", "harmless"):
        made.append(tmp_path / f"{kind}.csv")
        made[-1].write_text("id,prompt\n" + "\n".join(f"{i},w{i}" for i in range(99)))
    named = ["--harmful", str(made[0]), "--harmless", str(made[1])] if files else [str(path) for path in made]
    more = ["--refusal", "no"] if probe == "steer" else []
    arguments = ["probe", probe, *[str(own)] * n_models, *named, *more, "--out", str(tmp_path / "out")]
    for given, expected in (([], False), (["--trust-remote-code"], True)):
        with pytest.raises(Seen):
            cli.main([*arguments, *given])
        assert asked.pop() is expected
