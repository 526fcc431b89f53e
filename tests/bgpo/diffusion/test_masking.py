"""Masks as they are drawn, against the law they are said to have; test_estimators has the exact laws."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import get_args

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from bgpo.diffusion.estimators import T_MIN
from bgpo.diffusion.masking import draw_masks
from bgpo.diffusion.rng import Purpose, stream_keys
from bgpo.spec import EstimatorName

ESTIMATORS: tuple[EstimatorName, ...] = get_args(EstimatorName)
COUNTS: tuple[EstimatorName, ...] = ("exact_count", "systematic", "antithetic", "importance")


def keys_of(count: int, seed: int = 0) -> Tensor:
    return stream_keys(seed, Purpose.ELBO, torch.arange(count))


def draw(length: int, n_samples: int, estimator: EstimatorName, rows: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    return draw_masks(keys_of(rows, seed), torch.full((rows,), length), length, n_samples, estimator)


@pytest.mark.parametrize("n_samples", [1, 5, 8])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_set_of_positions_weighs_what_it_does_in_the_elbo(estimator: EstimatorName, n_samples: int) -> None:
    """E[mean_j w_j 1(m_j = S)] = 1 / (|S| C(L, |S|)): levels and orders come from streams that are independent."""
    length, rows = 4, 12_000
    if estimator == "quadrature" and length > 2 * n_samples:
        pytest.skip("biased by design here, see test_estimators")
    masks, weights = draw(length, n_samples, estimator, rows=rows, seed=1)
    code_Nn = (masks * 2 ** torch.arange(length)).sum(-1)
    for k in range(1, length + 1):
        for chosen in itertools.combinations(range(length), k):
            weighed_N = (weights.double() * (code_Nn == sum(2**i for i in chosen))).mean(-1)
            error = float(weighed_N.std()) / rows**0.5
            assert abs(float(weighed_N.mean()) - 1 / (k * math.comb(length, k))) < 4 * error + T_MIN


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
    assert stats.kstest(t.numpy(), stats.uniform(T_MIN, 1 - T_MIN).cdf).pvalue > 0.01
    # Given t the count is Binomial(L, t); the probability transform of a discrete variable, made continuous by a
    # second random number, is uniform.
    counts = masks.sum(-1).flatten().numpy()
    spread = torch.rand(counts.shape[0], dtype=torch.float64, generator=torch.Generator().manual_seed(0)).numpy()
    binomial = stats.binom(length, t.numpy())
    level = binomial.cdf(counts) - spread * binomial.pmf(counts)
    assert stats.kstest(level, "uniform").pvalue > 0.01
    assert stats.chisquare(masks.flatten(0, 1).sum(0).numpy()).pvalue > 0.01, "all positions are alike"
    assert (counts == 0).any(), "the literal form has empty masks"


def test_stratified_levels_lie_in_their_strata() -> None:
    n_samples = 5
    _, weights = draw(7, n_samples, "stratified", rows=3000)
    level = (1 / weights.double() - T_MIN) / (1 - T_MIN) * n_samples - torch.arange(n_samples)
    for j in range(n_samples):
        assert stats.kstest(level[:, j].numpy(), "uniform").pvalue > 0.01


def test_systematic_counts_are_evenly_spaced() -> None:
    """Neighbours L / n apart, also around the end, and all of it moved by one offset a row."""
    length, n_samples = 18, 4
    counts = draw(length, n_samples, "systematic", rows=300)[0].sum(-1)
    gaps = counts.diff(dim=-1, append=counts[:, :1] + length)
    assert set(gaps.flatten().tolist()) == {4, 5}
    assert set(counts[:, 0].tolist()) == {1, 2, 3, 4, 5}
    with_period = draw(length, 6, "systematic", rows=300)[0].sum(-1)
    assert set(with_period.diff(dim=-1).flatten().tolist()) == {3}


@pytest.mark.parametrize("n_samples", [1, 2, 5, 8])
@pytest.mark.parametrize("length", [1, 2, 7, 8])
def test_antithetic_pairs_are_complements(n_samples: int, length: int) -> None:
    """Each position is masked in exactly one of a pair, unless the pair is the full mask twice."""
    masks, weights = draw(length, n_samples, "antithetic", rows=200)
    torch.testing.assert_close(weights, length / masks.sum(-1).float())
    full = 0
    for first in range(0, n_samples - 1, 2):
        together = masks[:, first].int() + masks[:, first + 1]
        both = together.amin(-1) == 2
        assert (together[~both] == 1).all()
        full += int(both.sum())
    if n_samples > 1:
        assert 0 < full <= 200 * (n_samples // 2), "the full mask is drawn"
    assert masks[:, -1].any(-1).all(), "no mask is empty, nor the one left over"


def test_antithetic_counts_are_stratified_over_the_pairs() -> None:
    """Four pairs of 16 positions: the smaller counts come from the four quarters of 0 to 8, a full mask counting 0."""
    smaller = draw(16, 8, "antithetic", rows=300)[0].sum(-1)[:, ::2] % 16
    for pair in range(4):
        assert set(smaller[:, pair].tolist()) == {2 * pair, 2 * pair + 1, 2 * pair + 2}


def test_importance_counts_follow_the_inverse_square_root() -> None:
    length, rows = 30, 4000
    masks, weights = draw(length, 3, "importance", rows=rows)
    counts = masks.sum(-1)
    law = np.arange(1, length + 1) ** -0.5
    law /= law.sum()
    assert stats.chisquare(np.bincount(counts.flatten(), minlength=31)[1:], law * 3 * rows).pvalue > 0.01
    expected = 1 / (counts.double() * torch.from_numpy(law)[counts - 1])
    torch.testing.assert_close(weights, expected.float(), rtol=1e-6, atol=0)
    assert (counts.diff(dim=-1) >= 0).all(), "the strata ascend"


@pytest.mark.parametrize("n_samples", [1, 3, 16])
def test_importance_masks_cover_every_position_evenly(n_samples: int) -> None:
    """Over a row's samples no position is masked more than once more than another; every length on its own."""
    lengths = torch.arange(1, 13).repeat_interleave(20)
    masks, _ = draw_masks(keys_of(len(lengths)), lengths, 12, n_samples, "importance")
    covered = masks.sum(1)
    inside = torch.arange(12) < lengths[:, None]
    highest = covered.masked_fill(~inside, 0).amax(-1)
    lowest = covered.masked_fill(~inside, 10**6).amin(-1)
    assert ((highest - lowest) <= 1).all()
    assert (highest > lowest).any()


