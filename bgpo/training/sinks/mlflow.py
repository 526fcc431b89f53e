"""MLflow, through its client: an experiment a project, the recipe as parameters.

MLflow cannot take metrics back. A resumed run therefore leaves out the steps that the run has already; resuming is
bit-identical, so they would be the same but for the timings.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from bgpo.records import Split
from bgpo.training.sinks._flatten import flatten, prefixed

MAX_PARAMS = 100
MAX_PARAM_LENGTH = 6_000
"""MLflow's limits of a batch and of a value."""


class MlflowSink:
    """One run at a tracking URI; None = what MLFLOW_TRACKING_URI names, or MLflow's own default."""

    def __init__(self, uri: str | None, project: str, name: str, recipe: Mapping[str, Any], run_id: str | None) -> None:
        self._client = MlflowClient(tracking_uri=uri)
        self._logged: dict[str, int] = {}
        if run_id is not None:
            self._client.set_terminated(run_id, "RUNNING")
            self.run_id = run_id
            self._logged = self._last_steps()
        else:
            self.run_id = self._client.create_run(self._experiment(project), run_name=name).info.run_id
            params = [Param(key, str(value)[:MAX_PARAM_LENGTH]) for key, value in flatten(recipe).items()]
            for start in range(0, len(params), MAX_PARAMS):
                self._client.log_batch(self.run_id, params=params[start : start + MAX_PARAMS])

    def _experiment(self, project: str) -> str:
        try:
            return str(self._client.create_experiment(project))
        except MlflowException:  # it exists, perhaps since a moment ago
            experiment = self._client.get_experiment_by_name(project)
            if experiment is None:
                raise
            return str(experiment.experiment_id)

    def _last_steps(self) -> dict[str, int]:
        """The last step of each split in the run."""
        last: dict[str, int] = {}
        for key in self._client.get_run(self.run_id).data.metrics:
            split = key.partition("/")[0]
            if split not in last:  # every step has all metrics, so that one speaks for its split
                last[split] = max(metric.step for metric in self._client.get_metric_history(self.run_id, key))
        return last

    def log(self, step: int, split: Split, values: Mapping[str, float]) -> None:
        """One request a step and split."""
        if step <= self._logged.get(split, -1):
            return
        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in prefixed(split, values).items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def close(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self.run_id, "FINISHED")
