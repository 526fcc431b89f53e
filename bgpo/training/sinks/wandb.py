"""Weights & Biases: the recipe as the run's config.

W&B takes steps in ascending order only. A resumed run therefore leaves out the steps that the run has already; resuming
is bit-identical, so they would be the same but for the timings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import wandb  # type: ignore[import-not-found, unused-ignore]  # optional, and not installed for development

from bgpo.records import Split
from bgpo.training.sinks._flatten import prefixed


class WandbSink:
    """One run; login, server and offline mode are W&B's own environment variables."""

    def __init__(
        self, location: str | None, project: str, name: str, recipe: Mapping[str, Any], run_id: str | None
    ) -> None:
        self._run = wandb.init(
            project=project,
            name=name,
            dir=location,
            config=dict(recipe),
            id=run_id,
            resume="must" if run_id is not None else None,
        )
        self.run_id = str(self._run.id)
        self._first = int(self._run.step) if run_id is not None else 0

    def log(self, step: int, split: Split, values: Mapping[str, float]) -> None:
        """Both splits of a step become one row of W&B's history."""
        if step >= self._first:
            self._run.log(prefixed(split, values), step=step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
