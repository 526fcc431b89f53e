"""The interval against published values and against simulation."""

from __future__ import annotations

import random

import pytest
from scipy import stats

from cli.intervals import difference, wilson


def test_wilson_against_scipy() -> None:
    for successes, n in ((0, 10), (7, 10), (250, 500), (500, 500)):
        interval = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
        assert wilson(successes / n, n) == pytest.approx((interval.low, interval.high), abs=1e-12)


def test_difference_against_newcombe_table() -> None:
    """Newcombe 1998, table II, method 10: 9/10 - 3/10 and 10/10 - 0/10."""
    assert difference(3 / 10, 9 / 10, 10) == pytest.approx((0.1705, 0.8090), abs=5e-5)
    assert difference(0 / 10, 10 / 10, 10) == pytest.approx((0.6075, 1.0), abs=5e-5)


def test_difference_covers_the_truth_about_95_times_in_100() -> None:
    draw = random.Random(0)
    n, before, after = 200, 0.2, 0.45
    covered = 0
    for _ in range(400):
        seen = [sum(draw.random() < p for _ in range(n)) / n for p in (before, after)]
        low, high = difference(seen[0], seen[1], n)
        covered += low <= after - before <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_no_trials_is_an_error() -> None:
    with pytest.raises(ValueError, match="n >= 1"):
        wilson(0.5, 0)
