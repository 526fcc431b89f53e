"""The loop every method shares: step, evaluate, checkpoint, listen.

With several processes each runs this loop, in step: what one of them is told (a signal, a command) all of them agree on
between two steps, and only the main one reports and prunes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import ValidationError

from bgpo.spec import Recipe, Reinforcement, RunSpec, Supervised
from bgpo.training.checkpoint import load_optimizer, prune, read_state, write_checkpoint
from bgpo.training.cluster import Cluster
from bgpo.training.control import Control
from bgpo.training.data import Row
from bgpo.training.dpo import DpoTrainer
from bgpo.training.evaluation import answer, autocast, decode_settings
from bgpo.training.grading import Grading, open_grading
from bgpo.training.optimizer import Optimizer
from bgpo.training.progress import best_of, patience_of
from bgpo.training.reinforcement import ReinforcementTrainer
from bgpo.training.reporter import Reporter, Stopwatch, peak_memory_bytes
from bgpo.training.sharing import share
from bgpo.training.sinks import open_sinks
from bgpo.training.start import device_of, start_policy, training_rows, validation_rows
from bgpo.training.supervised import SupervisedTrainer


class MethodTrainer(Protocol):
    """One optimization method."""

    def step(self, step: int, watch: Stopwatch) -> dict[str, float]:
        """Run a step (counted from 1) and return its metrics, the same on every process of the run."""
        ...

    def validation_loss(self, rows: Sequence[Row]) -> float | None:
        """Mean loss over validation rows, the same on every process; None where the method has no such loss."""
        ...


@dataclass
class Run:
    """One run of the trainer."""

    spec: RunSpec
    reporter: Reporter
    control: Control
    supervised: bool = False
    """Somebody else owns the checkpoint directories once they are reported, so none is pruned here."""
    cluster: Cluster = field(default_factory=Cluster)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What its grader needs, by name."""

    def train(self) -> bool:
        """Train to the last step, to where early stopping ends the run, or to a stop request.

        Returns:
            True when the run is finished, False when it was stopped with a checkpoint to resume from.

        Raises:
            BgpoError: see `bgpo.run` for what each ends in.
        """
        self.reporter.enter("loading_model", 0)
        device = device_of(self.spec, self.cluster)
        # First, because what a grader lacks is found in no time.
        self._grading = open_grading(self.spec, self.spec.graders, self.secrets, device, self.reporter)
        with self._grading or nullcontext():
            return self._train()

    def _train(self) -> bool:
        spec, method = self.spec, self.spec.method
        self._policy = start_policy(spec, self.cluster)
        updates = method.max_steps * (method.num_inner_updates if isinstance(method, Reinforcement) else 1)
        sharing = share(self._policy, self.cluster, spec.distributed)
        self._optimizer = Optimizer(self._policy.model, method.optimizer, updates, sharing)
        self._best, self._patience = best_of(spec), patience_of(spec)
        step = self._resume() if spec.resume_from else 0
        self._trainer = self._make_trainer(training_rows(spec, self._policy))
        self._validation = validation_rows(spec, self._policy)
        if self.cluster.is_main:
            recipe = spec.recipe().model_dump(mode="json")
            self.reporter.attach(open_sinks(spec.sinks, recipe, output_dir=Path(spec.output_dir), step=step))
        if step == 0 and spec.evaluation.at_start:
            self._evaluate(0)
        return self._steps(step)

    def _steps(self, step: int) -> bool:
        """The steps after `step`; what `train` returns."""
        spec, saved, last = self.spec, step, self.spec.method.max_steps
        ended, seconds_checkpoint = False, 0.0
        while step < last and not ended and not self._agree(self.control.stop_requested):
            step += 1
            watch = Stopwatch()
            with watch.measure("step"), autocast(self._policy, spec):
                values = self._trainer.step(step, watch)
            self._report(step, values, watch, seconds_checkpoint)
            evaluated, is_best, seconds_checkpoint = {}, False, 0.0
            if self._due(spec.evaluation.interval, step):
                evaluated = self._evaluate(step)
                is_best = step == self._best.best_step
                ended = self._out_of_patience(step)
            wanted = self._agree(self.control.take_checkpoint_request() or self.control.stop_requested)
            kept = is_best and spec.checkpointing.keep_best
            if wanted or kept or ended or self._due(spec.checkpointing.every_steps, step):
                seconds_checkpoint = self._checkpoint(step, evaluated, final=ended or step == last, best=is_best)
                saved = step
        stopped = step < last and not ended
        if saved < step or (step == 0 and stopped):
            self._checkpoint(step, {}, final=not stopped)  # the request came after the step's last look
        return not stopped

    def _agree(self, wanted: bool) -> bool:
        """Whether any process wants it."""
        return bool(self.cluster.maximum(torch.tensor(float(wanted))))

    def _due(self, interval: int | None, step: int) -> bool:
        """Whether something with this interval happens at this step; everything happens at the last."""
        return step == self.spec.method.max_steps or (interval is not None and step % interval == 0)

    def _resume(self) -> int:
        directory = Path(self.spec.resume_from or "")
        state = read_state(directory)
        load_optimizer(directory, self._optimizer)
        self._best.restore(state.get("best"))
        if self._patience is not None:
            self._patience.restore(state.get("early_stopping"))
        if self._grading is not None:
            self._grading.restore(state.get("grading"))
        if _recipe_of(state) != self.spec.recipe():
            self.reporter.log("warn", "the recipe differs from the one the checkpoint was made with")
        step = int(state["step"])
        self.reporter.log("info", f"resumed from step {step}")
        return step

    def _make_trainer(self, rows: list[Row]) -> MethodTrainer:
        method = self.spec.method
        shared = (self._policy, self._optimizer, rows, self.spec)
        if isinstance(method, Reinforcement):
            assert self._grading is not None
            return ReinforcementTrainer(*shared, method, self._grading, self.reporter, self.cluster)
        if isinstance(method, Supervised):
            return SupervisedTrainer(*shared, method, self.reporter, self.cluster)
        return DpoTrainer(*shared, method, self.reporter, self.cluster)

    def _report(self, step: int, values: dict[str, float], watch: Stopwatch, seconds_checkpoint: float) -> None:
        """A step's metrics. They are out before its checkpoint is written, whose seconds stand with the next step."""
        peak = torch.tensor(float(peak_memory_bytes(self._policy.device)), dtype=torch.float64)
        values = values | {
            "peak_memory_bytes": float(self.cluster.maximum(peak)),
            "non_finite_updates": float(self._optimizer.non_finite_updates),
        }
        seconds = {"checkpoint": seconds_checkpoint} | watch.seconds
        self.reporter.metrics(step, "train", values | {f"seconds_{name}": value for name, value in seconds.items()})

    def _evaluate(self, step: int) -> dict[str, float]:
        """Evaluate and report; nothing without validation data."""
        if not self._validation:
            return {}
        self.reporter.enter("evaluating", step)
        watch = Stopwatch()
        with watch.measure("evaluate"), autocast(self._policy, self.spec):
            if self._grading is not None:
                values, seconds = self._grade_answers(step, self._grading)
            else:
                loss = self._trainer.validation_loss(self._validation)
                values, seconds = {} if loss is None else {"loss": loss}, {}
        self.reporter.metrics(step, "validation", values | seconds | {"seconds_evaluate": watch.seconds["evaluate"]})
        self._best.observe(step, values)
        if self._patience is not None:
            self._patience.observe(step, values)
        return values

    def _grade_answers(self, step: int, grading: Grading) -> tuple[dict[str, float], dict[str, float]]:
        """Metrics of answers to the validation prompts, and seconds of the graders."""
        answers = answer(self._policy, self._validation, self.spec, grading, self.cluster)
        answers.tell(step, grading)
        return answers.metrics(grading), answers.seconds()

    def _out_of_patience(self, step: int) -> bool:
        """Whether early stopping ends the run here; says so."""
        stopping, watched = self.spec.early_stopping, self._patience
        if stopping is None or watched is None or watched.stale < stopping.patience:
            return False
        self.reporter.log(
            "info",
            f"early stopping at step {step}: {watched.metric} has not improved in {watched.stale} evaluations; "
            f"the best was {watched.best} at step {watched.best_step}",
        )
        return True

    def _checkpoint(self, step: int, metrics: dict[str, float], *, final: bool, best: bool = False) -> float:
        """Write and report a checkpoint, and return the seconds it took.

        Args:
            metrics: of an evaluation of these very weights, or empty.
            best: that evaluation was the best so far.
        """
        self.reporter.enter("checkpointing", step)
        root = Path(self.spec.output_dir) / "checkpoints"
        extra: dict[str, Any] = {"is_best": best, "best": self._best.state()}
        if self._patience is not None:
            extra["early_stopping"] = self._patience.state()
        if self._grading is not None:
            extra["grading"] = self._grading.state()
        if metrics and self.spec.method.grader is not None:
            extra["decode"] = decode_settings(self._policy, self.spec, len(self._validation))
        watch = Stopwatch()
        with watch.measure("checkpoint"):
            path = write_checkpoint(root, step, self._policy, self._optimizer, self.spec.recipe(), metrics, extra)
        seconds = watch.seconds["checkpoint"]
        self.reporter.checkpoint(step, str(path), final=final, best=best, metrics=metrics, seconds=seconds)
        if self.cluster.is_main and not self.supervised:
            keep = self.spec.checkpointing
            prune(root, keep.keep_last, self._best.best_step if keep.keep_best else None)
        return seconds


def _recipe_of(state: Mapping[str, Any]) -> Recipe | None:
    """The recipe that a checkpoint was made with, its new fields at their defaults; None when it is none any more."""
    try:
        return Recipe.model_validate_json(json.dumps(state["recipe"]))
    except ValidationError:
        return None
