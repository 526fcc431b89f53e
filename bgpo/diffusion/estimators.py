"""The seven estimators of the ELBO: uniform numbers -> masks (N, n, L) and one weight a sample (N, n), float64.

The law of each, its references and how they compare: docs/estimators.md. "Unbiased" means, for every set S of masked
positions, |S| = k of a response of length L >= k >= 1,

    E[mean_j w_j 1(m_j = S)] = integral over t of t^(k-1) (1-t)^(L-k) = 1 / (k * C(L, k)).

Shapes: N rows, n samples, L the padded response length.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from bgpo.diffusion.uniforms import Uniforms
from bgpo.spec import EstimatorName

T_MIN = 1e-3
"""Smallest t of `bernoulli` and `stratified`: 1/t is unbounded at 0."""

Samples = tuple[Tensor, Tensor]


def bernoulli(numbers: Uniforms) -> Samples:
    """t uniform on (T_MIN, 1), each position masked with probability t, weight 1 / t: the BGPO paper's form.

    Unbiased but for the floor, which leaves out the part of the integral below T_MIN. An empty mask contributes 0.
    """
    return _independent_positions(numbers, T_MIN + (1 - T_MIN) * numbers.level_Nn)


def stratified(numbers: Uniforms) -> Samples:
    """`bernoulli` with t_j in the j-th n-th of (T_MIN, 1) (MDLM's low-discrepancy sampler, arXiv 2406.07524)."""
    return _independent_positions(numbers, T_MIN + (1 - T_MIN) * numbers.stratified_Nn())


def quadrature(numbers: Uniforms) -> Samples:
    """t_j the nodes of n-point Gauss-Legendre quadrature on (0, 1), weight n * a_j / t_j (GDPO, arXiv 2510.08554).

    The integrand is a polynomial in t of degree L - 1, so this is unbiased for L <= 2 n and biased beyond.
    """
    nodes, weights = _gauss_legendre(numbers.n_samples)
    device = numbers.level_Nn.device
    t_Nn = torch.tensor(nodes, device=device).expand_as(numbers.level_Nn)
    masks, inverse_Nn = _independent_positions(numbers, t_Nn)
    return masks, inverse_Nn * numbers.n_samples * torch.tensor(weights, device=device)


def exact_count(numbers: Uniforms) -> Samples:
    """k_j uniform on 1..L, stratified over j; k_j positions without replacement, weight L / k_j.

    The count form of LLaDA (arXiv 2502.09992, Eq. 14). Never empty.
    """
    return _uniform_counts(numbers, numbers.stratified_Nn())


def systematic(numbers: Uniforms) -> Samples:
    """`exact_count` with evenly spaced counts: one offset a row, shared by its samples (LLaDA's likelihood code)."""
    spacing_n = torch.arange(numbers.n_samples, dtype=torch.float64, device=numbers.level_Nn.device)
    return _uniform_counts(numbers, (spacing_n + numbers.row_level_N1) / numbers.n_samples)


def antithetic(numbers: Uniforms) -> Samples:
    """Samples in pairs: a mask of k positions and its complement of L - k (coupled sampling, arXiv 2506.20639).

    The complement of the full mask is taken to be the full mask itself, so that both counts of a pair are uniform on
    1..L and the weight is L / count. The smaller counts are stratified over the pairs. The last sample of an odd n
    is an independent `exact_count` draw.
    """
    n = numbers.n_samples
    index_n = torch.arange(n, device=numbers.level_Nn.device)
    first_n = index_n - index_n % 2
    alone_n = first_n == n - 1
    pair_Nn = (first_n // 2 + numbers.level_Nn[:, first_n]) / (2 * max(n // 2, 1))
    position_Nn = torch.where(alone_n, numbers.level_Nn[:, first_n], pair_Nn)
    # Rounding gives 0 and L half a cell each; 0 counts as L, whose mask is the same set on both sides.
    first_Nn = (position_Nn * numbers.lengths_N1 + 0.5).floor()
    second_n = index_n % 2 == 1
    count_Nn = torch.where(second_n, numbers.lengths_N1 - first_Nn, first_Nn)
    count_Nn = torch.where(count_Nn == 0, numbers.lengths_N1, count_Nn)
    rank_NnL = numbers.ranks(numbers.order_NnL[:, first_n])
    # The second of a pair masks from the end of the same random order, the first from its start.
    from_end_NnL = (rank_NnL >= (numbers.lengths_N1 - count_Nn)[..., None]) & numbers.inside_N1L()
    masks = torch.where(second_n[:, None], from_end_NnL, rank_NnL < count_Nn[..., None])
    return masks, numbers.lengths_N1 / count_Nn


def importance(numbers: Uniforms) -> Samples:
    """Counts from q(k) ~ k^(-1/2), stratified over j, weight 1 / (k q(k)); masks balanced over the samples.

    The gradient of a sample grows about as L / sqrt(k): small counts are drawn more often and weigh less. The masks
    are consecutive windows of one random order of the row's positions, so the samples cover every position evenly.
    """
    cumulative_L = _inverse_root_sums(numbers.row_order_NL.shape[-1]).to(numbers.level_Nn.device)
    total_N1 = cumulative_L[numbers.lengths_N - 1][:, None]
    index_Nn = torch.searchsorted(cumulative_L, (numbers.stratified_Nn() * total_N1).contiguous())
    count_Nn = torch.minimum(index_Nn + 1, numbers.lengths_N[:, None])
    start_Nn = count_Nn.cumsum(-1) - count_Nn
    rank_N1L = numbers.ranks(numbers.row_order_NL[:, None])
    offset_NnL = (rank_N1L - start_Nn[..., None]) % numbers.lengths_N[:, None, None]
    masks = (offset_NnL < count_Nn[..., None]) & numbers.inside_N1L()
    return masks, total_N1 / count_Nn.double().sqrt()


ESTIMATORS: dict[EstimatorName, Callable[[Uniforms], Samples]] = {
    "bernoulli": bernoulli,
    "stratified": stratified,
    "quadrature": quadrature,
    "exact_count": exact_count,
    "systematic": systematic,
    "antithetic": antithetic,
    "importance": importance,
}


def _independent_positions(numbers: Uniforms, t_Nn: Tensor) -> Samples:
    return (numbers.order_NnL < t_Nn[..., None]) & numbers.inside_N1L(), 1 / t_Nn


def _uniform_counts(numbers: Uniforms, position_Nn: Tensor) -> Samples:
    """Positions in (0, 1), uniform over the samples together, to counts on 1..L and random sets of that size."""
    lengths_N1 = numbers.lengths_N1
    count_Nn = (position_Nn * lengths_N1).floor().clamp(max=lengths_N1 - 1) + 1
    return numbers.subsets(count_Nn), lengths_N1 / count_Nn


@cache
def _gauss_legendre(n: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Nodes and weights on (0, 1); the weights sum to 1."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return tuple((nodes + 1) / 2), tuple(weights / 2)


@cache
def _inverse_root_sums(length: int) -> Tensor:
    """Sums of i^(-1/2) up to 1..length. Made on the CPU, so that every device draws the same counts."""
    return torch.arange(1, length + 1, dtype=torch.float64).rsqrt().cumsum(0)
