"""The public `elbo_terms`: streams, gradients, and what it refuses. Its mean is tested in diffusion/test_elbo."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch

import bgpo
from bgpo.models import Policy
from bgpo.spec import EstimatorName
from tests.bgpo.tiny import tiny_policy

PROMPTS = [[0, 1], [2, 3, 4, 5], [1]]
RESPONSES = [[1, 2, 3, 6], [6], [5, 4, 3, 2, 1, 0, 6]]
ESTIMATORS = pytest.mark.parametrize("estimator", get_args(EstimatorName))


@ESTIMATORS
def test_a_response_has_the_same_terms_in_every_batch(estimator: EstimatorName) -> None:
    """The i-th response draws from stream i; padding and neighbours do not matter."""
    policy = tiny_policy(seed=1)
    together = bgpo.elbo_terms(policy, PROMPTS, RESPONSES, n_samples=5, estimator=estimator, seed=3).detach()
    assert together.shape == (3, 5)
    assert together.dtype == torch.float32
    first = bgpo.elbo_terms(policy, PROMPTS[:1], RESPONSES[:1], n_samples=5, estimator=estimator, seed=3).detach()
    torch.testing.assert_close(together[:1], first, rtol=1e-5, atol=1e-5)
    two = bgpo.elbo_terms(policy, PROMPTS[:2], RESPONSES[:2], n_samples=5, estimator=estimator, seed=3).detach()
    torch.testing.assert_close(together[:2], two, rtol=1e-5, atol=1e-5)


@ESTIMATORS
def test_one_seed_draws_one_set_of_masks_whatever_the_policy(estimator: EstimatorName) -> None:
    """Against a policy whose weights are moved a little, term by term the difference is little too."""
    policy, moved = tiny_policy(seed=1), tiny_policy(seed=1)
    with torch.no_grad():
        for parameter in moved.model.parameters():
            parameter.mul_(1 + 1e-4)

    def terms(which: Policy, seed: int) -> torch.Tensor:
        return bgpo.elbo_terms(which, PROMPTS, RESPONSES, n_samples=8, estimator=estimator, seed=seed).detach()

    assert torch.equal(terms(policy, 0), terms(policy, 0))
    spread = terms(policy, 0).std(-1)[[0, 2]]
    assert ((terms(policy, 0) - terms(moved, 0)).abs().amax(-1)[[0, 2]] < 0.05 * spread).all()
    assert ((terms(policy, 0) - terms(policy, 1)).abs().amax(-1)[[0, 2]] > 0.5 * spread).all()


def test_gradients_reach_every_weight() -> None:
    policy = tiny_policy(seed=2)
    bgpo.elbo_terms(policy, PROMPTS, RESPONSES, n_samples=4).sum().backward()
    for name, parameter in policy.model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_a_likely_response_scores_higher(policy: Policy) -> None:
    """Raising the head's row of one token raises the ELBO of a response made of it."""
    prompt, response = policy.encode("1+1="), policy.encode("2")
    with torch.no_grad():
        before = float(bgpo.elbo_terms(policy, [prompt], [response], n_samples=1))
        hidden = policy.model(torch.tensor([[*prompt, policy.mask_id]]))[0, -1]
        policy.model.transformer["ff_out"].weight[response[0]] += 0.1 * hidden
        after = float(bgpo.elbo_terms(policy, [prompt], [response], n_samples=1))
    assert before < after < 0


@pytest.mark.parametrize(
    ("prompts", "responses", "n_samples", "says"),
    [
        (PROMPTS, [[1], [], [2]], 2, "no token"),
        (PROMPTS, RESPONSES[:2], 2, "3 prompts.*2 responses"),
        ([], [], 2, "are no responses"),
        (PROMPTS, RESPONSES, 0, "n_samples"),
    ],
)
def test_what_cannot_be_scored(prompts: list[list[int]], responses: list[list[int]], n_samples: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        bgpo.elbo_terms(tiny_policy(), prompts, responses, n_samples=n_samples)


def test_an_estimator_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="'sobol' is none of exact_count, bernoulli"):
        bgpo.elbo_terms(tiny_policy(), PROMPTS, RESPONSES, n_samples=2, estimator="sobol")  # type: ignore[arg-type]


def test_the_public_surface(checkpoint: Path) -> None:
    """Everything named in the package's docstring is there, once, under its name."""
    for name in bgpo.__all__:
        assert getattr(bgpo, name) is not None
    assert bgpo.objectives.OBJECTIVES["bgpo"].function is bgpo.objectives.bgpo
    assert callable(bgpo.rewards.compile_grader)
    assert isinstance(bgpo.load_policy(checkpoint, dtype=torch.float32, device="cpu"), bgpo.Policy)
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        _ = bgpo.train
