"""Tables 1 to 3 from finished runs: rows for the report, and what they say of the paper's claims.

All numbers are of the last step's policy on held-out rows; nothing is selected by them. A claim compares two methods
seed by seed (same prompts, same random streams) and holds where the 95 % interval of the mean difference leaves out 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import public_sets
from benchmarks.paper import plan
from benchmarks.paper.jobs import Results
from benchmarks.paper.models import DATA_SEED
from benchmarks.paper.plan import Method
from benchmarks.paper.presets import TASKS, Preset, Task
from benchmarks.paper.statistics import deviation, half_width, mean, verdict
from bgpo.tasks import countdown, sudoku

METRICS: dict[Task, dict[str, str]] = {
    "sudoku": {
        "sampled_solved": "sampled_solved_rate",
        "sampled_cells": "sampled_cell_accuracy",
        "greedy_solved": "greedy_solved_rate",
        "greedy_cells": "greedy_cell_accuracy",
    },
    "countdown": {"sampled_solved": "sampled_solved_rate", "greedy_solved": "greedy_solved_rate"},
}
"""Column of the table and name of the run's metric. Solved is the whole grid or expression, cells the empty cells."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """A finished table."""

    name: str
    title: str
    rows: list[Row]
    claims: list[Row]


@dataclass(frozen=True)
class Runs:
    """One method's finished runs, by seed."""

    finals: dict[int, dict[str, float]]
    bases: dict[int, dict[str, float]]
    curves: dict[int, dict[str, list[float | None]]]
    failed: list[str]
    missing: int


def collect(preset: Preset, results: Results, task: Task, method: Method) -> Runs:
    """Read a method's runs."""
    runs = Runs({}, {}, {}, [], 0)
    missing = 0
    for seed in preset.seeds:
        outcome = results.read(plan.train_job(preset, task, method, seed))
        if outcome is None:
            missing += 1
        elif outcome.result is None:
            runs.failed.append(f"seed {seed}: {outcome.error}")
        else:
            runs.finals[seed] = outcome.result["final"]
            runs.bases[seed] = outcome.result["base"]
            runs.curves[seed] = outcome.result["curve"]
    return Runs(runs.finals, runs.bases, runs.curves, runs.failed, missing)


def table1(preset: Preset, results: Results) -> Table:
    """Base, chance and every method on both tasks."""
    rows: list[Row] = []
    claims: list[Row] = []
    for task in TASKS:
        found = {m.name: collect(preset, results, task, m) for m in plan.table1_methods(preset)}
        base = _base(list(found.values()))
        rows.append({"task": task, "method": "chance", "n_t": None, "seeds": None, **_chance(preset, task)})
        rows.append({"task": task, "method": "base", "n_t": None, **_cells(task, base)})
        for method in plan.table1_methods(preset):
            runs = found[method.name]
            rows.append({"task": task, "method": method.name, "n_t": method.n_t, **_cells(task, runs.finals, runs)})
        everyone = {"base": base} | {name: runs.finals for name, runs in found.items()}
        for better, worse in (
            ("bgpo", "base"),
            ("bgpo", "diffu_grpo"),
            ("bgpo", "elbo_ratio"),
            ("bgpo", "bgpo off-policy"),
            ("elbo_ratio", "diffu_grpo"),
        ):
            claims += _claims(task, f"{better} above {worse}", everyone[better], everyone[worse])
    title = f"Table 1: methods on held-out rows ({preset.name})"
    return Table("table1", title, rows, claims)


def table2(preset: Preset, results: Results) -> Table:
    """bgpo by the number of Monte Carlo samples."""
    methods = plan.table2_methods(preset)
    found = {m.n_t: collect(preset, results, "sudoku", m) for m in methods}
    rows = [{"task": "sudoku", "method": "base", "n_t": None, **_cells("sudoku", _base(list(found.values())))}]
    for n_t, runs in found.items():
        rows.append({"task": "sudoku", "method": "bgpo", "n_t": n_t, **_cells("sudoku", runs.finals, runs)})
    low, high = min(found), max(found)
    claims = _claims("sudoku", f"n_t = {high} above n_t = {low}", found[high].finals, found[low].finals)
    for column, metric in METRICS["sudoku"].items():
        slopes = _slopes({n_t: runs.finals for n_t, runs in found.items()}, metric)
        claims.append(_claim("sudoku", "rises with log2 n_t (slope above 0)", column, slopes, 1))
    return Table("table2", f"Table 2: bgpo by n_t ({preset.name}, {preset.steps['sudoku']} steps)", rows, claims)


