"""Capture: every rule gives the rows it names, shards resume and read back, bad values and rules are named."""

import json

import pytest
import tiny
import torch

from interp.data.prompts import Prompt
from interp.errors import NonFiniteError, ResultError, SiteError, UserError
from interp.models import activations
from interp.models.activations import StoredActivations, capture
from interp.models.batches import by_length, run_batches
from interp.models.hooks import Add, editing
from interp.models.sites import Site


@pytest.fixture(scope="module")
def model():
    return tiny.model()


def test_rules_pick_their_rows(model):
    prompts = tiny.prompts(7)
    every = capture(model, prompts, "resid_post", "all", batch_size=3, progress=False)
    rules = {
        rule: capture(model, prompts, "resid_post", rule, batch_size=4, progress=False)
        for rule in ("last", "eoi", "mean", 1, -2)
    }
    for i, prompt in enumerate(prompts):
        rows = every.rows(prompt.id)
        assert rows.shape[1] == len(model.token_ids(prompt))
        expected = {"last": rows[:, -1], "mean": rows.mean(1), 1: rows[:, 1], -2: rows[:, -2]}
        for rule, value in expected.items():
            assert (rules[rule].by_prompt()[:, i, 0] - value).abs().max() <= 1e-5, rule
        assert (rules["eoi"].by_prompt()[:, i] - rows[:, -model.n_eoi :]).abs().max() <= 1e-5
    assert model.n_eoi == 3 and model.eoi_tokens == ["<|end|>", "<|assistant|>", "<|answer|>"]
    with pytest.raises(SiteError, match="differ under the rule 'all'"):
        every.by_prompt()


def test_order_of_prompts_and_select(model):
    prompts = tiny.prompts(9)
    acts = capture(model, prompts, ["resid_pre.2", "mlp_out.0"], "eoi", batch_size=2, progress=False)
    assert acts.prompt_ids == tuple(p.id for p in prompts) and [str(s) for s in acts.sites] == [
        "resid_pre.2",
        "mlp_out.0",
    ]
    some = [prompts[i].id for i in (5, 0, 7)]
    for name in some:
        assert torch.equal(acts.select(some).rows(name), acts.rows(name))
    with pytest.raises(SiteError, match="resid_post.1 was not captured"):
        acts["resid_post.1"]


def test_shards_equal_memory_resume_after_a_kill_and_load_one_site(model, tmp_path, monkeypatch):
    prompts = tiny.prompts(11)
    expected = capture(model, prompts, "resid_post", "all", progress=False)
    calls, real = [], activations._forward

    def dying(*arguments):
        calls.append(len(arguments[1].prompt_ids))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(activations, "_forward", dying)
    with pytest.raises(KeyboardInterrupt):
        capture(model, prompts, "resid_post", "all", batch_size=2, out=tmp_path / "acts", progress=False)
    with pytest.raises(ResultError, match="no finished capture"):
        StoredActivations(tmp_path / "acts")
    again = capture(model, prompts, "resid_post", "all", batch_size=2, out=tmp_path / "acts", progress=False)
    assert sum(calls[:2]) + sum(calls[3:]) == len(prompts)  # nothing twice
    assert (again.values - expected.values).abs().max() <= 1e-5 and again.prompt_ids == expected.prompt_ids
    stored = StoredActivations(tmp_path / "acts")
    one = stored.load(["resid_post.2"])
    assert torch.equal(one["resid_post.2"], again["resid_post.2"]) and len(one.sites) == 1
    n = len(calls)
    capture(model, prompts, "resid_post", "all", batch_size=2, out=tmp_path / "acts", progress=False)
    assert len(calls) == n
    # other sites in the same place do not mix with the old shards
    other = capture(model, prompts, "resid_pre", "all", batch_size=4, out=tmp_path / "acts", progress=False)
    assert (other["resid_pre.3"] - expected["resid_post.2"]).abs().max() <= 1e-5
    assert json.loads((tmp_path / "acts" / "activations.json").read_text())["sites"][0] == "resid_pre.0"


def test_bad_input_is_named(model, tmp_path):
    prompts = tiny.prompts(3)
    with pytest.raises(SiteError, match="unknown position rule 'first'"):
        capture(model, prompts, "resid_post", "first")
    with pytest.raises(SiteError, match="position 40 does not exist"):
        capture(model, prompts, "resid_post", 40)
    with pytest.raises(SiteError, match="layers 0 to 3"):
        capture(model, prompts, "resid_post.7")
    with pytest.raises(SiteError, match="no prompts"):
        capture(model, [])
    with pytest.raises(UserError, match="'long' has 205 tokens, the context of tiny-llama-0 is 128"):
        capture(model, [Prompt(text="w1 " * 201, id="long")])
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultError, match="cannot write activations"):
        capture(model, prompts, out=tmp_path / "file" / "sub", progress=False)


def test_non_finite_values_name_site_and_prompt():
    model = tiny.model()
    with torch.no_grad():
        model.tower.embed.weight[model.tokenizer.convert_tokens_to_ids("w7")] = float("nan")
    prompts = [Prompt(text="w1 w2", id="fine"), Prompt(text="w3 w7", id="broken")]
    with pytest.raises(NonFiniteError, match=r"activations at resid_post\.0 .* for prompt 'broken'"):
        capture(model, prompts, "resid_post", "last", progress=False)


def test_batches_hold_every_prompt_once_within_their_limits():
    lengths = [int(i) for i in torch.randint(1, 50, (97,), generator=torch.Generator().manual_seed(0))]
    batches = by_length(lengths, 8, 120)
    assert sorted(i for batch in batches for i in batch) == list(range(97))
    for batch in batches:
        assert len(batch) <= 8 and (len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 120)


def test_out_of_memory_halves_the_batches_and_a_single_row_raises():
    seen = []

    def step(batch):
        if len(batch) > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        seen.append(len(batch))
        return list(batch)

    found = [i for batch, _ in run_batches([list(range(10)), list(range(10, 18))], step) for i in batch]
    assert sorted(found) == list(range(18)) and max(seen) <= 3

    def hopeless(batch):
        raise torch.cuda.OutOfMemoryError("out of memory")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        list(run_batches([[0, 1]], hopeless))
    with pytest.raises(ValueError, match="other"):
        list(run_batches([[0, 1]], lambda batch: (_ for _ in ()).throw(ValueError("other"))))


def test_shards_of_other_weights_or_under_edits_are_not_taken_for_these(tmp_path):
    model, prompts = tiny.model(), tiny.prompts(4)
    before = capture(model, prompts, "resid_post.1", out=tmp_path / "a", progress=False)
    with torch.no_grad():
        model.module.model.layers[1].mlp.down_proj.weight += 0.1
    after = capture(model, prompts, "resid_post.1", out=tmp_path / "a", progress=False)
    assert torch.equal(after.values, capture(model, prompts, "resid_post.1", progress=False).values)
    assert not torch.equal(before.values, after.values)
    edits = {Site(1, "resid_pre"): Add(torch.ones(model.d_model))}
    with editing(model, edits), pytest.raises(SiteError, match="under edits; capture in memory"):
        capture(model, prompts, "resid_post.1", out=tmp_path / "b", progress=False)
    assert not (tmp_path / "b").exists()
    capture(model, prompts, "resid_post.1", out=tmp_path / "b", progress=False)
