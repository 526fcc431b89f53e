"""Every estimator's law, exact: all uniform numbers that make a difference are gone through with their probability.

An estimator sees its uniform numbers only through comparisons. So the levels are put in the middle of the intervals
between the (independently computed) points where a count changes, or on Gauss nodes where the law is a polynomial;
the orders are all permutations, or all patterns of masked positions. By linearity it is then unbiased for every
function of a mask that the ELBO could be made of, additive over positions or not.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from scipy.special import beta, betainc
from torch import Tensor

from bgpo.diffusion.estimators import ESTIMATORS, T_MIN
from bgpo.diffusion.uniforms import Uniforms
from bgpo.spec import EstimatorName

Law = dict[tuple[int, ...], float]
Cell = tuple[float, float]
"""A level and the probability of the interval it stands for."""


def subsets(length: int) -> list[tuple[int, ...]]:
    return [s for k in range(1, length + 1) for s in itertools.combinations(range(length), k)]


def elbo_law(length: int) -> Law:
    """The paper's B: what each set of masked positions weighs in it, an integral over t."""
    return {s: float(beta(len(s), length - len(s) + 1)) for s in subsets(length)}


def intervals(breaks: Sequence[float]) -> list[Cell]:
    """Middles and widths of the intervals into which the breaks divide (0, 1)."""
    ends = [0.0, *sorted(b for b in breaks if 1e-12 < b < 1 - 1e-12), 1.0]
    return [((a + b) / 2, b - a) for a, b in itertools.pairwise(ends)]


def in_stratum(breaks: Sequence[float], stratum: int, strata: int) -> list[Cell]:
    return intervals([b * strata - stratum for b in breaks])


def uniform_breaks(length: int) -> list[float]:
    return [k / length for k in range(length)]


def inverse_root_breaks(length: int) -> list[float]:
    roots = [k**-0.5 for k in range(1, length + 1)]
    return [sum(roots[:k]) / sum(roots) for k in range(1, length)]