def table3(preset: Preset, results: Results) -> Table:
    """The two lemmas apart and together, off-policy."""
    methods = plan.table3_methods(preset)
    found = {m.name: collect(preset, results, "sudoku", m) for m in methods}
    rows = [{"task": "sudoku", "method": "base", "n_t": None, **_cells("sudoku", _base(list(found.values())))}]
    for method in methods:
        runs = found[method.name]
        row = {"task": "sudoku", "method": method.name, "n_t": method.n_t, **_cells("sudoku", runs.finals, runs)}
        rows.append(row | _off_policy(runs))
    claims = []
    for better, worse in (
        ("both (bgpo)", "Taylor only"),
        ("both (bgpo)", "Jensen only"),
        ("Jensen only", "Taylor only"),
    ):
        claims += _claims("sudoku", f"{better} above {worse}", found[better].finals, found[worse].finals)
    return Table(
        "table3", f"Table 3: the lemmas, off-policy ({preset.name}, {preset.steps['sudoku']} steps)", rows, claims
    )


def sweep(preset: Preset, results: Results) -> Table:
    """Each method by learning rate, one seed that no table uses."""
    rows = []
    for method in plan.sweep_methods(preset):
        for factor in plan.SWEEP_FACTORS:
            rate = preset.learning_rate * factor
            outcome = results.read(plan.train_job(preset, "sudoku", method, plan.SWEEP_SEED, rate))
            done = {} if outcome is None or outcome.result is None else {plan.SWEEP_SEED: outcome.result["final"]}
            row = {"method": method.label, "learning_rate": rate, **_cells("sudoku", done)}
            if outcome is not None and outcome.error:
                row["error"] = outcome.error
            rows.append(row)
    return Table("sweep", f"Learning rates, seed {plan.SWEEP_SEED} ({preset.name}, sudoku)", rows, [])


def _base(found: Sequence[Runs]) -> dict[int, dict[str, float]]:
    """The base model by seed: every run measures it, equally, before its first step."""
    return {seed: metrics for runs in found for seed, metrics in runs.bases.items()}


def _chance(preset: Preset, task: Task) -> Row:
    generate = sudoku.generate if task == "sudoku" else countdown.generate
    expected = public_sets.chance(task, generate(preset.test_rows, DATA_SEED, "test"))
    names = {"sampled_cells": "sampled_cell_accuracy", "greedy_cells": "greedy_cell_accuracy"}
    return {column: expected[names.get(column, column)] for column in METRICS[task]}


def _cells(task: Task, finals: dict[int, dict[str, float]], runs: Runs | None = None) -> Row:
    """Mean, standard deviation and each seed's value of every metric."""
    row: Row = {"seeds": len(finals)}
    for column, metric in METRICS[task].items():
        values = [finals[seed][metric] for seed in sorted(finals)]
        if values:
            spread, half = deviation(values), half_width(values)
            row[column] = round(mean(values), 4)
            row[f"{column}_sd"] = None if spread is None else round(spread, 4)
            row[f"{column}_ci95"] = None if half is None else round(half, 4)
            row[f"{column}_each"] = " ".join(f"{value:.4f}" for value in values)
    if runs is not None and (runs.failed or runs.missing):
        row["not_finished"] = "; ".join([*runs.failed, *([f"{runs.missing} not run"] if runs.missing else [])])
    return row


def _off_policy(runs: Runs) -> Row:
    """How far from the rollout policy the later mini-batches were."""
    row: Row = {}
    for name, pick in (("d_mean", mean), ("d_max", max)):
        values = [v for curve in runs.curves.values() for v in curve.get(name, []) if v is not None]
        if values:
            row[name] = round(pick(values), 4)
    return row


def _claims(
    task: Task, text: str, better: dict[int, dict[str, float]], worse: dict[int, dict[str, float]]
) -> list[Row]:
    seeds = sorted(better.keys() & worse.keys())
    return [
        _claim(task, text, column, [better[seed][metric] - worse[seed][metric] for seed in seeds], 1)
        for column, metric in METRICS[task].items()
    ]


def _claim(task: str, text: str, column: str, differences: Sequence[float], expected: int) -> Row:
    if not differences:
        return {"task": task, "claim": text, "metric": column, "difference": None, "ci95": None, "verdict": "not run"}
    half = half_width(differences)
    return {
        "task": task,
        "claim": text,
        "metric": column,
        "difference": round(mean(differences), 4),
        "ci95": None if half is None else round(half, 4),
        "verdict": verdict(differences, expected=expected),
    }


def _slopes(found: dict[int, dict[int, dict[str, float]]], metric: str) -> list[float]:
    """Least-squares slope of a metric on log2 n_t, for each seed that has every n_t."""
    seeds = set.intersection(*(set(finals) for finals in found.values()))
    x = [math.log2(n_t) for n_t in found]
    centre = mean(x)
    denominator = sum((value - centre) ** 2 for value in x)
    return [
        sum((value - centre) * found[n_t][seed][metric] for value, n_t in zip(x, found, strict=True)) / denominator
        for seed in sorted(seeds)
        if denominator
    ]