def test_quadrature_nodes_do_not_depend_on_the_row() -> None:
    """The three-point rule, as tabulated: 1/2 and 1/2 +- sqrt(3/20), weights 4/9 and 5/18."""
    masks, weights = draw_masks(keys_of(5000), torch.full((5000,), 9), 9, 3, "quadrature")
    t = torch.tensor([0.5 - 0.15**0.5, 0.5, 0.5 + 0.15**0.5])
    torch.testing.assert_close(weights, (3 * torch.tensor([5 / 18, 4 / 9, 5 / 18]) / t).expand(5000, 3))
    for j in range(3):
        expected = stats.binom(9, float(t[j])).pmf(range(10)) * 5000
        observed = np.bincount(masks[:, j].sum(-1), minlength=10)
        likely = expected >= 5
        seen, wanted = observed[likely], expected[likely]
        assert stats.chisquare(seen, wanted * seen.sum() / wanted.sum()).pvalue > 0.01


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_masks_end_with_the_row(estimator: EstimatorName) -> None:
    lengths = torch.tensor([1, 2, 5, 9])
    masks, weights = draw_masks(keys_of(4), lengths, 9, 32, estimator)
    beyond = torch.arange(9) >= lengths[:, None]
    assert not (masks & beyond[:, None, :]).any()
    assert masks.any(0).any(0).all(), "and reach its last position"
    assert weights.dtype == torch.float32
    assert (weights > 0).all()
    if estimator in COUNTS:
        assert (masks.sum(-1) >= 1).all()
    if estimator in COUNTS and estimator != "importance":
        torch.testing.assert_close(weights, lengths[:, None] / masks.sum(-1).float(), rtol=1e-6, atol=0)


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
