"""How a validation metric develops over a run's evaluations: which was the best, and for how long none was better.

Losses get better by falling, everything else by rising. The state is small, plain, and part of each checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bgpo.errors import SpecError
from bgpo.spec import Recipe


@dataclass
class Progress:
    """Watches one metric."""

    metric: str
    param: str
    """The specification's field that chose the metric, named in errors."""
    min_delta: float = 0.0
    """A smaller change is no improvement."""
    warmup_evals: int = 0
    """Evaluations at the start that do not count."""
    best: float | None = None
    best_step: int | None = None
    stale: int = 0
    """Evaluations since the best one."""
    seen: int = 0

    def observe(self, step: int, values: Mapping[str, float]) -> bool:
        """Take in an evaluation; True when it is the best so far.

        Raises:
            SpecError: at the first evaluation, when it has no such metric.
        """
        self.seen += 1
        measured = any(name.endswith(("reward_mean", "loss")) for name in values)  # not when nothing could be graded
        if self.seen == 1 and measured and self.metric not in values:
            raise SpecError(f"evaluations have no metric {self.metric!r}, only {', '.join(sorted(values))}", self.param)
        if self.seen <= self.warmup_evals:
            return False
        value = values.get(self.metric, math.nan)
        if self._better(value):
            self.best, self.best_step, self.stale = value, step, 0
            return True
        self.stale += 1
        return False

    def _better(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        if self.best is None:
            return True
        falling = self.metric == "loss" or self.metric.endswith("_loss")
        return (self.best - value if falling else value - self.best) > self.min_delta

    def state(self) -> dict[str, Any]:
        """For a checkpoint's state.json."""
        return {
            "metric": self.metric,
            "best": self.best,
            "best_step": self.best_step,
            "stale": self.stale,
            "seen": self.seen,
        }

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Inverse of `state`; one of another metric says nothing and is left."""
        if state is not None and state["metric"] == self.metric:
            self.best, self.best_step = state["best"], state["best_step"]
            self.stale, self.seen = state["stale"], state["seen"]


def best_of(recipe: Recipe) -> Progress:
    """What chooses the best checkpoint."""
    return Progress(_best_metric(recipe), "checkpointing.best_metric")


def patience_of(recipe: Recipe) -> Progress | None:
    """What early stopping watches, when the recipe has it."""
    stopping = recipe.early_stopping
    if stopping is None:
        return None
    return Progress(
        stopping.metric or _best_metric(recipe),
        "checkpointing.best_metric" if stopping.metric is None else "early_stopping.metric",
        min_delta=stopping.min_delta,
        warmup_evals=stopping.warmup_evals,
    )


def _best_metric(recipe: Recipe) -> str:
    graded = recipe.method.grader is not None
    return recipe.checkpointing.best_metric or ("sampled_solved_rate" if graded else "loss")
