"""Masks against the law they are said to have: every set of positions, with its weight, counted."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch
from scipy import stats
from torch import Tensor

from bgpo.diffusion.masking import BERNOULLI_T_MIN, draw_masks
from bgpo.diffusion.rng import Purpose, stream_keys
from bgpo.spec import EstimatorName

ESTIMATORS: tuple[EstimatorName, ...] = ("exact_count", "bernoulli")


def keys_of(count: int, seed: int = 0) -> Tensor:
    return stream_keys(seed, Purpose.ELBO, torch.arange(count))


def draw(length: int, n_samples: int, estimator: EstimatorName, rows: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    return draw_masks(keys_of(rows, seed), torch.full((rows,), length), length, n_samples, estimator)


@pytest.mark.parametrize("n_samples", [1, 3, 4, 8])
def test_exact_count_masks_follow_their_law(n_samples: int) -> None:
    """Over many rows: P(mask set S) = 1 / (L * C(L, |S|)), weight L / |S|."""
    length = 4
    masks, weights = draw(length, n_samples, "exact_count", rows=6000 // n_samples)
    observed = Counter(tuple(mask.nonzero().flatten().tolist()) for mask in masks.flatten(0, 1))
    sets = [s for k in range(1, length + 1) for s in itertools.combinations(range(length), k)]
    assert set(observed) == set(sets), "a mask is never empty and every other set occurs"
    total = masks.flatten(0, 1).shape[0]
    expected = [total / (length * math.comb(length, len(s))) for s in sets]
    # Strata make counts more even than independent draws, which can only raise the p-value.
    assert stats.chisquare([observed[s] for s in sets], expected).pvalue > 0.01
    torch.testing.assert_close(weights, length / masks.sum(-1).float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("length", "n_samples"), [(4, 4), (4, 8), (7, 14), (1, 5)])
def test_exact_counts_are_stratified(length: int, n_samples: int) -> None:
    """With n a multiple of L every count comes exactly n / L times, in every row."""
    masks, _ = draw(length, n_samples, "exact_count", rows=50)
    for row in masks.sum(-1).tolist():
        assert Counter(row) == dict.fromkeys(range(1, length + 1), n_samples // length)


def test_fewer_samples_than_positions_spread_over_the_counts() -> None:
    """Sample j of n has a count from the j-th n-th of 1..L."""
    length, n_samples = 12, 4
    masks, _ = draw(length, n_samples, "exact_count", rows=400)
    counts = masks.sum(-1)
    for j in range(n_samples):
        assert sorted(set(counts[:, j].tolist())) == [3 * j + 1, 3 * j + 2, 3 * j + 3]


def test_bernoulli_masks_follow_their_law() -> None:
    """t is uniform on (t_min, 1), a position is masked when its own number is below t, the weight is 1 / t."""
    length, rows = 5, 4000
    masks, weights = draw(length, 2, "bernoulli", rows=rows)
    t = 1 / weights.double().flatten()
    assert stats.kstest(t.numpy(), stats.uniform(BERNOULLI_T_MIN, 1 - BERNOULLI_T_MIN).cdf).pvalue > 0.01
    # Given t the count is Binomial(L, t); the probability transform of a discrete variable, made continuous by a
    # second random number, is uniform.
    counts = masks.sum(-1).flatten().numpy()
    spread = torch.rand(counts.shape[0], dtype=torch.float64, generator=torch.Generator().manual_seed(0)).numpy()
    binomial = stats.binom(length, t.numpy())
    level = binomial.cdf(counts) - spread * binomial.pmf(counts)
    assert stats.kstest(level, "uniform").pvalue > 0.01
    assert stats.chisquare(masks.flatten(0, 1).sum(0).numpy()).pvalue > 0.01, "all positions are alike"
    assert (counts == 0).any(), "the literal form has empty masks"


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_masks_end_with_the_row(estimator: EstimatorName) -> None:
    lengths = torch.tensor([1, 2, 5, 9])
    masks, weights = draw_masks(keys_of(4), lengths, 9, 32, estimator)
    beyond = torch.arange(9) >= lengths[:, None]
    assert not (masks & beyond[:, None, :]).any()
    assert masks.any(0).any(0).all(), "and reach its last position"
    if estimator == "exact_count":
        counts = masks.sum(-1)
        assert (counts >= 1).all()
        torch.testing.assert_close(weights, lengths[:, None] / counts.float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_row_draws_the_same_masks_in_every_batch(estimator: EstimatorName) -> None:
    """Neither the other rows nor the padding they bring change a row's masks."""
    lengths = torch.tensor([3, 8, 5])
    masks, weights = draw_masks(keys_of(3), lengths, 8, 6, estimator)
    for row, length in enumerate(lengths.tolist()):
        alone, weight = draw_masks(keys_of(3)[row : row + 1], lengths[row : row + 1], length, 6, estimator)
        assert torch.equal(masks[row, :, :length], alone[0])
        assert torch.equal(weights[row], weight[0])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_samples_of_a_row_differ(estimator: EstimatorName) -> None:
    masks, _ = draw(40, 8, estimator, seed=2)
    assert len({tuple(mask.tolist()) for mask in masks[0]}) == 8
