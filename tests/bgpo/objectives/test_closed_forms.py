"""Every objective's value and gradient against autograd of its published formula, written again in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bgpo.objectives import OBJECTIVES, Samples, diffu_grpo, espo, jensen_only, spg, taylor_only
from bgpo.objectives.kl import k2_elbo, k2_samples, k2_sequence, k2_tokens
from bgpo.spec import Reinforcement

R, N, L = 6, 4, 5
ADVANTAGES = torch.tensor([1.5, -0.75, 0.0, -2.0, 0.3, 1e-3])
LENGTHS = torch.tensor([5, 3, 1, 4, 5, 2])


def spec(**fields: Any) -> Reinforcement:
    return Reinforcement.model_validate({"grader": {"type": "sudoku", "name": "g"}, **fields})


def draw(seed: int, *, fully_masked: bool = False) -> tuple[Tensor, Tensor, Samples]:
    """Log-probabilities (R, n, L) of two nearby policies, 0 where not masked, and the samples."""
    generator = torch.Generator().manual_seed(seed)
    n = 1 if fully_masked else N
    inside = torch.arange(L) < LENGTHS[:, None, None]
    masks = inside.expand(R, n, L) & (torch.rand(R, n, L, generator=generator) < (2 if fully_masked else 0.5))
    log_probs = -4 * torch.rand(R, n, L, generator=generator) * masks
    old = (log_probs + 0.4 * torch.randn(R, n, L, generator=generator)) * masks
    weights = 1 + 3 * torch.rand(R, n, generator=generator)
    scale = 0.25 + torch.rand(R, n, generator=generator)
    return log_probs, old, Samples(masks, weights, scale, LENGTHS)


def check(found: Callable[[Tensor], Tensor], expected: Callable[[Tensor], Tensor], at: Tensor) -> None:
    """Values per response and gradients agree; `expected` is float64 and `found` is float32."""
    low, high = at.clone().requires_grad_(), at.double().requires_grad_()
    g = found(low)
    value, formula = g.flatten(1).sum(-1), expected(high)
    assert g.dtype == torch.float32
    assert formula.dtype == torch.float64
    torch.testing.assert_close(value.double(), formula, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(value.sum(), low)
    (reference,) = torch.autograd.grad(formula.sum(), high)
    torch.testing.assert_close(gradient.double(), reference, rtol=1e-4, atol=1e-5)
    assert reference.abs().max() > 1e-2


def ppo(log_ratio: Tensor, advantage: float, eps: float) -> Tensor:
    """The clipped surrogate by cases: flat where the ratio has left the interval in the advantage's direction."""
    ratio = log_ratio.exp()
    if advantage >= 0:
        return torch.where(ratio <= 1 + eps, ratio, torch.full_like(ratio, 1 + eps)) * advantage
    return torch.where(ratio >= 1 - eps, ratio, torch.full_like(ratio, 1 - eps)) * advantage


