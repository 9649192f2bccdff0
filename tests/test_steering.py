"""Steering vectors are values with an algebra; steering acts where and on whom it says, and batch mates change nothing."""

import json

import pytest
import tiny
import torch
from safetensors.torch import load_file
from synthetic import activations, noise

from interp.errors import ResultError, SiteError, UserError
from interp.methods.steering import Condition, Steering, SteeringVectors, steer, steered
from interp.methods.steering_strength import plain_answers, steering_kl, strength_for_kl
from interp.models.activations import capture
from interp.models.generation import generate
from interp.models.hooks import Add, editing
from interp.models.likelihood import response_log_probs
from interp.models.sites import Site, all_layers

KINDS = sorted(tiny.FACTORIES)
SITES = tuple(all_layers(4, "resid_post"))


def vectors(seed: int = 0, sites=SITES, width: int = 32) -> SteeringVectors:
    return SteeringVectors(noise(len(sites), width, seed=seed), tuple(sites), f"noise {seed}")


def logits(model, prompts, steering=None, **options):
    batch = model.encode(prompts)
    with torch.no_grad():
        if steering is None:
            return model.last_logits(batch)
        with steered(model, steering, prompts, **options):
            return model.last_logits(batch)


# --- values


def test_vectors_add_scale_and_compare():
    a, b = vectors(0), vectors(1)
    assert torch.allclose((a + b - b).vectors, a.vectors) and torch.equal((-a).vectors, -a.vectors)
    assert torch.allclose((2 * a).norms, 2 * a.norms) and torch.allclose((a * 3 / 3.0).vectors, a.vectors)
    assert torch.allclose((a * [0, 1, 2, 3]).norms, a.norms * torch.arange(4))
    assert torch.allclose(a.cosine(-2 * a), -torch.ones(4, dtype=torch.float64))
    expected = torch.nn.functional.cosine_similarity(a.vectors, b.vectors, dim=-1)
    assert torch.allclose(a.cosine(b), expected) and a.cosine(b).abs().max() < 0.7
    random = a.random(3)
    assert torch.allclose(random.norms, a.norms) and random.cosine(a).abs().max() < 0.7
    assert not torch.equal(random.vectors, a.random(4).vectors)
    assert torch.equal(a.at(2).vectors[0], a.vectors[2]) and a.at("resid_post.1", 3).sites == (
        SITES[1],
        SITES[3],
    )
    frame = a.to_frame(b=b)
    assert frame["layer"].tolist() == [0, 1, 2, 3] and frame["b"].tolist() == a.cosine(b).tolist()


def test_a_planted_difference_is_the_vector_and_lengths_can_be_those_of_activations():
    base, planted = noise(3, 400, 24, seed=0), noise(3, 24, seed=1)
    found = SteeringVectors.difference(activations(base + 5 * planted[:, None]), activations(base))
    assert (found.vectors - 5 * planted).abs().max() <= 1e-9
    shorter = found.in_units_of(activations(7 * base))
    assert torch.allclose(shorter.norms, (7 * base).norm(dim=-1).mean(1))
    assert torch.allclose(shorter.cosine(found), torch.ones(3, dtype=torch.float64))


def test_vectors_of_another_width_or_site_are_refused():
    model = tiny.model()
    with pytest.raises(SiteError, match=r"width 8; the d_model of tiny-llama-0 is 32"):
        logits(model, tiny.prompts(2), steer(vectors(width=8)))
    with pytest.raises(SiteError, match=r"resid_post\.4: tiny-llama-0 has layers 0 to 3"):
        logits(model, tiny.prompts(2), steer(vectors(sites=tuple(all_layers(5, "resid_post")))))
    with pytest.raises(SiteError, match="width 32 and 8"):
        vectors() + vectors(width=8)
    with pytest.raises(SiteError, match=r"resid_post\.3 is in one of them only"):
        vectors().cosine(vectors().at(0, 1, 2))
    with pytest.raises(SiteError, match="no steering vector at layer 9"):
        vectors().at(9)
    with pytest.raises(SiteError, match="3 strengths for 4 sites"):
        vectors() * [1, 2, 3]
    with pytest.raises(SiteError, match=r"resid_post\.1 holds NaN"):
        SteeringVectors(torch.tensor([[1.0], [float("nan")]]), SITES[:2])
    with pytest.raises(SiteError, match="for 1 different sites"):
        SteeringVectors(torch.ones(2, 4), (SITES[0], SITES[0]))
    with pytest.raises(SiteError, match="acts on the decoder"):
        SteeringVectors(torch.ones(1, 4), (Site(0, "resid_post", "audio"),))