def pair_cells(n: int, length: int) -> list[list[Cell]]:
    """Cells of each sample's level; of a pair only the first sample's level is read."""
    breaks = [(k + 0.5) / length for k in range(length)]
    cells = []
    for j in range(n):
        if j == n - 1 and n % 2:
            cells.append(intervals(breaks))
        else:
            cells.append(in_stratum(breaks, j // 2, 2 * (n // 2)) if j % 2 == 0 else [(0.5, 1.0)])
    return cells


def count_law(name: EstimatorName, n: int, length: int, levels: Sequence[Sequence[Cell]], row: Sequence[Cell]) -> Law:
    """E[mean_j w_j 1(m_j = S)] over all combinations of levels and all orders of the positions."""
    orders = torch.tensor(list(itertools.permutations(range(1, length + 1))), dtype=torch.float64) / (length + 1)
    choices = [(*combination, own) for combination in itertools.product(*levels) for own in row]
    level = torch.tensor([[middle for middle, _ in choice] for choice in choices], dtype=torch.float64)
    probability = torch.tensor([math.prod(p for _, p in choice) for choice in choices], dtype=torch.float64)
    level = level.repeat_interleave(len(orders), 0)
    order = orders.repeat(len(choices), 1)
    numbers = Uniforms(
        lengths_N=torch.full((len(level),), length),
        row_level_N1=level[:, -1:],
        row_order_NL=order,
        level_Nn=level[:, :-1],
        order_NnL=order[:, None].expand(-1, n, -1),
    )
    return law_of(name, numbers, (probability / len(orders)).repeat_interleave(len(orders))[:, None].expand(-1, n))


def level_law(name: EstimatorName, n: int, length: int, t_of: Callable[[float, int], float], degree: int = 7) -> Law:
    """The same for independently masked positions: Gauss nodes for the levels, every pattern of masked positions."""
    nodes, widths = np.polynomial.legendre.leggauss(degree)
    rows = [
        (float(u + 1) / 2, float(width) / 2, pattern)
        for u, width in zip(nodes, widths, strict=True)
        for pattern in itertools.product((True, False), repeat=length)
    ]
    level = torch.tensor([[u] * n for u, _, _ in rows], dtype=torch.float64)
    order = torch.empty((len(rows), n, length), dtype=torch.float64)
    probability = torch.empty((len(rows), n), dtype=torch.float64)
    for r, (u, width, pattern) in enumerate(rows):
        for j in range(n):
            t = t_of(u, j)
            order[r, j] = torch.tensor([t / 2 if masked else (1 + t) / 2 for masked in pattern])
            probability[r, j] = width * math.prod(t if masked else 1 - t for masked in pattern)
    own = torch.full((len(rows), 1), 0.5, dtype=torch.float64)
    numbers = Uniforms(torch.full((len(rows),), length), own, order[:, 0], level, order)
    return law_of(name, numbers, probability)


def law_of(name: EstimatorName, numbers: Uniforms, probability_Nn: Tensor) -> Law:
    masks, weights = ESTIMATORS[name](numbers)
    length = masks.shape[-1]
    code = (masks * 2 ** torch.arange(length)).sum(-1)
    mass = torch.zeros(2**length, dtype=torch.float64)
    mass.index_add_(0, code.flatten(), (probability_Nn * weights / numbers.n_samples).flatten())
    return {s: float(mass[sum(2**i for i in s)]) for s in subsets(length)}


@pytest.mark.parametrize(("n", "length"), [(1, 1), (1, 4), (2, 4), (3, 3), (4, 5), (5, 2), (8, 3)])
@pytest.mark.parametrize("name", ["exact_count", "systematic", "antithetic", "importance"])
def test_counts_are_exactly_unbiased(name: EstimatorName, n: int, length: int) -> None:
    anywhere: list[Cell] = [(0.5, 1.0)]
    breaks = inverse_root_breaks(length) if name == "importance" else uniform_breaks(length)
    levels, row = [in_stratum(breaks, j, n) for j in range(n)], anywhere
    if name == "systematic":
        row = intervals([b * n - j for b in breaks for j in range(n)])
        levels = [anywhere] * n
    elif name == "antithetic":
        levels = pair_cells(n, length)
    assert count_law(name, n, length, levels, row) == pytest.approx(elbo_law(length), rel=1e-10)


@pytest.mark.parametrize(("n", "length"), [(1, 1), (1, 4), (3, 4), (4, 3)])
@pytest.mark.parametrize("name", ["bernoulli", "stratified"])
def test_independent_positions_are_unbiased_but_for_the_floor(name: EstimatorName, n: int, length: int) -> None:
    def t_of(level: float, j: int) -> float:
        return T_MIN + (1 - T_MIN) * (level if name == "bernoulli" else (j + level) / n)

    above_floor = {
        s: value * (1 - float(betainc(len(s), length - len(s) + 1, T_MIN))) / (1 - T_MIN)
        for s, value in elbo_law(length).items()
    }
    found = level_law(name, n, length, t_of)
    assert found == pytest.approx(above_floor, rel=1e-10)
    assert found == pytest.approx(elbo_law(length), abs=T_MIN), "the floor's bias"


def quadrature_law(n: int, length: int) -> Law:
    """The quadrature rule applied to the integrand of each set."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    t, a = (nodes + 1) / 2, weights / 2
    return {s: float((a * t ** (len(s) - 1) * (1 - t) ** (length - len(s))).sum()) for s in subsets(length)}


@pytest.mark.parametrize(("n", "length"), [(1, 1), (1, 2), (2, 3), (2, 4), (3, 5), (3, 6)])
def test_quadrature_is_exact_up_to_twice_its_nodes(n: int, length: int) -> None:
    """L tokens make the integrand a polynomial of degree L - 1; n nodes integrate up to degree 2 n - 1."""
    t = (np.polynomial.legendre.leggauss(n)[0] + 1) / 2
    assert level_law("quadrature", n, length, lambda _, j: float(t[j]), 1) == pytest.approx(elbo_law(length), rel=1e-10)


@pytest.mark.parametrize(("n", "length"), [(1, 4), (2, 6), (3, 8)])
def test_quadrature_has_the_bias_of_its_rule(n: int, length: int) -> None:
    t = (np.polynomial.legendre.leggauss(n)[0] + 1) / 2
    found = level_law("quadrature", n, length, lambda _, j: float(t[j]), 1)
    assert found == pytest.approx(quadrature_law(n, length), rel=1e-10)
    assert found != pytest.approx(elbo_law(length), rel=1e-3)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_first_degree_beyond_has_the_known_error(n: int) -> None:
    """L = 2 n + 1: the integrand's error is its leading coefficient +-1 times n!^4 / ((2 n + 1) (2 n)!^2)."""
    length = 2 * n + 1
    t = (np.polynomial.legendre.leggauss(n)[0] + 1) / 2
    found = level_law("quadrature", n, length, lambda _, j: float(t[j]), 1)
    error = math.factorial(n) ** 4 / ((2 * n + 1) * math.factorial(2 * n) ** 2)
    for s, value in elbo_law(length).items():
        assert value - found[s] == pytest.approx((-1) ** (length - len(s)) * error, rel=1e-8)
