"""Mean, spread and 95 % interval of a few seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Two-sided 95 % quantile of Student's t at 1, 2, ... degrees of freedom."""


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return statistics.fmean(values)


def deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation; None for a single value."""
    return statistics.stdev(values) if len(values) > 1 else None


def half_width(values: Sequence[float]) -> float | None:
    """Half the 95 % Student interval of the mean; None for a single value. Wide for 3 seeds: 2.5 deviations."""
    spread = deviation(values)
    if spread is None:
        return None
    freedom = len(values) - 1
    quantile = _T95[freedom - 1] if freedom <= len(_T95) else 2.0
    return quantile * spread / math.sqrt(len(values))


def verdict(differences: Sequence[float], *, expected: int) -> str:
    """What paired differences say of a claim about their sign.

    Args:
        differences: one a seed.
        expected: 1 when the paper has the difference positive, -1 negative, 0 about zero.
    """
    half = half_width(differences)
    if half is None:
        return "one seed: no statement"
    centre = mean(differences)
    if abs(centre) <= half:
        return "agrees: no difference seen" if expected == 0 else "not resolved: the interval holds 0"
    if expected == 0:
        return "disagrees: a difference"
    return "agrees" if centre * expected > 0 else "disagrees"