def test_saved_and_read_back(tmp_path):
    a = vectors()
    a.save(tmp_path / "a.safetensors")
    found = SteeringVectors.load(tmp_path / "a.safetensors")
    assert torch.equal(found.vectors, a.vectors) and (found.sites, found.source) == (a.sites, a.source)
    condition = Condition(noise(32, seed=5), SITES[2], 0.25)
    both = steer(a, 0.5, "last", condition) & steer(vectors(1).at(1), 2.0, -2)
    both.save(tmp_path / "steering")
    again = Steering.load(tmp_path / "steering")
    assert again.describe() == both.describe()
    assert again.parts[0].condition.threshold == 0.25 and again.parts[1].positions == -2
    plain = json.loads((tmp_path / "steering" / "steering.json").read_text())
    tensors = load_file(tmp_path / "steering" / "steering.safetensors")
    assert "h <- h + vector" in plain["formula"] and plain["parts"][0]["condition"]["site"] == "resid_post.2"
    assert torch.equal(tensors["0.resid_post.3"], 0.5 * a.vectors[3])
    model, prompts = tiny.model(), tiny.prompts(4)
    assert torch.equal(logits(model, prompts, again), logits(model, prompts, both))
    (tmp_path / "steering" / "steering.json").write_text("{}")
    with pytest.raises(ResultError, match="no steering"):
        Steering.load(tmp_path / "steering")
    with pytest.raises(ResultError, match="no steering vectors"):
        SteeringVectors.load(tmp_path / "steering" / "steering.json")


# --- acting


@pytest.mark.parametrize("kind", KINDS)
def test_strength_zero_changes_nothing_and_the_context_leaves_nothing(kind):
    model, prompts = tiny.model(kind), tiny.prompts(4)
    plain = logits(model, prompts)
    assert torch.equal(logits(model, prompts, steer(vectors(), 0.0, "all")), plain)
    assert (logits(model, prompts, steer(vectors(), 1.0)) - plain).abs().max() > 1e-2
    assert torch.equal(logits(model, prompts), plain)
    answers = generate(model, prompts, max_new_tokens=5, progress=False)
    assert generate(model, prompts, edits=steer(vectors(), 0.0), max_new_tokens=5, progress=False) == answers


