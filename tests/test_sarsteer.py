"""SARSteer's vector leaves the safe space and nothing else, on every modality, and is fitted on what nothing steers."""

from dataclasses import replace

import pytest
import tiny
import tiny_audio
import tiny_multimodal
import tiny_vision
import torch
from synthetic import noise

from interp.data.prompts import Prompt
from interp.errors import SiteError, UserError
from interp.geometry.subspaces import pca
from interp.methods.sarsteer import SARSteer, fit_sarsteer, with_refusal
from interp.methods.steering import SteeringVectors, steer, steered
from interp.models.activations import capture
from interp.models.generation import generate
from interp.models.model import Model
from interp.models.sites import all_layers

WIDTH, M = 24, 40
REFUSAL = "w7 w8"


def planted(k: int = 3, seed: int = 0) -> tuple[SARSteer, torch.Tensor, torch.Tensor]:
    """Benign rows that vary strongly in k known directions, a refusal vector with a known part inside them, both parts."""
    basis = torch.linalg.qr(noise(WIDTH, k, seed=seed))[0].T
    rows = (
        noise(M, k, seed=seed + 1) @ (10 * basis)
        + 0.01 * noise(M, WIDTH, seed=seed + 2)
        + noise(WIDTH, seed=seed + 3)
    )
    inside = 2 * basis.sum(0)
    outside = noise(WIDTH, seed=seed + 4)
    outside -= basis.T @ (basis @ outside)
    sites = tuple(all_layers(1, "resid_post"))
    fit = SARSteer(
        SteeringVectors((inside + outside)[None], sites, "planted"),
        (pca(rows, M - 1 if M <= WIDTH else WIDTH),),
        10,
        M,
    )
    return fit, inside, outside


def test_the_planted_safe_part_is_removed_and_the_rest_kept():
    fit, inside, outside = planted()
    assert inside.norm() > 3 and outside.norm() > 3, "there was something to remove and something to keep"
    v = fit.vectors(rank=3).vectors[0]
    assert (v - outside).norm() / outside.norm() <= 1e-2
    half = fit.vectors(rank=3, removal=0.5).vectors[0]
    assert (half - (outside + inside / 2)).norm() <= 2e-2 * inside.norm()
    assert torch.equal(fit.vectors(rank=3, removal=0.0).vectors, fit.refusal.vectors), (
        "λ = 0 is plain steering"
    )
    frame = fit.to_frame(3).iloc[0]
    expected = inside.norm() ** 2 / (inside + outside).norm() ** 2
    assert frame["inside"] == pytest.approx(float(expected), rel=1e-2) and frame["chance"] == 3 / WIDTH
    assert frame["explained"] > 0.999


@pytest.mark.parametrize("remove_mean", [False, True])
@pytest.mark.parametrize("rank", [1, 3, 10, WIDTH - 1])
def test_nothing_is_left_in_the_safe_space(rank, remove_mean):
    fit, *_ = planted()
    v = fit.vectors(rank, remove_mean=remove_mean).vectors[0]
    assert (fit.basis(0, rank) @ v).abs().max() <= 1e-5
    mean = fit.safe[0].mean
    assert not remove_mean or abs(float(mean @ v)) <= 1e-5 * float(mean.norm())
    # a random direction is not emptied: the test could fail
    assert (torch.linalg.qr(noise(WIDTH, 3, seed=50))[0].T @ fit.vectors(1).vectors[0]).abs().max() > 1e-2


def test_centred_removes_the_component_of_the_difference_to_the_mean():
    fit, *_ = planted()
    d, mean, basis = fit.refusal.vectors[0], fit.safe[0].mean, fit.basis(0, 3)
    expected = d - basis.T @ (basis @ (d - mean))
    assert (fit.vectors(3, centred=True).vectors[0] - expected).abs().max() <= 1e-10
    assert (expected - fit.vectors(3).vectors[0]).norm() > 0.1


def spoken(n: int, first: int) -> list[Prompt]:
    return [
        Prompt(
            "w1 w2", id=f"a{first + i}", audio=(tiny_multimodal.clip(0.5 + 0.1 * (i % 4), first + i), 16_000)
        )
        for i in range(n)
    ]


def seen(n: int, first: int) -> list[Prompt]:
    return [
        Prompt("w1 w2", id=f"i{first + i}", images=(tiny_multimodal.picture(seed=first + i),))
        for i in range(n)
    ]


def multimodal(recipes, kind) -> Model:
    tiny_model = tiny_multimodal.build(kind, recipes[kind])
    return Model.from_module(tiny_model.module, tiny_model.processor or tiny_model.tokenizer, name=kind)


CASES = {
    "text": (tiny.model, tiny.prompts(5, seed=1), tiny.prompts(8, seed=2)),
    "audio": (lambda: multimodal(tiny_audio.AUDIO, "qwen2_audio"), spoken(4, 0), spoken(6, 10)),
    "image": (lambda: multimodal(tiny_vision.VISION, "llava"), seen(4, 0), seen(6, 10)),
}


