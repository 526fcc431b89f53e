"""The paper's tables: which jobs they need, what they make of results, and one real run of the whole chain."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.paper import __main__ as command
from benchmarks.paper import figures, plan, statistics, tables
from benchmarks.paper.execute import run_jobs
from benchmarks.paper.gradients import Moments
from benchmarks.paper.jobs import Job, Outcome, Results
from benchmarks.paper.markdown import render
from benchmarks.paper.presets import PRESETS, Preset
from bgpo.spec import Recipe

SMOKE = PRESETS["smoke"]
LIFT = {"bgpo": 0.3, "elbo_ratio": 0.2, "diffu_grpo": 0.1, "espo": 0.15, "taylor_only": 0.1, "jensen_only": 0.2}
"""Invented: by how much each algorithm raises every metric."""


def metrics(value: float) -> dict[str, float]:
    return {f"{mode}_{name}": value for mode in ("sampled", "greedy") for name in ("solved_rate", "cell_accuracy")}


def invented(job: Job) -> dict[str, Any]:
    """A result of the right shape."""
    settings = job.settings
    if job.kind == "memory":
        grows = settings["n_t"] if settings["objective"] == "elbo_ratio" else 1
        return {"saved_bytes": 1000 * grows, "peak_rss_bytes": 5000 + grows, "seconds": 0.1 * settings["n_t"]}
    if job.kind == "gradient":
        rows = [
            {
                "algorithm": algorithm,
                "n_t": n_t,
                "std": (1 + settings["recipe"]["seed"] / 10) / math.sqrt(n_t),
                "bias": (1 + settings["recipe"]["seed"] / 100) / (1 if algorithm == "diffu_grpo" else 4 * n_t),
                "noise_floor": 0.1,
                "bias_beyond_noise": 0.2,
                "bias_to_ratio": 0.3,
                "cosine": 0.9,
            }
            for algorithm in ("bgpo", "elbo_ratio", "diffu_grpo")
            for n_t in (settings["n_t"] if algorithm != "diffu_grpo" else [1])
        ]
        return {"rows": rows}
    method = settings["recipe"]["method"]
    noise = settings["recipe"]["seed"] / 100
    curve = {f"seconds_{name}": [9.0, 1.0] for name in ("step", "rollout", "reward", "loss", "optimizer")}
    final = 0.4 + LIFT[method["algorithm"]] + noise - 0.01 * (method["num_inner_updates"] > 1)
    return {"base": metrics(0.4), "final": metrics(final + method["mc_samples"] / 1000), "curve": curve, "warnings": []}


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Invented results of every job of the smoke preset."""
    made = Results(tmp_path / "runs")
    for name in plan.JOBS:
        for job in plan.JOBS[name](SMOKE):
            made.write(job, Outcome(invented(job), None, 1.0))
    return made


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_every_run_is_a_valid_recipe_and_tables_share_runs(preset: Preset) -> None:
    jobs = [job for name in plan.TABLES for job in plan.JOBS[name](preset)]
    distinct = {job.key: job for job in jobs}
    assert len(distinct) < len(jobs)
    assert len({job.name for job in distinct.values()}) == len(distinct)
    for job in distinct.values():
        if job.kind == "train":
            Recipe.model_validate_json(json.dumps(job.settings["recipe"]))
    assert len(preset.seeds) >= (2 if preset.name == "smoke" else 3)


def test_the_methods_of_a_table_differ_by_their_switches_alone() -> None:
    preset = PRESETS["cpu"]
    recipes = [
        plan.train_job(preset, "sudoku", method, 0).settings["recipe"]
        for method in (*plan.table1_methods(preset), *plan.table3_methods(preset))
    ]
    switches = ("algorithm", "mc_samples", "num_inner_updates")
    rest = {
        json.dumps(
            {**recipe, "method": {k: v for k, v in recipe["method"].items() if k not in switches}}, sort_keys=True
        )
        for recipe in recipes
    }
    assert len(rest) == 1


def test_table1_has_chance_base_and_every_method_with_spread(results: Results) -> None:
    table = tables.table1(SMOKE, results)
    sudoku = {row["method"]: row for row in table.rows if row["task"] == "sudoku"}
    assert list(sudoku) == ["chance", "base", "diffu_grpo", "elbo_ratio", "espo", "bgpo off-policy", "bgpo"]
    assert sudoku["chance"]["sampled_cells"] == 0.25
    assert sudoku["base"]["sampled_solved"] == 0.4
    assert sudoku["bgpo"]["sampled_solved_each"] == "0.7020 0.7120"
    assert sudoku["bgpo"]["sampled_solved"] == pytest.approx(0.707)
    assert sudoku["bgpo"]["sampled_solved_sd"] == pytest.approx(0.0071)
    verdicts = {claim["claim"]: claim["verdict"] for claim in table.claims if claim["metric"] == "sampled_solved"}
    assert verdicts["bgpo above elbo_ratio"] == "agrees"


def test_a_failed_and_a_missing_run_show_in_the_table(results: Results) -> None:
    (failed, missing) = (plan.train_job(SMOKE, "sudoku", plan.table3_methods(SMOKE)[0], seed) for seed in SMOKE.seeds)
    results.write(failed, Outcome(None, "exit status 6: nan", 1.0))
    (results.folder / f"{missing.name}.json").unlink()
    row = next(row for row in tables.table3(SMOKE, results).rows if row["method"] == "Taylor only")
    assert row["seeds"] == 0
    assert row["not_finished"] == "seed 0: exit status 6: nan; 1 not run"
    assert results.missing(plan.JOBS["table3"](SMOKE)) == [failed, missing]


