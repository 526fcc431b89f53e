"""The loop every method shares: step, evaluate, checkpoint, listen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from bgpo.models import load_policy
from bgpo.spec import Reinforcement, RunSpec, Supervised
from bgpo.training.checkpoint import load_optimizer, prune, read_state, write_checkpoint
from bgpo.training.cluster import Cluster
from bgpo.training.control import Control
from bgpo.training.data import Row, load_rows
from bgpo.training.evaluation import autocast, evaluate
from bgpo.training.optimizer import Optimizer
from bgpo.training.reinforcement import ReinforcementTrainer
from bgpo.training.reporter import Reporter, Stopwatch
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

    def train(self) -> bool:
        """Train to the last step, or to a stop request.

        Returns:
            True when the run is finished, False when it stopped early with a checkpoint to resume from.

        Raises:
            BgpoError: see `bgpo.run` for what each ends in.
        """
        spec, method = self.spec, self.spec.method
        self.reporter.enter("loading_model", 0)
        # A relative device name keeps specs portable; only the trainer knows what the machine has.
        device = ("cuda" if torch.cuda.is_available() else "cpu") if spec.device == "auto" else spec.device
        source = spec.resume_from or spec.model
        self._policy = load_policy(source, device=device)
        updates = method.max_steps * (method.num_inner_updates if isinstance(method, Reinforcement) else 1)
        self._optimizer = Optimizer(self._policy.model, method.optimizer, updates)
        step = self._resume() if spec.resume_from else 0
        answers = not isinstance(method, Reinforcement)
        length = (method.rollout if isinstance(method, Reinforcement) else method).max_completion_length
        train_rows = load_rows(spec.train_data, self._policy, length, answers=answers, param="train_data")
        self._validation = self._load_validation(length, answers)
        trainer = self._trainer(train_rows)
        if step == 0:
            self._evaluate(0, trainer)
        saved = step
        while step < method.max_steps and not self.control.stop_requested:
            step += 1
            watch = Stopwatch()
            with watch.measure("step"), autocast(self._policy, spec):
                values = trainer.step(step, watch)
            seconds = {f"seconds_{name}": value for name, value in watch.seconds.items()}
            self.reporter.metrics(step, "train", values | seconds)
            evaluated = self._evaluate(step, trainer) if self._due(spec.evaluation.interval, step) else {}
            requested = self.control.take_checkpoint_request() or self.control.stop_requested
            if requested or self._due(spec.checkpointing.every_steps, step):
                self._checkpoint(step, evaluated)
                saved = step
        if saved < step or (step == 0 and self.control.stop_requested):
            self._checkpoint(step, {})  # the request came after the step's last look
        return step >= method.max_steps

    def _due(self, interval: int | None, step: int) -> bool:
        """Whether something with this interval happens at this step; everything happens at the last."""
        return step == self.spec.method.max_steps or (interval is not None and step % interval == 0)

    def _resume(self) -> int:
        directory = Path(self.spec.resume_from or "")
        state = read_state(directory)
        load_optimizer(directory, self._optimizer)
        if state["recipe"] != self.spec.recipe().model_dump(mode="json"):
            self.reporter.log("warn", "the recipe differs from the one the checkpoint was made with")
        step = int(state["step"])
        self.reporter.log("info", f"resumed from step {step}")
        return step

    def _load_validation(self, length: int, answers: bool) -> list[Row]:
        if self.spec.validation_data is None:
            return []
        with_grader = self.spec.method.grader is not None
        rows = load_rows(
            self.spec.validation_data,
            self._policy,
            length,
            answers=answers and not with_grader,
            param="validation_data",
        )
        return rows[: self.spec.evaluation.samples]

    def _trainer(self, rows: list[Row]) -> MethodTrainer:
        method = self.spec.method
        if isinstance(method, Reinforcement):
            return ReinforcementTrainer(
                self._policy, self._optimizer, rows, self.spec, method, self.reporter, self.cluster
            )
        if isinstance(method, Supervised):
            return SupervisedTrainer(
                self._policy, self._optimizer, rows, self.spec, method, self.reporter, self.cluster
            )
        from bgpo.training.dpo import DpoTrainer

        return DpoTrainer(self._policy, self._optimizer, rows, self.spec, method, self.reporter, self.cluster)

    def _evaluate(self, step: int, trainer: MethodTrainer) -> dict[str, float]:
        """Evaluate and report; nothing without validation data."""
        if not self._validation:
            return {}
        self.reporter.enter("evaluating", step)
        watch = Stopwatch()
        with watch.measure("evaluate"), autocast(self._policy, self.spec):
            if self.spec.method.grader is not None:
                values = evaluate(self._policy, self._validation, self.spec)
            else:
                loss = trainer.validation_loss(self._validation)
                values = {} if loss is None else {"loss": loss}
        self.reporter.metrics(step, "validation", values | {"seconds_evaluate": watch.seconds["evaluate"]})
        return values

    def _checkpoint(self, step: int, metrics: dict[str, float]) -> None:
        """Write and report a checkpoint; `metrics` are of an evaluation of these very weights, or empty."""
        self.reporter.enter("checkpointing", step)
        root = Path(self.spec.output_dir) / "checkpoints"
        path = write_checkpoint(root, step, self._policy, self._optimizer, self.spec.recipe(), metrics)
        self.reporter.checkpoint(step, str(path), step == self.spec.method.max_steps, metrics)
        if not self.supervised:
            prune(root, self.spec.checkpointing.keep_last)
