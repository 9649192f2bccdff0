"""The refusal direction: a planted one is found, controls do nothing, fast equals complete, published choices come back."""

import json
import math
from pathlib import Path

import numpy as np
import planted
import pytest
import tiny
import torch
from safetensors.torch import load_file

from interp.data.prompts import PromptSet
from interp.errors import SelectionError, UserError
from interp.geometry.directions import Direction, cosine, random_like
from interp.methods.refusal import (
    CandidateScores,
    RefusalTokens,
    SelectionRule,
    at_every_write,
    candidate_directions,
    find_refusal_direction,
    keep_by_refusal,
    refusal_score,
    refusal_tokens,
    score_candidates,
    score_prompts,
    select,
)
from interp.models.generation import Completion, generate
from interp.models.hooks import Ablate, Add, editing, everywhere
from interp.models.sites import Site

PUBLISHED = Path(__file__).parents[2] / "shared" / "data" / "refusal_direction"


@pytest.fixture(scope="module")
def found():
    model, r = planted.planted()
    sets = [planted.prompt_set(harmful, 24, seed) for seed in (1, 2) for harmful in (True, False)]
    completions = [c for s in sets[:2] for c in generate(model, s, max_new_tokens=1, progress=False)]
    tokens = refusal_tokens(model, completions, [True] * 24 + [False] * 24)
    return model, r, sets, tokens, find_refusal_direction(model, *sets, tokens, progress=False)


def test_the_planted_direction_comes_back(found):
    model, r, _, tokens, result = found
    assert tokens.tokens == (planted.REFUSE,) and tokens.share == (1.0,)
    assert float(cosine(result.direction.vector.float(), r)) > 0.99
    # the tokens of the template see the request only after the planted block
    assert result.selection.layer > planted.PLANTED_AT
    assert result.selection.counts["late layer"] == model.n_eoi * 2


def test_ablating_and_adding_it_is_causal_and_an_equal_norm_random_direction_does_nothing(found):
    model, r, (harmful, harmless, *_), tokens, result = found
    direction, site = result.direction, Site.parse(result.direction.site)

    def mean_score(prompts, edits):
        with editing(model, edits):
            return float(np.mean(score_prompts(model, prompts, tokens.ids)))

    assert mean_score(harmful, {}) > 2 and mean_score(harmless, {}) < -2
    assert mean_score(harmful, everywhere(Ablate(direction.vector), model.n_layers)) < -2
    assert mean_score(harmless, {site: Add(direction.vector)}) > 2
    for seed in range(5):
        control = direction.random(seed)
        assert math.isclose(control.norm, direction.norm, rel_tol=1e-6)
        # what a random vector shares with r by chance is taken out: the claim is about the rest of the space
        rest = control.vector - (control.vector @ r.double()) * r.double()
        assert mean_score(harmful, everywhere(Ablate(rest), model.n_layers)) > 2
        assert mean_score(harmless, {site: Add(rest)}) < -2


def test_survivors_get_the_scores_of_the_reference_procedure_and_the_same_is_selected(found):
    model, _, (_, _, harmful, harmless), tokens, result = found
    complete = score_candidates(
        model, result.candidates, harmful, harmless, tokens.ids, complete=True, rows=50, progress=False
    )
    # every candidate but those of layer 0, where the template's tokens are the same in every prompt: zero vectors
    assert torch.isnan(complete.bypass)[:, 0].all() and not torch.isnan(complete.bypass)[:, 1:].any()
    for name in ("induce", "kl", "bypass"):
        fast, full = getattr(result.scores, name), getattr(complete, name)
        scored = ~torch.isnan(fast)
        assert scored.any() and (fast - full)[scored].abs().max() <= 1e-4
    chosen = select(complete)
    assert (chosen.position, chosen.layer) == (result.selection.position, result.selection.layer)
    reference = reference_scores(model, result.candidates, harmful, harmless, tokens.ids)
    for name in ("induce", "kl", "bypass"):
        assert (getattr(complete, name) - getattr(reference, name))[:, 1:].abs().max() <= 1e-4


