"""The objectives against the paper's formulas in numpy, autograd of exp(mean d) * A, and the bound itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bgpo.objectives import OBJECTIVES, bgpo, elbo_ratio

Objective = Callable[..., Tensor]
BOTH = pytest.mark.parametrize("objective", [bgpo, elbo_ratio], ids=["bgpo", "elbo_ratio"])
OLD = torch.tensor([[-8.0, -9.5, -3.25], [-1.0, -2.0, -4.5]])
"""Old terms of two responses with three samples each."""


def finite(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_subnormal=False)


@settings(deadline=None, derandomize=True)
@given(st.lists(finite(-9, 9), min_size=1, max_size=40), finite(-5, 5))
def test_bgpo_bounds_the_elbo_ratio_from_below(differences: list[float], advantage: float) -> None:
    d, a = torch.tensor(differences), torch.tensor(advantage)
    bound = float(bgpo(d, torch.zeros_like(d), a).double().sum(-1))
    ratio = float(np.exp(np.mean(np.array(differences, dtype=np.float32).astype(np.float64))) * a.double())
    assert bound <= ratio + 1e-5 * (abs(ratio) + abs(advantage) * sum(np.exp(differences)) / len(differences))


@settings(deadline=None, derandomize=True)
@given(finite(-9, 9), finite(-5, 5), st.integers(1, 8))
def test_jensen_is_tight_when_the_samples_agree(difference: float, advantage: float, n: int) -> None:
    """Equal d_j leave nothing to bound: exact for A < 0, and 1 + d <= exp(d) for A >= 0."""
    d = torch.full((n,), difference)
    bound = float(bgpo(d, torch.zeros(n), torch.tensor(advantage)).sum())
    slope = np.exp(difference) if advantage < 0 else 1 + difference
    assert bound == pytest.approx(slope * advantage, rel=1e-5, abs=1e-5)


@BOTH
@pytest.mark.parametrize("n", [1, 2, 16])
def test_on_policy_value_and_gradient_are_those_of_the_elbo_ratio(objective: Objective, n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    ell = (-20 * torch.rand(6, n, generator=generator)).requires_grad_()
    advantage = torch.tensor([1.5, -0.75, 0.0, -2.0, 0.3, 1e-3])
    value = objective(ell, ell.detach(), advantage).sum()
    (gradient,) = torch.autograd.grad(value, ell)
    ratio = (((ell.double() - ell.detach().double()).mean(-1)).exp() * advantage.double()).sum()
    (expected,) = torch.autograd.grad(ratio, ell)
    torch.testing.assert_close(value.double(), ratio, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(gradient, advantage[:, None].expand(6, n) / n, rtol=1e-6, atol=1e-9)


def test_off_policy_gradient_of_bgpo_in_closed_form() -> None:
    """A >= 0: A / n for every sample, whatever d. A < 0: exp(d_j) * A / n."""
    d = torch.tensor([[0.5, -3.0, 2.0], [0.5, -3.0, 2.0]])
    ell = (OLD + d).requires_grad_()
    advantage = torch.tensor([2.0, -1.5])
    g = bgpo(ell, OLD, advantage)
    torch.testing.assert_close(g[0], torch.tensor([1.5, -2.0, 3.0]) * 2 / 3)
    torch.testing.assert_close(g[1], torch.tensor(np.exp([0.5, -3.0, 2.0]) * -1.5 / 3, dtype=torch.float32))
    (gradient,) = torch.autograd.grad(g.sum(), ell)
    torch.testing.assert_close(gradient[0], torch.full((3,), 2.0 / 3))
    torch.testing.assert_close(gradient[1], g[1].detach())


def test_off_policy_gradient_of_the_elbo_ratio_in_closed_form() -> None:
    """Every sample gets exp(mean d) * A / n."""
    ell = (OLD + torch.tensor([[0.5, -3.0, 2.0], [1.0, 1.0, -0.5]])).requires_grad_()
    advantage = torch.tensor([2.0, -1.5])
    g = elbo_ratio(ell, OLD, advantage)
    ratio = torch.tensor([np.exp(-0.5 / 3) * 2.0, np.exp(0.5) * -1.5], dtype=torch.float32)
    torch.testing.assert_close(g.sum(-1), ratio)
    (gradient,) = torch.autograd.grad(g.sum(), ell)
    torch.testing.assert_close(gradient, ratio[:, None].expand(2, 3) / 3)


def test_a_sample_of_bgpo_depends_on_itself_alone() -> None:
    """What makes backpropagation sample by sample possible."""
    generator = torch.Generator().manual_seed(0)
    ell, old = torch.randn(2, 5, generator=generator), torch.randn(2, 5, generator=generator)
    advantage = torch.tensor([1.0, -1.0])
    whole = bgpo(ell, old, advantage)
    for j in range(5):
        single = bgpo(ell[:, j : j + 1], old[:, j : j + 1], advantage) / 5
        torch.testing.assert_close(whole[:, j : j + 1], single)
    assert OBJECTIVES["bgpo"].linear
    assert not OBJECTIVES["elbo_ratio"].linear


@BOTH
def test_no_gradient_flows_into_the_old_terms(objective: Objective) -> None:
    ell, old = OLD.clone().requires_grad_(), (OLD + 1).requires_grad_()
    objective(ell, old, torch.tensor([1.0, -1.0])).sum().backward()
    assert old.grad is None
    assert ell.grad is not None


def test_the_clamp_keeps_the_jensen_branch_finite_and_does_not_touch_the_taylor_branch() -> None:
    ell = torch.tensor([[500.0, 0.0], [500.0, 0.0]], requires_grad=True)
    old = torch.zeros(2, 2)
    g = bgpo(ell, old, torch.tensor([-1.0, 1.0]), clamp=4.0)
    torch.testing.assert_close(g[0], torch.tensor([-np.exp(4.0) / 2, -0.5], dtype=torch.float32))
    torch.testing.assert_close(g[1], torch.tensor([501.0 / 2, 0.5]))
    g.sum().backward()
    assert ell.grad is not None
    torch.testing.assert_close(ell.grad, torch.tensor([[0.0, -0.5], [0.5, 0.5]]), msg="flat beyond the clamp")


def test_very_unlikely_samples_stay_finite() -> None:
    """The Taylor branch is linear for d <= -1 too, where exp(log(1 + d)) would be NaN."""
    ell = torch.tensor([[-5000.0, -1.0], [-5000.0, -1.0]], requires_grad=True)
    g = bgpo(ell, torch.zeros(2, 2), torch.tensor([1.0, -1.0]))
    torch.testing.assert_close(g, torch.tensor([[-4999.0 / 2, 0.0], [0.0, -np.exp(-1) / 2]], dtype=torch.float32))
    g.sum().backward()
    assert ell.grad is not None
    assert ell.grad.isfinite().all()


def test_both_branches_are_finite_in_the_gradient_even_where_the_other_would_overflow() -> None:
    """torch.where passes NaN gradients through the branch not taken when that one overflows."""
    ell = torch.tensor([[300.0], [300.0]], requires_grad=True)
    for clamp in (10.0, 80.0):
        (gradient,) = torch.autograd.grad(
            bgpo(ell, torch.zeros(2, 1), torch.tensor([1.0, -1.0]), clamp=clamp).sum(), ell
        )
        assert gradient.flatten().tolist() == [1.0, 0.0]


def test_the_elbo_ratio_clamps_the_mean() -> None:
    ell = torch.tensor([[500.0, -480.0], [30.0, 10.0]], requires_grad=True)
    g = elbo_ratio(ell, torch.zeros(2, 2), torch.tensor([1.0, -2.0]), clamp=10.0)
    torch.testing.assert_close(g.sum(-1), torch.tensor([np.exp(10.0), -2 * np.exp(10.0)], dtype=torch.float32))


@BOTH
def test_half_precision_terms_are_computed_in_float32(objective: Objective) -> None:
    ell, old = OLD.bfloat16(), (OLD + 0.25).bfloat16()
    g = objective(ell, old, torch.tensor([1.0, -1.0]).bfloat16())
    assert g.dtype == torch.float32
    torch.testing.assert_close(g, objective(ell.float(), old.float(), torch.tensor([1.0, -1.0])))


@BOTH
def test_leading_dimensions_are_free(objective: Objective) -> None:
    generator = torch.Generator().manual_seed(1)
    ell, old = torch.randn(3, 4, 5, generator=generator), torch.randn(3, 4, 5, generator=generator)
    advantage = torch.randn(3, 4, generator=generator)
    g = objective(ell, old, advantage)
    assert g.shape == (3, 4, 5)
    for index in np.ndindex(3, 4):
        torch.testing.assert_close(g[index], objective(ell[index], old[index], advantage[index]))
