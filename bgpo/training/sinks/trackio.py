"""trackio: the recipe as the run's config.

trackio takes any step at any time and takes none back: a run that was resumed shows the steps done again twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trackio  # type: ignore[import-not-found, unused-ignore]  # optional, and not installed for development

from bgpo.records import Split
from bgpo.training.sinks._flatten import prefixed


class TrackioSink:
    """One run in trackio's local store, or wherever its own environment variables point."""

    def __init__(self, project: str, name: str, recipe: Mapping[str, Any], run_id: str | None) -> None:
        # A new run whose name is taken is renamed by trackio, so the name that counts is the one it gives back.
        resume = "must" if run_id is not None else "never"
        self._run = trackio.init(project=project, name=run_id or name, config=dict(recipe), resume=resume)
        self.run_id = str(self._run.name)

    def log(self, step: int, split: Split, values: Mapping[str, float]) -> None:
        """Queue the values; trackio's own thread writes them."""
        self._run.log(prefixed(split, values), step=step)

    def close(self) -> None:
        """Write what is queued and finish the run."""
        self._run.finish()