def by_response(formula: Callable[[int, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda values: torch.stack([formula(r, values[r]) for r in range(R)])


def ell_pair(seed: int) -> tuple[Tensor, Tensor]:
    log_probs, old, samples = draw(seed)
    return samples.elbo(log_probs), samples.elbo(old)


@pytest.mark.parametrize("seed", range(3))
def test_elbo_terms_of_log_probabilities(seed: int) -> None:
    log_probs, _, samples = draw(seed)
    for r in range(R):
        for j in range(N):
            total = math.fsum(float(log_probs[r, j, i]) for i in range(L) if samples.masks[r, j, i])
            expected = float(samples.weights[r, j]) * float(samples.scale[r, j]) * total
            assert float(samples.elbo(log_probs)[r, j]) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_taylor_only(seed: int) -> None:
    ell, old = ell_pair(seed)
    a = ADVANTAGES.double()
    check(
        lambda x: taylor_only(x, old, ADVANTAGES),
        by_response(lambda r, x: a[r] + a[r] * (x - old[r].double()).sum() / N),
        ell,
    )


@pytest.mark.parametrize("clamp", [10.0, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_jensen_only(seed: int, clamp: float) -> None:
    ell, old = ell_pair(seed)

    def formula(r: int, x: Tensor) -> Tensor:
        d = x - old[r].double()
        return torch.stack([d[j].exp() if d[j] < clamp else d.new_tensor(math.exp(clamp)) for j in range(N)]).mean() * (
            ADVANTAGES[r].double()
        )

    check(lambda x: jensen_only(x, old, ADVANTAGES, clamp=clamp), by_response(formula), ell)


@pytest.mark.parametrize("clip", [0.2, 0.02])
@pytest.mark.parametrize("seed", range(3))
def test_espo(seed: int, clip: float) -> None:
    ell, old = ell_pair(seed)
    ell, old = ell / 5, old / 5

    def formula(r: int, x: Tensor) -> Tensor:
        return ppo(x.mean() - old[r].double().mean(), float(ADVANTAGES[r].double()), clip)

    check(lambda x: espo(x, old, ADVANTAGES, clip=clip), by_response(formula), ell)


@pytest.mark.parametrize("clip", [0.2, 0.02])
@pytest.mark.parametrize("seed", range(3))
def test_diffu_grpo(seed: int, clip: float) -> None:
    log_probs, old, samples = draw(seed, fully_masked=True)

    def formula(r: int, x: Tensor) -> Tensor:
        length, a = int(LENGTHS[r]), float(ADVANTAGES[r].double())
        return torch.stack([ppo(x[0, i] - old[r, 0, i].double(), a, clip) for i in range(length)]).mean()

    check(lambda x: diffu_grpo(x, old, ADVANTAGES, samples=samples, clip=clip), by_response(formula), log_probs)


@pytest.mark.parametrize(("power", "mixture"), [(1.5, 0.5), (3.0, 1.0), (2.0, 0.0)])
@pytest.mark.parametrize("seed", range(3))
def test_spg(seed: int, power: float, mixture: float) -> None:
    log_probs, old, samples = draw(seed)
    weights, scale = samples.weights.double(), samples.scale.double()

    def formula(r: int, x: Tensor) -> Tensor:
        a = ADVANTAGES[r].double()
        lower = (weights[r] * scale[r] * (x * samples.masks[r]).sum(-1)).mean()
        if a >= 0:
            return a * lower
        upper = torch.zeros((), dtype=torch.float64)
        for i in range(L):
            masked = [j for j in range(N) if samples.masks[r, j, i]]
            if masked:
                mean = torch.stack([weights[r, j] * x[j, i].exp() ** power for j in masked]).sum() / N
                upper = upper + mean.log() / power
        return a * (mixture * upper * scale[r].mean() + (1 - mixture) * lower)

    check(
        lambda x: spg(x, old, ADVANTAGES, samples=samples, power=power, mixture=mixture),
        by_response(formula),
        log_probs,
    )


def test_the_sandwich_has_its_bread_on_both_sides() -> None:
    """Where the weights of the samples that mask a token have mean 1, U >= B by Jensen; equal if the samples agree."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.ones(R, N, L, dtype=torch.bool)
    samples = Samples(masks, torch.ones(R, N), torch.ones(R, N), torch.full((R,), L))
    log_probs = -4 * torch.rand(R, N, L, generator=generator)
    minus = -torch.ones(R)
    upper = spg(log_probs, log_probs, minus, samples=samples, mixture=1.0).sum(-1)
    lower = spg(log_probs, log_probs, minus, samples=samples, mixture=0.0).sum(-1)
    assert (-upper > -lower + 0.1).all()
    assert (spg(log_probs, log_probs, -minus, samples=samples).sum(-1) == -lower).all()
    agreed = log_probs[:, :1].expand(R, N, L)
    upper = spg(agreed, agreed, minus, samples=samples, mixture=1.0).sum(-1)
    torch.testing.assert_close(-upper, agreed[:, 0].sum(-1))


def test_spg_with_tokens_that_no_sample_masks_and_with_improbable_ones() -> None:
    """No token is NaN, neither in value nor in gradient."""
    masks = torch.tensor([[[True, False, True], [False, False, True]]])
    samples = Samples(masks, torch.tensor([[3.0, 3.0]]), torch.ones(1, 2), torch.tensor([3]))
    log_probs = (torch.tensor([[[-1.0, 0.0, -400.0], [0.0, 0.0, -500.0]]]) * masks).requires_grad_()
    value = spg(log_probs, log_probs, torch.tensor([-1.0]), samples=samples, power=1.5, mixture=1.0).sum()
    first = math.log(3 / 2 * math.exp(-1.5)) / 1.5
    assert float(value.detach()) == pytest.approx(-(first + math.log(1.5) / 1.5 - 400), rel=1e-6)
    (gradient,) = torch.autograd.grad(value, log_probs)
    torch.testing.assert_close(gradient, torch.tensor([[[-1.0, 0.0, -1.0], [0.0, 0.0, 0.0]]]))


@pytest.mark.parametrize("seed", range(2))
def test_kl_contributions(seed: int) -> None:
    log_probs, reference, samples = draw(seed)
    ell, ell_reference = samples.elbo(log_probs), samples.elbo(reference)
    weights, scale = samples.weights.double(), samples.scale.double()
    check(
        lambda x: k2_samples(x, ell_reference, samples),
        by_response(lambda r, x: ((x - ell_reference[r].double()) ** 2 / 2).mean()),
        ell,
    )
    check(
        lambda x: k2_sequence(x, ell_reference, samples),
        by_response(
            lambda r, x: ((x - ell_reference[r].double()) / samples.scale[r].double()).mean() ** 2 / 2 / int(LENGTHS[r])
        ),
        ell,
    )
    check(
        lambda x: k2_elbo(x, reference, samples),
        by_response(
            lambda r, x: (
                ((x - reference[r].double()) * samples.masks[r]).sum(-1).mul(weights[r] * scale[r]) ** 2 / 2
            ).mean()
        ),
        log_probs,
    )
    log_probs, reference, samples = draw(seed, fully_masked=True)
    check(
        lambda x: k2_tokens(x, reference, samples),
        by_response(lambda r, x: ((x - reference[r].double()) ** 2 / 2).sum() / int(LENGTHS[r])),
        log_probs,
    )


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_the_registry_says_what_an_objective_needs(name: str) -> None:
    """Linearity, old terms and settings are what the function's own derivatives show."""
    objective, method = OBJECTIVES[name], spec(algorithm=name)
    log_probs, old, samples = draw(1, fully_masked=objective.fully_masked)
    values = log_probs if objective.per_token else samples.elbo(log_probs) / 5
    before = old if objective.per_token else samples.elbo(old) / 5
    for r, advantage in enumerate(ADVANTAGES.tolist()):
        if advantage == 0:
            continue

        def gradient(
            shift: float, at: Tensor = values, r: int = r, objective: Any = objective, before: Tensor = before
        ) -> Tensor:
            leaf = at.clone().requires_grad_()
            g = objective.contributions(method, leaf, before + shift, ADVANTAGES, samples)
            (found,) = torch.autograd.grad(g[r].sum(), leaf)
            return found[r]

        depends = not torch.allclose(gradient(0.0), gradient(0.15), rtol=1e-4)
        assert depends == bool(objective.needs_old(ADVANTAGES)[r])
        if not objective.fully_masked:
            moved = values.clone()
            moved[r, 0] -= 0.05
            others = torch.allclose(gradient(0.0)[1:], gradient(0.0, moved)[1:], rtol=1e-6)
            # spg is linear where it uses the ELBO.
            assert others == (objective.linear or (name == "spg" and advantage > 0))


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_on_policy_gradients(name: str) -> None:
    """Value and gradient at equal policies: A / n a sample, A / L a token; spg has no ratio."""
    objective = OBJECTIVES[name]
    log_probs, _, samples = draw(2, fully_masked=objective.fully_masked)
    values = (log_probs if objective.per_token else samples.elbo(log_probs)).requires_grad_()
    g = objective.contributions(spec(algorithm=name), values, values.detach(), ADVANTAGES, samples)
    (gradient,) = torch.autograd.grad(g.sum(), values)
    if name == "spg":
        expected = (ADVANTAGES[:, None] * samples.weights * samples.scale / N)[..., None] * samples.masks
        torch.testing.assert_close(gradient[ADVANTAGES >= 0], expected.expand_as(gradient)[ADVANTAGES >= 0])
        return
    torch.testing.assert_close(g.detach().flatten(1).sum(-1), ADVANTAGES)
    if name == "diffu_grpo":
        expected = ADVANTAGES[:, None, None] / LENGTHS[:, None, None] * samples.masks
    else:
        expected = (ADVANTAGES[:, None] / N).expand(R, N)
    torch.testing.assert_close(gradient, expected)