@pytest.mark.parametrize("case", CASES)
def test_fitted_on_any_modality_it_is_the_formula(case):
    make, harmful, benign = CASES[case]
    model = make()
    fit = fit_sarsteer(model, harmful, benign, refusal=REFUSAL, progress=False)
    x = torch.stack([capture(model, [p], progress=False).values[:, 0] for p in harmful], 1).double()
    refused = [replace(p, text=f"{p.text} {REFUSAL}") for p in harmful]
    refused_x = torch.stack([capture(model, [p], progress=False).values[:, 0] for p in refused], 1).double()
    d = (refused_x - x).mean(1)
    assert (fit.refusal.vectors - d).abs().max() <= 1e-5 * x.abs().max() and d.norm(dim=-1).min() > 1e-2
    safe = torch.stack([capture(model, [p], progress=False).values[:, 0] for p in benign], 1).double()
    for layer in range(model.n_layers):
        u = torch.linalg.svd(safe[layer] - safe[layer].mean(0), full_matrices=False)[2][:3]
        v = fit.vectors(3).vectors[layer]
        assert (v - (d[layer] - u.T @ (u @ d[layer]))).abs().max() <= 1e-3
        assert (u @ v).abs().max() <= 1e-3 and (fit.basis(layer, 3) @ v).abs().max() <= 1e-5
    assert len(fit.to_frame(3)) == model.n_layers
    # steering acts while generating, the encoder's tokens in the prompt included, and at strength 0 not at all
    answers = [
        generate(model, harmful, edits=edits, max_new_tokens=4, progress=False)
        for edits in (None, steer(fit.vectors(3), 0.0), steer(fit.vectors(3), 5.0))
    ]
    assert answers[0] == answers[1] != answers[2]


def test_an_instruction_takes_the_place_of_the_text_beside_media():
    model, harmful, benign = CASES["audio"][0](), *CASES["audio"][1:]
    told = [replace(p, text="w9") for p in harmful]
    found = fit_sarsteer(model, harmful, benign, refusal=REFUSAL, instruction="w9", progress=False)
    expected = fit_sarsteer(
        model, told, [replace(p, text="w9") for p in benign], refusal=REFUSAL, progress=False
    )
    assert torch.equal(found.refusal.vectors, expected.refusal.vectors)
    with pytest.raises(UserError, match=r"'p1-0' has neither images nor audio"):
        fit_sarsteer(tiny.model(), tiny.prompts(2, seed=1), tiny.prompts(3), instruction="w9", progress=False)


def test_recording_never_sees_steered_activations():
    model, (harmful, benign) = tiny.model(), CASES["text"][1:]
    clean = fit_sarsteer(model, harmful, benign, refusal=REFUSAL, progress=False)
    vectors = clean.vectors(3)
    with steered(model, steer(vectors)), pytest.raises(SiteError, match="under edits; fit outside of them"):
        fit_sarsteer(model, harmful, benign, refusal=REFUSAL, progress=False)
    generate(model, harmful, edits=steer(vectors, 5.0), max_new_tokens=3, progress=False)
    again = fit_sarsteer(model, harmful, benign, refusal=REFUSAL, progress=False)
    assert torch.equal(again.refusal.vectors, clean.refusal.vectors)
    assert torch.equal(again.vectors(3).vectors, vectors.vectors)


def test_bad_sets_and_ranks_are_named():
    model, (harmful, benign) = tiny.model(), CASES["text"][1:]
    with pytest.raises(UserError, match=r"benign \(safe\) set is empty"):
        fit_sarsteer(model, harmful, [], refusal=REFUSAL, progress=False)
    with pytest.raises(UserError, match="harmful set is empty"):
        fit_sarsteer(model, [], benign, refusal=REFUSAL, progress=False)
    with pytest.raises(UserError, match="one benign prompt spans no safe space"):
        fit_sarsteer(model, harmful, benign[:1], refusal=REFUSAL, progress=False)
    with pytest.raises(UserError, match="blank"):
        with_refusal(harmful[0], " ")
    fit = fit_sarsteer(model, harmful, benign, refusal=REFUSAL, progress=False)
    for rank in (8, 10, 0):
        with pytest.raises(
            UserError, match=rf"k = {rank} directions cannot be had from 8 benign prompts; take k from 1 to 7"
        ):
            fit.vectors(rank)
    # before any block the last token of a template is the same in every prompt
    constant = fit_sarsteer(model, harmful, benign, refusal=REFUSAL, sites="resid_pre.0", progress=False)
    with pytest.raises(UserError, match=r"resid_pre\.0 vary in 0 directions only"):
        constant.vectors(1)
    with pytest.raises(SiteError, match="is of an encoder"):
        fit_sarsteer(
            CASES["audio"][0](),
            CASES["audio"][1],
            CASES["audio"][2],
            refusal=REFUSAL,
            sites="audio.resid_post.0",
            progress=False,
        )
