"""The algebra of gradient surgery, its gate, its convergence, and what it says about bad input."""

import math

import pytest
import torch
from torch import nn

from interp.errors import NonFiniteError, UserError
from interp.methods.spf import (
    GradientSurgery,
    randomised_svd,
    surgery_table,
    update_watch,
    without,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def block(task: torch.Tensor, safety: torch.Tensor, **options) -> tuple[nn.Parameter, GradientSurgery]:
    """One parameter whose task gradient is `task` and whose safety gradient is `safety`."""
    weight = nn.Parameter(torch.zeros_like(task))
    weight.grad = task.clone()
    return weight, GradientSurgery([("weight", weight)], lambda step: (weight * safety).sum(), **options)


TASK, SAFETY = random(12, 9), -random(12, 9) + 0.5 * random(12, 9, seed=1)


def test_nothing_is_left_along_the_subspace_and_a_second_projection_does_nothing():
    weight, surgery = block(TASK, SAFETY, k=4)
    step = surgery()
    basis = torch.linalg.svd(SAFETY).U[:, :4]
    assert step.open == 1 and step.cosine < 0
    assert (basis.T @ weight.grad).norm() / TASK.norm() < 1e-6
    assert torch.allclose(weight.grad, TASK - basis @ basis.T @ TASK, atol=1e-5)
    assert step.removed == pytest.approx(float((TASK - weight.grad).norm() / TASK.norm()), rel=1e-5)
    once = weight.grad.clone()
    surgery.gate = "always"
    surgery()
    assert torch.allclose(weight.grad, once, atol=1e-6)


def test_the_null_takes_a_random_subspace_of_the_same_dimensions():
    low = random(12, 2) @ random(
        2, 9, seed=1
    )  # of rank 2: k = 4 protects two directions, and so must the null
    weight, surgery = block(TASK, low, k=4, gate="always", method="spf-random", seed=3)
    step = surgery()
    taken = TASK - weight.grad
    assert torch.linalg.matrix_rank(taken, rtol=1e-4) == 2
    assert (taken.T @ weight.grad).norm() / TASK.norm() ** 2 < 1e-6, "an orthogonal projection"
    own = torch.linalg.svd(low).U[:, :2]
    assert 0.05 < (own.T @ weight.grad).norm() / (own.T @ TASK).norm() < 1, (
        "not the safety gradient's subspace"
    )
    assert 0.5 < step.tail / step.safety_norm < 1
    again, other = (block(TASK, low, k=4, gate="always", method="spf-random", seed=s) for s in (3, 4))
    again[1](), other[1]()
    assert torch.equal(again[0].grad, weight.grad) and not torch.allclose(other[0].grad, weight.grad)


@pytest.mark.parametrize("options", [{"k": 0}, {"k": 0, "gate": "always"}, {"k": 4}])
def test_k_zero_and_a_closed_gate_change_nothing_bit_for_bit(options):
    aligned = options["k"] > 0
    weight, surgery = block(TASK, TASK if aligned else SAFETY, **options)
    step = surgery()
    assert step.removed == 0 and step.open == (0 if aligned else 1), (
        "an open gate with k = 0 has nothing to remove"
    )
    assert torch.equal(weight.grad, TASK)


def test_on_a_column_pcgrad_is_spf_and_on_a_rank_one_matrix_it_is_not():
    task, safety = random(7, 1, seed=2), -random(7, 1, seed=2) + 0.3 * random(7, 1, seed=3)
    kept = {}
    for method in ("spf", "pcgrad"):
        weight, surgery = block(task, safety, method=method, k=1)
        surgery()
        kept[method] = weight.grad
    assert torch.allclose(kept["spf"], kept["pcgrad"], atol=1e-6)
    u, v = (torch.nn.functional.normalize(random(n, seed=s), dim=0) for n, s in ((12, 4), (9, 5)))
    safety = -3.0 * torch.outer(u, v) * (u @ TASK @ v).sign()
    for method in ("spf", "pcgrad"):
        weight, surgery = block(TASK, safety, method=method, k=1)
        surgery()
        kept[method] = weight.grad
    expected = torch.outer(u, u) @ TASK @ (torch.eye(9) - torch.outer(v, v))
    assert torch.allclose(kept["pcgrad"] - kept["spf"], expected, atol=1e-5)


@pytest.mark.parametrize("k", [9, 3])
def test_a_step_of_sgd_moves_the_safety_loss_by_the_truncated_spectrum_only(k):
    weight, surgery = block(TASK, SAFETY, k=k, gate="always")
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with update_watch(surgery, optimizer) as drift:
        step = surgery()
        optimizer.step()
    u, values, v = torch.linalg.svd(SAFETY, full_matrices=False)
    truncated = (u[:, k:] * values[k:]) @ v[k:]
    assert drift[0].drift == pytest.approx(-0.1 * float((truncated * TASK).sum()), abs=1e-4)
    assert step.tail == pytest.approx(float(truncated.norm()), abs=2e-3 * float(SAFETY.norm()))
    assert abs(drift[0].drift) <= drift[0].update_norm * step.tail + 1e-4


def test_the_update_of_adam_is_not_orthogonal_unless_it_is_projected_itself():
    drifts = {}
    for method in ("spf", "spf-update"):
        weight, surgery = block(TASK, SAFETY, method=method, k=9, gate="always")
        optimizer = torch.optim.Adam([weight], lr=0.1)
        with update_watch(surgery, optimizer) as watched:
            for step in range(3):
                weight.grad = random(12, 9, seed=step) + TASK
                surgery()
                optimizer.step()
        drifts[method] = [abs(update.drift) for update in watched]
        assert [update.step for update in watched] == [0, 1, 2]
        assert all((update.update_removed > 0.1) == (method == "spf-update") for update in watched)
        optimizer.step()
        assert len(watched) == 3, "the hooks are gone"
    assert min(drifts["spf"]) > 1e-2
    assert max(drifts["spf-update"]) < 1e-4


def test_an_update_that_does_not_harm_is_left_bit_for_bit():
    weight, surgery = block(TASK, TASK, method="spf-update", k=4)
    plain = nn.Parameter(torch.zeros_like(TASK))
    plain.grad = TASK.clone()
    optimizer = torch.optim.Adam([weight], lr=0.1)
    with update_watch(surgery, optimizer) as watched:
        surgery()
        optimizer.step()
    torch.optim.Adam([plain], lr=0.1).step()
    assert torch.equal(weight, plain) and watched[0].drift < 0 and watched[0].update_removed == 0


def test_mixing_is_the_gradient_of_the_weighted_loss():
    weight, surgery = block(TASK, SAFETY, method="mixing", weight=0.25)
    step = surgery()
    assert torch.allclose(weight.grad, 0.75 * TASK + 0.25 * SAFETY, atol=1e-6)
    assert step.removed == pytest.approx(float(0.25 * (SAFETY - TASK).norm() / TASK.norm()), rel=1e-5)


def test_a_stack_of_matrices_is_decomposed_as_each_of_them_alone():
    stack = torch.stack([random(30, 20, seed=s) for s in range(3)] + [torch.zeros(30, 20)])
    found, _ = randomised_svd(stack, 4, torch.Generator().manual_seed(0))
    for matrix, basis in zip(stack[:3], found[:3], strict=True):
        assert (basis.T @ matrix).norm() > 0.98 * torch.linalg.svdvals(matrix)[:4].norm()
        assert torch.allclose(basis.T @ basis, torch.eye(4), atol=1e-5)
    assert not found[3].any(), "a matrix of zeros protects nothing"


def test_the_table_has_a_row_a_step_and_NaN_where_the_scaler_skipped():
    weight, surgery = block(TASK, SAFETY, k=4)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with update_watch(surgery, optimizer) as watched:
        steps = [surgery()]
        weight.grad = TASK.clone()
        steps.append(surgery())
        optimizer.step()
    table = surgery_table(steps, watched)
    assert table.step.tolist() == [0, 1]
    assert table.drift.isna().tolist() == [True, False]
    assert list(surgery_table([], []).columns) == list(table.columns)


def test_the_gate_may_be_one_for_all_or_one_a_block():
    a, b = (nn.Parameter(torch.zeros(6, 5)) for _ in range(2))
    safety = random(6, 5, seed=6)
    for gate, opened in (("global", 0.0), ("block", 0.5), ("always", 1.0)):
        a.grad, b.grad = 3 * safety.clone(), -safety.clone()
        surgery = GradientSurgery([("a", a), ("b", b)], lambda step: ((a + b) * safety).sum(), k=2, gate=gate)
        step = surgery()
        assert step.open == opened
        assert torch.equal(a.grad, 3 * safety) == (gate != "always")
        assert torch.equal(b.grad, -safety) == (gate == "global")


def test_randomised_vectors_are_those_of_the_svd_and_follow_the_seed_only():
    matrix = random(80, 60) @ torch.diag(torch.logspace(1, -2, 60))
    before = torch.get_rng_state()
    found, values = randomised_svd(matrix, 5, torch.Generator().manual_seed(1))
    exact = torch.linalg.svd(matrix)
    assert torch.linalg.svdvals(exact.U[:, :5].T @ found).min() > 0.99
    assert (found.T @ matrix).norm() > 0.999 * exact.S[:5].norm()
    assert torch.allclose(values, exact.S[:5], rtol=1e-2)
    assert torch.allclose(found.T @ found, torch.eye(5), atol=1e-5)
    assert torch.equal(found, randomised_svd(matrix, 5, torch.Generator().manual_seed(1))[0])
    assert torch.equal(before, torch.get_rng_state())
    low = random(30, 2) @ random(2, 20, seed=1)
    few, values = randomised_svd(low, 5, torch.Generator().manual_seed(0))
    assert (values > 0).sum() == 2
    assert few.norm(dim=0).tolist() == pytest.approx([1, 1, 0, 0, 0], abs=1e-5), "two columns, the rank"
    assert (found.T @ without(matrix, found)).norm() / matrix.norm() < 1e-6


def test_refresh_keeps_the_safety_gradient_for_that_many_steps():
    calls = []
    weight = nn.Parameter(torch.zeros(4, 3))

    def loss(step: int) -> torch.Tensor:
        calls.append(1)
        return (weight * random(4, 3, seed=len(calls))).sum()

    surgery = GradientSurgery([("weight", weight)], loss, k=1, refresh=3)
    refreshed = []
    for _ in range(7):
        weight.grad = random(4, 3)
        refreshed.append(surgery().refreshed)
    assert refreshed == [True, False, False, True, False, False, True]
    assert len(calls) == 3


def test_it_converges_where_two_convex_goals_conflict_and_spares_the_protected_one():
    target_task, target_safety = random(8, 6, seed=7), random(8, 6, seed=8)
    ends, moved = {}, {}
    for name in ("plain", "spf", "pcgrad"):
        weight = nn.Parameter(target_safety.clone() + 0.3 * random(8, 6, seed=9))
        surgery = GradientSurgery(
            [("weight", weight)], lambda step, w=weight: (w - target_safety).square().sum(), k=3,
            method="pcgrad" if name == "pcgrad" else "spf",
        )  # fmt: skip
        optimizer = torch.optim.SGD([weight], lr=0.05)
        for _ in range(300):
            optimizer.zero_grad()
            (weight - target_task).square().sum().backward()
            if name != "plain":
                surgery()
            before = weight.detach().clone()
            optimizer.step()
        moved[name] = float((weight.detach() - before).norm())
        ends[name] = [float((weight - t).square().sum().detach()) for t in (target_task, target_safety)]
    assert ends["plain"][0] < 1e-6
    for name, spared in (("spf", 0.9), ("pcgrad", 0.2)):
        assert ends[name][1] < spared * ends["plain"][1], ends
        # what is left of the task's gradient is what surgery takes away: nothing is gained any more
        assert moved[name] < 1e-3, moved


def test_a_block_without_a_gradient_takes_no_part():
    a, b = (nn.Parameter(torch.zeros(6, 5)) for _ in range(2))
    safety = random(6, 5, seed=6)
    a.grad = -safety + 0.1 * random(6, 5)
    surgery = GradientSurgery([("a", a), ("b", b)], lambda step: ((a + b) * safety).sum(), method="pcgrad")
    surgery()
    assert b.grad is None and abs(float((a.grad * safety).sum())) < 1e-4


def test_bad_input_is_named():
    weight = nn.Parameter(torch.zeros(4, 30))
    named = [("q_proj.lora_A", weight)]
    with pytest.raises(
        UserError, match=r"k = 20 leaves nothing of q_proj.lora_A, which has 4 rows; take k < 4"
    ):
        GradientSurgery(named, lambda step: weight.sum(), k=20)
    with pytest.raises(UserError, match="no parameter needs a gradient"):
        GradientSurgery([("w", nn.Parameter(torch.zeros(2), requires_grad=False))], lambda step: weight.sum())
    surgery = GradientSurgery(named, lambda step: weight.sum(), k=2)
    with pytest.raises(UserError, match="no block has a gradient"):
        surgery()
    for options, message in (
        ({"method": "spf-update", "k": 0}, "no subspace to project out"),
        ({"method": "safe"}, "unknown method 'safe'; use spf, pcgrad, spf-update, spf-random, mixing"),
        ({"gate": "half"}, "unknown gate 'half'; use global, block, always"),
        ({"k": 2, "refresh": 0}, "refresh at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            GradientSurgery(named, lambda step: weight.sum(), **options)
    with pytest.raises(UserError, match="train inside `with update_watch"):
        GradientSurgery(named, lambda step: weight.sum(), method="spf-update", k=2)()
    with pytest.raises(UserError, match="does not depend on the trained blocks"):
        GradientSurgery(named, lambda step: torch.tensor(1.0), k=2)()
    weight.grad = torch.full_like(weight, math.nan)
    with pytest.raises(NonFiniteError, match=r"gradient of q_proj.lora_A is not finite"):
        surgery()
    weight.grad = torch.ones_like(weight)
    with pytest.raises(UserError, match="no gradient in the trained blocks"):
        GradientSurgery(named, lambda step: 0 * weight.sum(), k=2)()
    with pytest.raises(NonFiniteError, match="safety gradient of q_proj.lora_A"):
        GradientSurgery(named, lambda step: weight.sum() * math.inf, k=2)()