def test_table2_slopes_over_log2_n_t(results: Results) -> None:
    claims = tables.table2(SMOKE, results).claims
    slope = next(claim for claim in claims if claim["metric"] == "greedy_solved" and "slope" in claim["claim"])
    assert slope["difference"] == pytest.approx(0.001)  # invented() adds n_t / 1000: from n_t = 1 to 2, one doubling


def test_figures_say_what_the_invented_numbers_say(results: Results) -> None:
    flat, linear = figures.figure1(SMOKE, results).claims
    assert (flat["measured"], flat["verdict"]) == (1.0, "agrees")
    assert (linear["measured"], linear["verdict"]) == (2.0, "agrees")
    table = figures.figure3(SMOKE, results)
    step = next(row for row in table.rows if row["kind"] == "step time" and row["n_t"] == 2)
    assert step["step_seconds"] == 1.0  # the first step, which warms up, is left out
    assert {row["case"] for row in table.rows if row["kind"] == "gradient"} == {"on-policy", "off-policy"}
    assert next(c for c in table.claims if "std of bgpo" in c["claim"])["verdict"] == "agrees"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_command_writes_table_picture_and_markdown(
    results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in plan.JOBS:
        out = {kind: tmp_path / "out" / f"{name}.{kind}" for kind in ("json", "png", "markdown")}
        arguments = [name, "--preset", "smoke", "--runs", str(results.folder)]
        assert command.main([*arguments, *(part for k, path in out.items() for part in (f"--{k}", str(path)))]) == 0
        content = json.loads(out["json"].read_bytes())
        assert content["rows"]
        assert out["png"].read_bytes().startswith(b"\x89PNG")
        assert (
            bool(content["claims"]) == ("The paper's claims here" in out["markdown"].read_text()) == (name != "sweep")
        )
    assert "Table 1" in capsys.readouterr().out


def test_a_table_with_runs_missing_is_made_and_fails(tmp_path: Path) -> None:
    assert command.main(["table2", "--preset", "smoke", "--runs", str(tmp_path)]) == 1


def test_markdown_folds_spread_and_seeds_into_one_cell(results: Results) -> None:
    text = render(tables.table1(SMOKE, results), "command", "table1.png")
    assert "| sudoku | bgpo | 2 | 2 | 0.707 ± 0.0071 [0.702, 0.712] |" in text


def test_student_interval_and_verdicts() -> None:
    assert statistics.half_width([1.0, 2.0, 3.0]) == pytest.approx(4.303 / math.sqrt(3))
    assert statistics.verdict([1.0, 1.1, 0.9], expected=1) == "agrees"
    assert statistics.verdict([-1.0, -1.1, -0.9], expected=1) == "disagrees"
    assert statistics.verdict([1.0, -1.0, 0.5], expected=1).startswith("not resolved")
    assert statistics.verdict([1.0], expected=1).startswith("one seed")


def test_moments_of_a_gradient() -> None:
    vectors = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moments = Moments()
    for vector in vectors:
        moments.add(vector)
    torch.testing.assert_close(moments.mean, vectors.mean(0))
    assert moments.variance == pytest.approx(float(vectors.var(0).sum()))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_runs_are_made_once_and_a_broken_one_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = Results(tmp_path / "runs")
    preset = dataclasses.replace(SMOKE, seeds=(0,))
    methods = plan.table3_methods(preset)
    jobs = [plan.train_job(preset, "sudoku", method, 0) for method in methods]
    jobs += [plan.memory_job(preset, "bgpo", 2, 0), plan.gradient_job(preset, "off-policy", 0)]
    broken = plan.train_job(preset, "sudoku", dataclasses.replace(methods[0], algorithm="nonsense"), 0)
    problems = run_jobs(preset, [*jobs, broken], results, side_by_side=2)
    assert len(problems) == 1
    assert "exit status 2: invalid_spec" in problems[0]
    for job in jobs:
        outcome = results.read(job)
        assert outcome is not None
        assert outcome.error is None
        assert outcome.result
    assert run_jobs(preset, jobs, results, side_by_side=2) == []
    assert "0 of 5 jobs to run" in capsys.readouterr().out
    assert run_jobs(preset, [broken], results, side_by_side=1, limit_seconds=0) == [
        f"{broken.name}: not started within 0 s"
    ]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_preset_makes_its_own_base_model(tmp_path: Path) -> None:
    from benchmarks.paper.models import base_model
    from benchmarks.paper.presets import Scratch

    shape = {"d_model": 32, "n_layers": 1, "n_heads": 2, "mlp_hidden_size": 32, "max_sequence_length": 64}
    scratch = Scratch(shape, steps=2, batch_size=8, learning_rate=1e-3, rows=16)
    preset = dataclasses.replace(SMOKE, model=scratch)
    made = base_model(preset, tmp_path)
    stamp = (made / "model.safetensors").stat().st_mtime_ns
    assert base_model(preset, tmp_path) == made
    assert (made / "model.safetensors").stat().st_mtime_ns == stamp
