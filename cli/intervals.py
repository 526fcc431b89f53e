"""Confidence interval of the difference of two proportions.

Newcombe's method 10 (Statistics in Medicine 17:873-890, 1998): the square-and-add combination of two Wilson score
intervals. It stays inside [-1, 1] and has close to nominal coverage for small samples and proportions near 0 and 1. It
takes the two samples as independent; for the same puzzles answered twice, whose outcomes correlate positively, it is
wider than a paired interval would be, so what it excludes is excluded.
"""

from __future__ import annotations

import math

_Z95 = 1.959963984540054


def wilson(proportion: float, n: int, z: float = _Z95) -> tuple[float, float]:
    """Wilson score interval of a proportion seen in `n` trials."""
    if n < 1 or not 0 <= proportion <= 1:
        raise ValueError(f"need n >= 1 and a proportion in [0, 1], got {n} and {proportion}")
    centre = (proportion + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(proportion * (1 - proportion) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return centre - half, centre + half


def difference(before: float, after: float, n: int) -> tuple[float, float]:
    """95 % interval of `after - before`, each seen in `n` trials."""
    low_b, high_b = wilson(before, n)
    low_a, high_a = wilson(after, n)
    delta = after - before
    return (
        delta - math.hypot(after - low_a, high_b - before),
        delta + math.hypot(high_a - after, before - low_b),
    )