def reference_scores(model, candidates, harmful, harmless, ids):
    """METHODS §0 word for word: three full forward passes with full logits for every candidate."""
    n_pos, n_layers, _ = candidates.shape
    scores = {name: torch.zeros(n_pos, n_layers, dtype=torch.float64) for name in ("induce", "kl", "bypass")}

    @torch.no_grad()
    def last(prompts, edits):
        with editing(model, edits):
            return model.module(**model.encode(prompts).inputs(), use_cache=False).logits[:, -1].double()

    plain = last(harmless, {}).softmax(-1)
    for p in range(n_pos):
        for layer in range(n_layers):
            vector = candidates[p, layer].float()
            if not vector.any():
                continue
            ablate = everywhere(Ablate(vector), n_layers)
            scores["bypass"][p, layer] = refusal_score(last(harmful, ablate), ids).mean()
            scores["induce"][p, layer] = refusal_score(
                last(harmless, {Site(layer, "resid_pre"): Add(vector)}), ids
            ).mean()
            q = last(harmless, ablate).softmax(-1)
            scores["kl"][p, layer] = (plain * ((plain + 1e-6).log() - (q + 1e-6).log())).sum(-1).mean()
    return CandidateScores(**scores)


@pytest.mark.parametrize("kind", sorted(tiny.FACTORIES))
def test_restarts_and_batched_ablation_agree_with_the_reference_on_every_architecture(kind):
    model = tiny.model(kind)
    harmful, harmless = tiny.prompts(4, seed=1), tiny.prompts(5, seed=2)
    candidates = candidate_directions(model, harmful, harmless, progress=False)
    ours = score_candidates(model, candidates, harmful, harmless, [5, 6], complete=True, progress=False)
    theirs = reference_scores(model, candidates, harmful, harmless, [5, 6])
    # before block 0 the template's tokens are the same in every prompt: candidates there are zero and not scored
    scored = ~torch.isnan(ours.bypass)
    assert scored[:, 1:].all()
    for name in ("induce", "kl", "bypass"):
        error = (getattr(ours, name) - getattr(theirs, name))[scored].abs().max()
        assert error <= 1e-4, (name, error)


@pytest.mark.parametrize("kind", sorted(tiny.FACTORIES))
def test_ablating_at_every_write_is_ablating_everywhere(kind):
    model = tiny.model(kind)
    batch, edit = (
        model.encode(tiny.prompts()),
        Ablate(torch.randn(32, generator=torch.Generator().manual_seed(3))),
    )
    with editing(model, everywhere(edit, model.n_layers)):
        expected = model.last_logits(batch)
    with editing(model, at_every_write(edit, model.n_layers)):
        assert (model.last_logits(batch) - expected).abs().max() <= 1e-5


def test_score_is_the_formula():
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    p = math.exp(2) / (math.exp(2) + math.exp(1) + 1)
    assert math.isclose(
        float(refusal_score(logits, [0])), math.log(p + 1e-8) - math.log(1 - p + 1e-8), rel_tol=1e-6
    )
    assert float(refusal_score(torch.tensor([[60.0, 0.0]]), [0])) == pytest.approx(math.log(1e8), rel=1e-3)


def test_filter_keeps_what_the_model_refuses(found):
    model, _, (harmful, harmless, *_), tokens, _ = found
    mixed = PromptSet([*harmful, *harmless], name="mixed")
    kept, dropped = keep_by_refusal(model, mixed, tokens.ids, refused=True)
    assert kept.ids == harmful.ids and dropped.ids == harmless.ids
    kept, _ = keep_by_refusal(model, mixed, tokens.ids, refused=False)
    assert kept.ids == harmless.ids


