"""A reinforcement trainer on a tiny policy whose records go to a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from bgpo.models import Policy
from bgpo.records import Record, RecordWriter, parse_record
from bgpo.rewards import Grader
from bgpo.spec import Reinforcement, RunSpec, parse_run_spec
from bgpo.training.cluster import Cluster
from bgpo.training.data import Row
from bgpo.training.grading import Grading, open_grading
from bgpo.training.optimizer import Optimizer
from bgpo.training.reinforcement import ReinforcementTrainer
from bgpo.training.reporter import Reporter, Stopwatch
from bgpo.training.sharing import Replicated

GRADER = {
    "type": "string_check",
    "name": "g",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "operation": "like",
}
LENGTH, GROUP, PROMPTS, SAMPLES = 8, 4, 4, 3
STEP = 2
RATE, EPSILON, CLIP = 0.01, 1e-3, 0.5


def run_spec(**method: Any) -> RunSpec:
    """Method fields over small defaults."""
    rollout = {"max_completion_length": LENGTH, "block_length": 4, "diffusion_steps": 4, "temperature": 1.0}
    settings = {
        "type": "reinforcement",
        "grader": GRADER,
        "rollout": rollout,
        "optimizer": {"learning_rate": RATE, "epsilon": EPSILON, "max_grad_norm": CLIP},
        "batch_size": PROMPTS,
        "group_size": GROUP,
        "mc_samples": SAMPLES,
        "micro_batch": 5,
        **method,
    }
    paths = {"model": "m", "train_data": "t", "output_dir": "o"}
    return parse_run_spec({**paths, "seed": 6, "method": settings, "sample_log": 2})


def rows_of(policy: Policy, count: int = 8) -> list[Row]:
    """Prompts of different lengths whose answers are vowels."""
    items: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "?" * (i % 3)}], "answer": "aioe"[i % 4]} for i in range(count)
    ]
    return [Row(item, policy.encode_prompt(item["messages"]), []) for item in items]


def grading_of(spec: RunSpec, reporter: Reporter | None = None) -> Grading:
    """The specification's grader on a machine without any settings."""
    grading = open_grading(spec, spec.graders, {}, "cpu", reporter)
    assert grading is not None
    return grading


class Harness:
    """A trainer whose records go to a file."""

    def __init__(
        self,
        policy: Policy,
        rows: list[Row],
        spec: RunSpec,
        path: Path,
        cluster: Cluster | None = None,
        grader: Grader | None = None,
    ) -> None:
        """`grader`: in place of the specification's."""
        cluster = cluster or Cluster()
        assert isinstance(spec.method, Reinforcement)
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self.path = path
        self.optimizer = Optimizer(policy.model, spec.method.optimizer, 100, Replicated(policy.model, cluster))
        reporter = Reporter(RecordWriter(self.descriptor), 100)
        self.grading = grading_of(spec, reporter) if grader is None else Grading(grader, spec.grading, reporter)
        self.trainer = ReinforcementTrainer(
            policy, self.optimizer, rows, spec, spec.method, self.grading, reporter, cluster
        )

    def step(self, step: int = STEP) -> dict[str, float]:
        return self.trainer.step(step, Stopwatch())

    def close(self) -> None:
        self.grading.close()
        os.close(self.descriptor)

    def records(self) -> list[Record]:
        return [parse_record(line) for line in self.path.read_bytes().splitlines()]
