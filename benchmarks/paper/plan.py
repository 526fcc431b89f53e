"""Which jobs each table and figure needs.

The methods differ by the switches written here and by nothing else: model, data, sampler, optimizer, learning rate,
prompts and number of rollouts are the preset's. Off-policy rows split a rollout batch into mini-batches with an
optimizer step each, so they make that many times as many steps from the same rollouts, as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.paper.jobs import Job
from benchmarks.paper.presets import TASKS, Preset, Task
from bgpo.tasks import countdown, sudoku

PAPER_N_T = 4
"""Of elbo_ratio (VRPO-OL) in the paper, where more does not fit; espo gets as many."""


@dataclass(frozen=True)
class Method:
    """A row of a table: what it is called and its switches."""

    name: str
    algorithm: str
    n_t: int
    off_policy: bool = False

    @property
    def label(self) -> str:
        """Short, for file names."""
        return f"{self.algorithm}-n{self.n_t}" + ("-off" if self.off_policy else "")


def table1_methods(preset: Preset) -> list[Method]:
    """The paper's Table 1, without the base model, which every run measures before its first step."""
    return [
        Method("diffu_grpo", "diffu_grpo", 1),
        Method("elbo_ratio", "elbo_ratio", PAPER_N_T),
        Method("espo", "espo", PAPER_N_T),
        Method("bgpo off-policy", "bgpo", preset.n_t, off_policy=True),
        Method("bgpo", "bgpo", preset.n_t),
    ]


def table2_methods(preset: Preset) -> list[Method]:
    """n_t of bgpo."""
    return [Method(f"bgpo n_t={n}", "bgpo", n) for n in preset.n_t_grid]


def table3_methods(preset: Preset) -> list[Method]:
    """One lemma, the other, both."""
    return [
        Method("Taylor only", "taylor_only", preset.n_t, off_policy=True),
        Method("Jensen only", "jensen_only", preset.n_t, off_policy=True),
        Method("both (bgpo)", "bgpo", preset.n_t, off_policy=True),
    ]


def train_job(preset: Preset, task: Task, method: Method, seed: int, learning_rate: float | None = None) -> Job:
    """One reinforcement run, evaluated on held-out rows before the first and after the last step."""
    rate = preset.learning_rate if learning_rate is None else learning_rate
    grader = sudoku.grader_spec("mixed") if task == "sudoku" else countdown.grader_spec()
    recipe: dict[str, Any] = {
        "seed": seed,
        "precision": preset.precision,
        "method": {
            "type": "reinforcement",
            "algorithm": method.algorithm,
            "grader": grader,
            "rollout": preset.rollout,
            "optimizer": {"learning_rate": rate, "warmup_steps": preset.warmup_steps, "beta2": 0.99},
            "max_steps": preset.steps[task],
            "batch_size": preset.prompts,
            "group_size": preset.group_size,
            "num_inner_updates": preset.minibatches if method.off_policy else 1,
            "mc_samples": method.n_t,
            "micro_batch": preset.micro_batch,
            "estimator": preset.estimator,
        },
        "evaluation": {"batch_size": 256},
        "checkpointing": {"keep_last": 1, "keep_best": False},
        "sample_log": 0,
    }
    settings = {
        "task": task,
        "model": preset.model_settings(),
        "train_rows": preset.train_rows,
        "test_rows": preset.test_rows,
        "recipe": recipe,
    }
    suffix = "" if learning_rate is None else f"-lr{learning_rate:g}"
    return Job("train", f"{preset.name}-{task}-{method.label}{suffix}-s{seed}", settings)


def table1_jobs(preset: Preset) -> list[Job]:
    """All runs of Table 1."""
    return [
        train_job(preset, task, method, seed)
        for seed in preset.seeds
        for task in TASKS
        for method in table1_methods(preset)
    ]


def table2_jobs(preset: Preset) -> list[Job]:
    """All runs of Table 2."""
    return [train_job(preset, "sudoku", method, seed) for seed in preset.seeds for method in table2_methods(preset)]


def table3_jobs(preset: Preset) -> list[Job]:
    """All runs of Table 3."""
    return [train_job(preset, "sudoku", method, seed) for seed in preset.seeds for method in table3_methods(preset)]


def memory_job(preset: Preset, objective: str, n_t: int, seed: int) -> Job:
    """One policy update in a fresh process."""
    settings = {"objective": objective, "n_t": n_t, "seed": seed}
    return Job("memory", f"{preset.name}-memory-{objective}-n{n_t}-s{seed}", settings)


def figure1_jobs(preset: Preset) -> list[Job]:
    """Memory of one update, per objective, n_t and seed."""
    return [
        memory_job(preset, objective, n_t, seed)
        for seed in preset.seeds
        for objective in ("bgpo", "elbo_ratio")
        for n_t in preset.memory_n_t
    ]


def gradient_job(preset: Preset, case: str, seed: int) -> Job:
    """All estimates on one set of responses."""
    study = preset.gradients
    settings = {
        "case": case,
        "model": preset.model_settings(),
        "recipe": train_job(preset, "sudoku", Method("", "bgpo", 1), seed).settings["recipe"],
        "train_rows": preset.train_rows,
        "prompts": study.prompts,
        "group_size": study.group_size,
        "n_t": list(study.n_t),
        "draws": study.draws,
        "gold_n_t": study.gold_n_t,
        "gold_draws": study.gold_draws,
        "drift_steps": study.drift_steps if case == "off-policy" else 0,
        "device": preset.device,
    }
    return Job("gradient", f"{preset.name}-gradient-{case}-s{seed}", settings)


def gradient_jobs(preset: Preset) -> list[Job]:
    """The gradient study of Figure 3."""
    return [gradient_job(preset, case, seed) for seed in preset.seeds for case in ("on-policy", "off-policy")]


def figure3_jobs(preset: Preset) -> list[Job]:
    """The gradient study, and Table 2's runs, whose steps are timed."""
    return [*gradient_jobs(preset), *table2_jobs(preset)]


def sweep_jobs(preset: Preset) -> list[Job]:
    """Each method of Table 1 and the ablations at half, once and twice the learning rate, on a seed of its own."""
    return [
        train_job(preset, "sudoku", method, SWEEP_SEED, preset.learning_rate * factor)
        for factor in SWEEP_FACTORS
        for method in sweep_methods(preset)
    ]


SWEEP_SEED = 100
"""Not a seed of the tables: the sweep chooses nothing by the numbers it is later reported with."""
SWEEP_FACTORS = (0.5, 1.0, 2.0)


def sweep_methods(preset: Preset) -> list[Method]:
    """Every distinct method of tables 1 and 3."""
    methods = {method.label: method for method in (*table1_methods(preset), *table3_methods(preset))}
    return list(methods.values())


JOBS: dict[str, Callable[[Preset], list[Job]]] = {
    "table1": table1_jobs,
    "table2": table2_jobs,
    "table3": table3_jobs,
    "figure1": figure1_jobs,
    "figure3": figure3_jobs,
    "sweep": sweep_jobs,
}
TABLES = ("table1", "table2", "table3", "figure1", "figure3")
"""What `all` makes; the sweep is run once, to choose the learning rate."""