def test_refusal_tokens_need_refusals_that_open_differently():
    model = tiny.model()

    def answers(*words):
        return [Completion(str(i), word, 1, True) for i, word in enumerate(words)]

    found = refusal_tokens(model, answers("w1 w2", "w1", "w3", "w4"), [True, True, True, False])
    assert found.tokens == ("w1", "w3") and "67%" in str(found)
    with pytest.raises(SelectionError, match="refused none of 2"):
        refusal_tokens(model, answers("w1", "w2"), [False, False])
    with pytest.raises(SelectionError, match="opens its refusals like"):
        refusal_tokens(model, answers("w1", "w1"), [True, False])


def test_nothing_left_says_so_with_counts_and_never_falls_back():
    scores = {name: torch.zeros(2, 10, dtype=torch.float64) for name in ("induce", "kl", "bypass")}
    scores["induce"][:, :4] = -1.0
    scores["kl"][:, 4:6] = 0.5
    scores["bypass"][:, 6:] = float("nan")
    with pytest.raises(SelectionError, match=r"candidates 20, late layer 4, induce 8, KL 4, NaN 4, left 0"):
        select(CandidateScores(**scores))
    loose = select(CandidateScores(**scores), SelectionRule(min_induce=-2.0))
    assert loose.counts["left"] == 8


def test_empty_sets_are_refused(found):
    model, _, sets, tokens, _ = found
    with pytest.raises(UserError, match="'none' is empty"):
        find_refusal_direction(model, PromptSet([], name="none"), *sets[1:], tokens, progress=False)


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="published results are not in ../shared/data")
@pytest.mark.parametrize(("name", "n_layers"), [("gemma-2b-it", 18), ("qwen-1_8b-chat", 24)])
def test_selection_from_published_scores_gives_the_published_direction(name, n_layers):
    rows = json.loads((PUBLISHED / name / "direction_evaluations.json").read_text())
    expected = json.loads((PUBLISHED / name / "direction_metadata.json").read_text())
    n_pos = -min(row["position"] for row in rows)
    assert len(rows) == n_pos * n_layers
    scores = {
        key: torch.full((n_pos, n_layers), float("nan"), dtype=torch.float64)
        for key in ("induce", "kl", "bypass")
    }
    for row in rows:
        where = row["position"] + n_pos, row["layer"]
        scores["bypass"][where] = row["refusal_score"]
        scores["induce"][where] = row["steering_score"]
        scores["kl"][where] = row["kl_div_score"]
    chosen = select(CandidateScores(**scores))
    assert (chosen.position, chosen.layer) == (expected["pos"], expected["layer"])
    stored = load_file(PUBLISHED / name / "directions.safetensors")
    everything = next(value for value in stored.values() if value.ndim == 3)
    single = next(value for value in stored.values() if value.ndim == 1)
    assert float(cosine(everything[chosen.index], single)) > 0.999


def test_directions_save_load_and_refuse_other_files(tmp_path):
    direction = Direction(torch.randn(8, dtype=torch.float64), "resid_pre.3", -2)
    direction.save(tmp_path / "d.safetensors")
    again = Direction.load(tmp_path / "d.safetensors")
    assert torch.equal(again.vector, direction.vector)
    assert (again.site, again.position, again.contrast) == (direction.site, -2, direction.contrast)
    (tmp_path / "bad").write_text("no")
    with pytest.raises(UserError, match="not a saved direction"):
        Direction.load(tmp_path / "bad")
    with pytest.raises(UserError, match="not finite"):
        Direction(torch.tensor([float("nan")]), "resid_pre.0", -1)
    a = random_like(direction.vector, 0)
    assert torch.equal(a, random_like(direction.vector, 0)) and not torch.equal(
        a, random_like(direction.vector, 1)
    )


def test_tokens_print_themselves():
    tokens = RefusalTokens((1,), ("I",), (0.8,), (0.0,))
    assert str(tokens) == "refusals open with 'I' 80%"
