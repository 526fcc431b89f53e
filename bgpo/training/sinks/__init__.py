"""Trackers a run also writes its metrics to: TensorBoard, MLflow, W&B, trackio, each an optional install.

The records of `bgpo.records` stay the source of truth; a sink is a copy for people. `open_sinks` is called by the main
process only. The tracker's own name of each run is kept in `<output_dir>/sinks.json`, so that a run resumed in the same
output directory goes on in the tracker's run; one that starts afresh, or elsewhere, makes a new run. What each tracker
shows of the steps that are done a second time after a resume: docs/sinks.md.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from bgpo.errors import SpecError
from bgpo.records import Split
from bgpo.spec import SinkSpec

STATE_FILE = "sinks.json"


class Sink(Protocol):
    """An open run of a tracker."""

    run_id: str
    """What the tracker calls the run; given back to continue it."""

    def log(self, step: int, split: Split, values: Mapping[str, float]) -> None:
        """Write the values of a step, each as `<split>/<name>`. May raise anything the tracker raises."""
        ...

    def close(self) -> None:
        """Write what is buffered and end the run."""
        ...


def open_sinks(specs: Sequence[SinkSpec], recipe: Mapping[str, Any], *, output_dir: Path, step: int = 0) -> list[Sink]:
    """Open the run's sinks, in order, and log the recipe in runs that are new.

    Args:
        specs: what to open.
        recipe: the recipe as JSON; its leaves become the parameters of new runs, `method.optimizer.learning_rate`.
        output_dir: keeps the names of the trackers' runs.
        step: the step the run continues from; 0 = it starts afresh.

    Raises:
        SpecError: a tracker is not installed or cannot be opened, naming `sinks.<index>`.
    """
    for index, spec in enumerate(specs):
        if importlib.util.find_spec(spec.type) is None:
            raise SpecError(
                f"{spec.type} is not installed: pip install 'bgpo[{spec.type}]', or leave this sink out",
                f"sinks.{index}.type",
            )
    path = output_dir / STATE_FILE
    known: dict[str, str] = json.loads(path.read_text()) if step > 0 and path.exists() else {}
    sinks: list[Sink] = []
    run_ids: dict[str, str] = {}
    for index, spec in enumerate(specs):
        key = f"{index} {spec.type} {spec.project} {spec.location}"
        try:
            sink = _open(spec, recipe, output_dir, known.get(key), step)
        # Each tracker raises what it likes, from a refused connection to a missing login.
        except Exception as error:
            for opened in sinks:
                opened.close()
            raise SpecError(f"cannot open {spec.type}: {error}", f"sinks.{index}") from error
        sinks.append(sink)
        run_ids[key] = sink.run_id
    if specs:
        output_dir.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(run_ids, indent=1) + "\n")
        os.replace(temporary, path)
    return sinks


def _open(spec: SinkSpec, recipe: Mapping[str, Any], output_dir: Path, run_id: str | None, step: int) -> Sink:
    """One sink; `run_id` is the run to continue. The trackers take seconds to import, so each waits until here."""
    name = spec.run_name or output_dir.resolve().name or "run"
    match spec.type:
        case "tensorboard":
            from bgpo.training.sinks.tensorboard import TensorBoardSink

            root = Path(spec.location) if spec.location is not None else output_dir / "tensorboard"
            return TensorBoardSink(root / spec.project, name, recipe, run_id, step)
        case "mlflow":
            from bgpo.training.sinks.mlflow import MlflowSink

            return MlflowSink(spec.location, spec.project, name, recipe, run_id)
        case "wandb":
            from bgpo.training.sinks.wandb import WandbSink

            return WandbSink(spec.location, spec.project, name, recipe, run_id)
        case "trackio":
            from bgpo.training.sinks.trackio import TrackioSink

            return TrackioSink(spec.project, name, recipe, run_id)