def test_steering_is_the_sum_it_says():
    model, prompts = tiny.model(), tiny.prompts(3)
    a, b = vectors(0), vectors(1)
    batch = model.encode(prompts)
    with editing(
        model, {s: Add(0.5 * v + 2 * w) for s, v, w in zip(SITES, a.vectors, b.vectors, strict=True)}
    ):
        expected = model.last_logits(batch)
    for same in (steer(a, 0.5, "all") & steer(b, 2.0, "all"), steer(0.5 * a + 2 * b, positions="all")):
        assert (logits(model, prompts, same) - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("positions", ["answer", "last", "prompt", "generated", "all", -2])
@pytest.mark.parametrize("kind", KINDS)
def test_cached_is_uncached(kind, positions):
    model, prompts = tiny.model(kind), tiny.prompts(4)
    steering = steer(vectors(), 0.7, positions)
    answers = [
        generate(model, prompts, edits=steering, max_new_tokens=6, use_cache=cache, progress=False)
        for cache in (True, False)
    ]
    assert [a.token_ids for a in answers[0]] == [a.token_ids for a in answers[1]]


def test_answer_is_the_last_prompt_token_and_what_is_generated():
    model, prompts = tiny.model(), tiny.prompts(3)
    v = vectors()
    found = generate(model, prompts, edits=steer(v, 0.7, "answer"), max_new_tokens=6, progress=False)
    both = steer(v, 0.7, "last") & steer(v, 0.7, "generated")
    assert found == generate(model, prompts, edits=both, max_new_tokens=6, progress=False)
    plain = generate(model, prompts, max_new_tokens=6, progress=False)
    first = [
        a.token_ids[:1]
        for a in generate(model, prompts, edits=steer(v, 3.0, "generated"), max_new_tokens=6, progress=False)
    ]
    assert found != plain and first == [a.token_ids[:1] for a in plain], (
        "generated positions come after the first token"
    )


def _condition(model, prompts, threshold=None) -> tuple[Condition, torch.Tensor]:
    """A condition that about half of the prompts meet, and who meets it."""
    direction = noise(32, seed=9)
    along = capture(model, prompts, "resid_post.2", progress=False).values[0].double() @ direction
    middle = float(along.median()) + 1e-3 if threshold is None else threshold
    return Condition(direction, Site(2, "resid_post"), middle), along > middle


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_batch_mates_change_neither_logits_nor_tokens(kind, conditional):
    model, prompts = tiny.model(kind), tiny.prompts(7)
    condition, met = _condition(model, prompts)
    assert 0 < met.sum() < len(prompts)
    steering = steer(vectors(), 0.7, condition=condition if conditional else None)
    together = logits(model, prompts, steering)
    answers = generate(model, prompts, edits=steering, max_new_tokens=5, progress=False)
    for rows in ([0], [3], [6, 2, 0], [5, 1]):
        chosen = [prompts[i] for i in rows]
        assert (logits(model, chosen, steering) - together[rows]).abs().max() <= 1e-5
        alone = generate(model, chosen, edits=steering, max_new_tokens=5, progress=False)
        for i, answer in zip(rows, alone, strict=True):
            if answer.token_ids != answers[i].token_ids:
                assert _tie(model, prompts[i], answers[i], answer, steering) <= 1e-4


def _tie(model, prompt, a, b, steering) -> float:
    """How far apart the top two logits are where two answers part."""
    at = next(i for i, (x, y) in enumerate(zip(a.token_ids, b.token_ids, strict=False)) if x != y)
    row = model.token_ids(prompt)
    ids = torch.tensor([[*row, *a.token_ids[:at]]])
    with torch.no_grad(), steered(model, steering, [prompt], prompt_width=len(row)):
        top = model.module(ids).logits[0, -1].topk(2).values
    return float(top[0] - top[1])


def test_a_condition_is_decided_row_by_row_from_the_unsteered_model():
    model, prompts = tiny.model(), tiny.prompts(8)
    condition, met = _condition(model, prompts)
    steering = steer(vectors(), 2.0, condition=condition)
    plain, always = logits(model, prompts), logits(model, prompts, steer(vectors(), 2.0))
    found = logits(model, prompts, steering)
    assert (found[~met] - plain[~met]).abs().max() <= 1e-5 and (found[met] - always[met]).abs().max() <= 1e-5
    assert (always[met] - plain[met]).abs().max() > 1e-1
    never = steer(vectors(), 2.0, condition=_condition(model, prompts, 1e9)[0])
    assert torch.equal(logits(model, prompts, never), plain)
    for batch_size in (1, 3, 8):
        answers = generate(
            model, prompts, edits=steering, max_new_tokens=4, batch_size=batch_size, progress=False
        )
        whole = generate(model, prompts, edits=steer(vectors(), 2.0), max_new_tokens=4, progress=False)
        bare = generate(model, prompts, max_new_tokens=4, progress=False)
        expected = [w if m else b for w, b, m in zip(whole, bare, met.tolist(), strict=True)]
        assert answers == expected
    with pytest.raises(SiteError, match="pass the prompts"), steered(model, steering):
        pass
    with pytest.raises(SiteError, match="read from the unsteered model"), steered(model, steer(vectors())):
        steering.edits(model, prompts)
    with (
        pytest.raises(SiteError, match="vectors for 8 rows met a batch of 2"),
        steered(model, steering, prompts),
    ):
        model.last_logits(model.encode(prompts[:2]))


def test_a_condition_finds_the_planted_site_and_keeps_its_false_positives():
    apart = noise(24, seed=2)
    apart /= apart.norm()
    active, inactive = noise(3, 300, 24, seed=0), noise(3, 300, 24, seed=1)
    active[1] += 6 * apart
    found = Condition.fit(activations(active), activations(inactive))
    assert found.site == Site(1, "resid_post") and float(found.direction @ apart) > 0.95
    assert (inactive[1] @ found.direction <= found.threshold).double().mean() > 0.98
    strict = Condition.fit(activations(active), activations(inactive), "resid_post.1", false_positives=0.1)
    assert abs((inactive[1] @ strict.direction > strict.threshold).double().mean() - 0.1) < 0.01
    with pytest.raises(SiteError, match="same mean"):
        Condition.fit(activations(active), activations(active))


# --- strength


def test_likelihoods_under_edits_are_those_of_forced_decoding():
    model, asked = tiny.model(), tiny.answered(6)
    steering = steer(vectors(), 0.5, "answer")
    found = response_log_probs(model, asked, edits=steering, progress=False)
    for prompt, (values, ids) in zip(asked, found, strict=True):
        row = model.token_ids(prompt)
        with torch.no_grad(), steered(model, steering, [prompt], prompt_width=len(row)):
            out = model.module(torch.tensor([[*row, *ids.tolist()]])).logits[0]
        expected = out[len(row) - 1 : -1].log_softmax(-1)
        assert (values - expected).abs().max() <= 1e-5
    plain = response_log_probs(model, asked, progress=False)
    still = response_log_probs(model, asked, edits=steer(vectors(), 0.0), progress=False)
    assert all((a - b).abs().max() <= 1e-5 for (a, _), (b, _) in zip(plain, still, strict=True))


def test_the_strength_gives_the_kl_that_was_asked_for():
    model = tiny.model()
    answered = plain_answers(model, tiny.prompts(5), max_new_tokens=4)
    assert steering_kl(model, answered, steer(vectors(), 0.0)) <= 1e-8
    for target in (0.01, 0.2):
        found = strength_for_kl(model, vectors(), answered, target)
        assert found.kl == pytest.approx(target, rel=0.02)
        assert steering_kl(model, answered, steer(vectors(), found.strength)) == pytest.approx(found.kl)
        # in other units the same push
        other = strength_for_kl(model, 100 * vectors(), answered, target)
        assert other.strength == pytest.approx(found.strength / 100, rel=0.1)
    never = Condition(noise(32, seed=9), SITES[2], 1e9)
    with pytest.raises(UserError, match="at most, not to 0.1"):
        strength_for_kl(model, vectors(), answered, 0.1, condition=never)
    with pytest.raises(UserError, match="positive number of nats"):
        strength_for_kl(model, vectors(), answered, 0.0)
