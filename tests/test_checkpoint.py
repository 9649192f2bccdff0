"""Names become checkpoints, checkpoints become models; whatever is damaged, missing or foreign is named in one line."""

import json
import shutil

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from interp import hub
from interp.data.prompts import Prompt
from interp.errors import CheckpointError, UserError
from interp.models.checkpoint import Checkpoint, organism_dir
from interp.models.finetune import save_checkpoint
from interp.models.model import Model


@pytest.fixture
def base(tmp_path):
    save_checkpoint(tiny.model(), tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("org/model", ("org/model", None, None, None)),
        ("org/model@main", ("org/model", "main", None, None)),
        ("org/model@main+org/lora", ("org/model", "main", "org/lora", None)),
        ("org/model+org/lora@v2", ("org/model", None, "org/lora", "v2")),
    ],
)
def test_names_are_taken_apart_and_put_together_again(text, parts):
    found = Checkpoint.parse(text)
    assert (found.base, found.revision, found.adapter, found.adapter_revision) == parts
    assert str(found) == text and Checkpoint.parse(str(found)) == found


def test_a_directory_whose_name_holds_plus_or_at_is_a_directory(base, tmp_path):
    odd = tmp_path / "model+a@b"
    shutil.copytree(base, odd)
    assert Checkpoint.parse(odd).base == str(odd) and Checkpoint.parse(odd).adapter is None


def test_every_architecture_comes_back_from_disk_with_the_same_logits(tmp_path):
    for kind in tiny.FACTORIES:
        model = tiny.model(kind)
        save_checkpoint(model, tmp_path / kind)
        loaded = Checkpoint.parse(tmp_path / kind).load()
        assert torch.equal(
            loaded.last_logits(loaded.encode(tiny.prompts())), model.last_logits(model.encode(tiny.prompts()))
        )
        assert loaded.n_eoi == 3 and loaded.end_of_turn == "<|end|>"


def test_bad_names_and_directories(base, tmp_path):
    for text, message in {
        "": "not of the form",
        "base+": "not of the form",
        "organism:text": "not of the form organism:KIND/STAGE",
        "organism:text/aligned@x": "not of the form organism:KIND/STAGE",
        "organism:text/nowhere@77": "run: interp organism build text --seed 77",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            Checkpoint.parse(text)
    (tmp_path / "nothing").mkdir()
    for text, message in {
        "/no/such/place": "no such directory",
        str(tmp_path / "nothing"): "no config.json",
        "org/absent": "not to be had from the hub",
        f"{base}+/no/such/adapter": "no such directory",
        f"{base}+{base}": "is no adapter: it has no adapter_config.json",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            Checkpoint.parse(text).load()


def test_damaged_incomplete_and_pickled_weights_are_refused(base):
    path = base / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged|cannot load"):
        Checkpoint.parse(base).load()
    path.write_bytes(whole)
    weights = load_file(path)
    gone = "model.layers.2.mlp.down_proj.weight"
    save_file({key: value for key, value in weights.items() if key != gone}, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"1 missing keys such as {gone}"):
        Checkpoint.parse(base).load()
    path.unlink()
    torch.save(weights, base / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot load"):
        Checkpoint.parse(base).load()


def test_an_architecture_outside_the_table_is_refused_by_name(tmp_path):
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=68,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
    )
    with pytest.raises(CheckpointError, match="architecture 'opt' is not in the table"):
        Model.from_module(OPTForCausalLM(config), tiny.tokenizer())


def test_a_table_row_that_does_not_fit_is_seen_at_load(base):
    module = tiny.module()
    module.model.layers[0].mlp.down_proj = torch.nn.Linear(48, 16)
    with pytest.raises(CheckpointError, match="down_proj has width 16, the residual stream 32"):
        Model.from_module(module, tiny.tokenizer())
    module = tiny.module()
    del module.model.layers[3]
    with pytest.raises(CheckpointError, match="3 blocks at model.layers, config says 4"):
        Model.from_module(module, tiny.tokenizer())


def test_dtype_and_template_are_checked(base, tmp_path):
    with pytest.raises(CheckpointError, match="unknown dtype 'int8'"):
        Checkpoint.parse(base).load(dtype="int8")
    assert Checkpoint.parse(base).load(dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(CheckpointError, match="cannot be read"):
        Checkpoint.parse(base).load(chat_template=str(tmp_path / "none.jinja"))
    plain = Checkpoint.parse(base).load(chat_template="plain")
    assert plain.n_eoi == 1 and plain.render(Prompt(text="w1", id="a", system="w2")) == "w2\nw1"
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(CheckpointError, match="no chat template; pass --chat-template"):
        Model.from_module(tiny.module(), tokenizer)
    fussy = tmp_path / "fussy.jinja"
    fussy.write_text(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
        + tiny.TEMPLATE
    )
    model = Checkpoint.parse(base).load(chat_template=str(fussy))
    with pytest.raises(UserError, match="refuses these turns: no system turns"):
        model.token_ids(Prompt(text="w1", id="a", system="w2"))


def test_fingerprints_follow_the_weights(base, tmp_path):
    before = Checkpoint.parse(base).fingerprint()
    shutil.copytree(base, tmp_path / "copy")
    assert Checkpoint.parse(tmp_path / "copy").fingerprint() == before
    weights = load_file(tmp_path / "copy" / "model.safetensors")
    weights["model.norm.weight"] += 1e-3
    save_file(weights, tmp_path / "copy" / "model.safetensors", metadata={"format": "pt"})
    assert Checkpoint.parse(tmp_path / "copy").fingerprint() != before


def test_an_adapter_directory_finds_its_base_and_an_orphan_says_so(base, tmp_path):
    (tmp_path / "lora").mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": str(base)}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(config))
    found = Checkpoint.parse(tmp_path / "lora")
    assert (found.base, found.adapter) == (str(base), str(tmp_path / "lora"))
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(CheckpointError, match="does not record its base model"):
        Checkpoint.parse(tmp_path / "lora")
    (tmp_path / "lora" / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        Checkpoint.parse(tmp_path / "lora")


def test_organisms_are_only_looked_up(monkeypatch, tmp_path, base):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    assert organism_dir("text", 3) == tmp_path / "cache" / "organisms" / "text" / "seed-3"
    shutil.copytree(base, organism_dir("text", 3) / "aligned")
    assert Checkpoint.parse("organism:text/aligned@3").load().n_layers == 4


def test_an_unreachable_hub_is_asked_once_and_briefly(monkeypatch):
    import datasets
    import httpx
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)

    def refuse(url, timeout):
        asked.append(timeout)
        raise httpx.ConnectError("no route")

    monkeypatch.setattr(httpx, "head", refuse)
    hub._answers.cache_clear()
    for _ in range(2):
        with hub.offline_unless_reachable():
            assert huggingface_hub.constants.HF_HUB_OFFLINE and datasets.config.HF_HUB_OFFLINE
    hub._answers.cache_clear()
    assert asked == [3.0] and huggingface_hub.constants.HF_HUB_OFFLINE is False
