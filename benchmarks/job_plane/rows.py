"""The rows of the result, and medians of a few repeated measurements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sizes:
    """How much of everything is measured."""

    submissions: int = 120
    """Jobs submitted one by one to an idle worker."""
    queued: int = 160
    """Jobs that wait when four workers are let loose."""
    claims: int = 400
    """The same for claims without attempts."""
    rounds: int = 7
    """Turns of each side when two are compared."""
    slot_s: float = 1.0
    """Length of such a turn."""
    connections: tuple[int, ...] = (1, 8, 32)
    """Polls under way at once."""
    metric_steps: int = 2000
    """Steps whose values are stored."""
    commits: int = 300
    few: int = 100
    many: int = 100_000
    """Jobs in the small and in the large table."""


QUICK = Sizes(
    submissions=3,
    queued=4,
    claims=8,
    rounds=1,
    slot_s=0.3,
    connections=(1, 4),
    metric_steps=20,
    commits=10,
    few=20,
    many=400,
)
"""Shows that everything runs; the figures mean nothing."""


def row(
    figure: str, database: str, value: float, unit: str, target: str | None = None, detail: str = ""
) -> dict[str, Any]:
    """One figure of the result."""
    return {
        "figure": figure,
        "database": database,
        "value": float(f"{value:.4g}"),
        "unit": unit,
        "target": target,
        "detail": detail,
    }


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest of `values` that a share `q` of them does not exceed. Of no values, NaN."""
    ordered = sorted(values)
    return ordered[max(math.ceil(q * len(ordered)) - 1, 0)] if ordered else math.nan
