"""Reinforcement: one step of Algorithm 1 (arXiv 2510.11683), with any of the objectives.

    rollout -> reward -> group advantage -> for each mini-batch: backward sample by sample, one optimizer step

Groups without signal are skipped and counted, or replaced (`bgpo.training.groups`). What becomes of responses that the
grader failed on is `bgpo.training.grading`, the update `bgpo.training.policy_update`.
"""

from __future__ import annotations

from collections.abc import Sequence

from bgpo.models import Policy
from bgpo.spec import Reinforcement, RunSpec
from bgpo.training.cluster import Cluster
from bgpo.training.data import Row
from bgpo.training.grading import Grading
from bgpo.training.groups import Collector, GroupRecord
from bgpo.training.guards import CollapseWatch
from bgpo.training.optimizer import Optimizer
from bgpo.training.policy_update import PolicyUpdate
from bgpo.training.reporter import Reporter, Stopwatch
from bgpo.training.step_metrics import rollout_metrics, update_metrics


class ReinforcementTrainer:
    """Holds what a step needs; all progress lives in policy and optimizer."""

    def __init__(
        self,
        policy: Policy,
        optimizer: Optimizer,
        rows: Sequence[Row],
        spec: RunSpec,
        method: Reinforcement,
        grading: Grading,
        reporter: Reporter,
        cluster: Cluster,
    ) -> None:
        self._optimizer, self._rows, self._spec, self._method = optimizer, rows, spec, method
        self._grading, self._reporter, self._cluster = grading, reporter, cluster
        self._collector = Collector(policy, rows, grading, method, spec.seed, reporter, cluster)
        self._policy_update = PolicyUpdate(policy, optimizer, spec, method, reporter, cluster)
        self._collapse = CollapseWatch()

    def step(self, step: int, watch: Stopwatch) -> dict[str, float]:
        """Run one step and return its metrics, the same on every process.

        Raises:
            GraderError: see `bgpo.training.grading`.
            NonFiniteError, ZeroGradientError, OutOfMemory: see `bgpo.training.policy_update`.
        """
        collected = self._collector.collect(step, watch)
        self._log_samples(step, collected.records)
        grades = [grade for record in collected.records for grade in record.grades]
        self._grading.tell(step, grades, [record.row for record in collected.records for _ in record.grades])
        self._grading.judge(grades, last=step == self._method.max_steps)
        self._reporter.enter("training", step)
        learning_rate = self._optimizer.learning_rate
        updates = self._policy_update.run(step, collected, watch)
        slowest = max(self._cluster.gather([watch.seconds.get("rollout", 0.0)]))
        metrics = (
            update_metrics(updates, self._method.num_inner_updates, kl=self._method.kl_coefficient > 0)
            | rollout_metrics(collected.records, self._grading, slowest)
            | {"learning_rate": learning_rate, "further_rounds": float(collected.rounds)}
        )
        for message in self._collapse.observe(metrics):
            self._reporter.log("warn", message)
        return metrics

    def validation_loss(self, rows: Sequence[Row]) -> float | None:
        """None: validation answers are graded."""
        return None

    def _log_samples(self, step: int, records: Sequence[GroupRecord]) -> None:
        """The first response of the first few prompts."""
        for record in records[: self._spec.sample_log]:
            grade = record.grades[0]
            messages = self._rows[record.row].item["messages"]
            self._reporter.sample(
                step=step,
                split="train",
                index=record.slot,
                prompt=next(m["content"] for m in reversed(messages) if m["role"] == "user"),
                completion=record.first_text,
                reward=grade.score if self._grading.counts(grade) else None,
                scores=dict(grade.sub_scores),
                error=None if grade.error is None else f"{grade.error.kind}: {grade.error.message}",
            )
