"""Runs jobs, a few side by side, each in processes of its own, and stores what came out.

A job that fails is stored with its error and reported; the others go on. Data, base model and the runs' files lie in
`DIR/work`, which can be deleted; only the result files beside it are read by the tables.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.paper.jobs import Job, Outcome, Results
from benchmarks.paper.models import base_model, write_data
from benchmarks.paper.presets import ROOT, Preset

CURVE = (
    "reward_mean",
    "solved_rate",
    "elbo_mean",
    "entropy",
    "grad_norm",
    "d_mean",
    "d_max",
    "clamped_fraction",
    "frac_zero_signal_groups",
    "response_length",
    "peak_memory_bytes",
    "seconds_rollout",
    "seconds_reward",
    "seconds_loss",
    "seconds_optimizer",
    "seconds_step",
)
"""What is kept of each step."""


class JobFailed(Exception):
    """The job's process did not do its work."""


def run_jobs(
    preset: Preset,
    jobs: Sequence[Job],
    results: Results,
    *,
    side_by_side: int,
    fresh: bool = False,
    limit_seconds: float = math.inf,
) -> list[str]:
    """Run what is missing.

    Args:
        limit_seconds: no job is started after so many; those that run are finished.

    Returns:
        a line for each job that failed or was not started.
    """
    start = time.monotonic()
    wanted = results.missing(jobs, fresh=fresh)
    print(f"{len(wanted)} of {len({job.key for job in jobs})} jobs to run, {side_by_side} side by side", flush=True)
    if not wanted:
        return []
    work = results.folder / "work"
    model = base_model(preset, work)
    for job in wanted:  # here and not in the threads: jobs share the files
        if job.kind != "memory":
            _data(job, work)
    problems: list[str] = []
    with ThreadPoolExecutor(side_by_side) as pool:
        pending = {pool.submit(_run_one, job, preset, model, work, start + limit_seconds): job for job in wanted}
        try:
            for number, future in enumerate(as_completed(pending), 1):
                job, outcome = pending[future], future.result()
                if outcome is None:
                    problems.append(f"{job.name}: not started within {limit_seconds:.0f} s")
                    continue
                results.write(job, outcome)
                state = "ok" if outcome.error is None else f"FAILED: {outcome.error}"
                if outcome.error:
                    problems.append(f"{job.name}: {outcome.error}")
                elapsed = time.monotonic() - start
                print(
                    f"[{number}/{len(wanted)} {elapsed:.0f} s] {job.label} {outcome.seconds:.0f} s {state}", flush=True
                )
        except KeyboardInterrupt:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return problems


def _run_one(job: Job, preset: Preset, model: Path, work: Path, deadline: float) -> Outcome | None:
    if time.monotonic() > deadline:
        return None
    start = time.monotonic()
    folder = work / job.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    result, error = None, None
    try:
        match job.kind:
            case "train":
                result = _train(job, preset, model, work, folder)
            case "memory":
                settings = job.settings
                case = [settings["objective"], str(settings["n_t"]), str(settings["seed"])]
                result = _worker(["benchmarks.policy_memory", "--one", *case], folder)
            case "gradient":
                spec = {**job.settings, "model": str(model), "data": str(_data(job, work)[0])}
                (folder / "spec.json").write_text(json.dumps(spec))
                result = _worker(["benchmarks.paper.gradients", str(folder / "spec.json")], folder)
    except JobFailed as failure:
        error = str(failure)
    else:
        shutil.rmtree(folder)  # a failed job's files stay, to be looked at
    return Outcome(result, error, time.monotonic() - start)


def _data(job: Job, work: Path) -> tuple[Path, Path]:
    settings = job.settings
    return write_data(
        work / "data", settings.get("task", "sudoku"), settings["train_rows"], settings.get("test_rows", 8)
    )


def _worker(arguments: Sequence[str], folder: Path) -> dict[str, Any]:
    """A module that prints its result as one JSON object on the last line."""
    with (folder / "log.txt").open("wb") as log:
        command = [sys.executable, "-m", *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, env=_environment(), cwd=ROOT, check=False)
    if done.returncode:
        raise JobFailed(f"exit status {done.returncode}: {_last_line(folder / 'log.txt')}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _train(job: Job, preset: Preset, model: Path, work: Path, folder: Path) -> dict[str, Any]:
    train, test = _data(job, work)
    spec = {
        **job.settings["recipe"],
        "model": str(model),
        "train_data": str(train),
        "validation_data": str(test),
        "output_dir": str(folder),
        "device": preset.device,
    }
    if preset.device == "cpu":
        spec["threads"] = 1
    (folder / "spec.json").write_text(json.dumps(spec, indent=2))
    records = folder / "records.jsonl"
    with records.open("wb") as out, (folder / "log.txt").open("wb") as log:
        command = [sys.executable, "-m", "bgpo.run", str(folder / "spec.json")]
        code = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=log, env=_environment(), cwd=ROOT, check=False
        ).returncode
    found = [json.loads(line) for line in records.read_text().splitlines()]
    if code:
        errors = [f"{record['code']}: {record['message']}" for record in found if record["type"] == "error"]
        raise JobFailed(f"exit status {code}: {errors[-1] if errors else _last_line(folder / 'log.txt')}")
    return _summary(found)


def _summary(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Evaluations before the first and after the last step, and the curve, a list a metric."""
    metrics = [record for record in records if record["type"] == "metric"]
    evaluations = [record for record in metrics if record["split"] == "validation"]
    steps = [record["values"] for record in metrics if record["split"] == "train"]
    curve = {
        name: [None if name not in values else _rounded(values[name]) for values in steps]
        for name in CURVE
        if any(name in values for values in steps)
    }
    rounded = [{name: _rounded(value) for name, value in record["values"].items()} for record in evaluations]
    warnings = [record["message"] for record in records if record["type"] == "log" and record["level"] != "info"]
    return {"base": rounded[0], "final": rounded[-1], "curve": curve, "warnings": warnings}


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "HF_HUB_OFFLINE": "1"}


def _last_line(path: Path) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no message"
