"""`bgpo demo`: the example job through the whole service, and an honest table of what it learned.

The home folder keeps `summary.json`, the data, the downloaded checkpoint and the state of the last stack; each run
starts from nothing. The numbers of the base and the tuned model are the job's own first and last evaluation on the
held-out puzzles; the downloaded checkpoint is then measured again by another process.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cli.client import Service
from cli.errors import CliError
from cli.home import Home
from cli.intervals import difference
from cli.part import guarded
from cli.progress import duration
from cli.stack import Stack
from cli.watch import describe_failure, watch

_TRAIN_SEED, _HELD_OUT_SEED = 0, 1

# More threads gain little on so small a model, and cost tenfold when something else wants a core too. On the CPU the
# second measurement can equal the first exactly.
_TRAINER = {"BGPO_TRAINER_THREADS": "1", "BGPO_TRAINER_DEVICE": "cpu"}
# Row of the table, metric of an evaluation, key in summary.json.
_MEASURES = (
    ("solved, sampled", "sampled_solved_rate", "solved"),
    ("solved, greedy", "greedy_solved_rate", "solved_greedy"),
    ("cells, sampled", "sampled_cell_accuracy", "cell_accuracy"),
    ("cells, greedy", "greedy_cell_accuracy", "cell_accuracy_greedy"),
)
Metrics = dict[str, float]


@dataclass(frozen=True)
class Result:
    """Three measurements of the same held-out puzzles."""

    base: Metrics
    tuned: Metrics
    redownloaded: Metrics
    puzzles: int
    checkpoint: Path
    seconds: float


def run_demo(home: Path, example: Path, console: Console, *, train_rows: int = 4096, held_out_rows: int = 512) -> None:
    """Run it; raises CliError when something does not work, the job's own error included."""
    begin = time.monotonic()
    if not example.is_file():
        raise CliError(f"{example} is missing: the demo runs from a clone of the repository")
    home = home.expanduser().resolve()
    with Home(home):  # one demo at a time here; the stack has a home of its own inside
        stack_home, checkpoint = home / "stack", home / "checkpoint"
        for leftover in (stack_home, checkpoint):
            shutil.rmtree(leftover, ignore_errors=True)
        train, held_out = _generate(home, train_rows, held_out_rows)
        stack = Stack(stack_home, env=_TRAINER, drain=False, chat=False)
        with stack, Service(stack.url) as service:
            console.print(f"service ready at {stack.url}, logs in {stack.logs}", highlight=False, soft_wrap=True)
            job, evaluations = _train(service, example, train, held_out, console, stack.check)
            checkpoints = service.checkpoints(job["id"])
            service.download(checkpoints[0]["id"], checkpoint)
        redownloaded = _measure(home, checkpoint, held_out)
        puzzles = min(job["rl"]["eval"]["samples"] or held_out_rows, held_out_rows)
        base, tuned = evaluations[0][1], evaluations[-1][1]
        result = Result(base, tuned, redownloaded, puzzles, checkpoint, time.monotonic() - begin)
        summary = summarize(result)
        (home / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        _show(result, summary, console)


def summarize(result: Result) -> dict[str, Any]:
    """What summary.json holds."""
    summary: dict[str, Any] = {}
    for who, metrics in (("base", result.base), ("tuned", result.tuned), ("redownloaded", result.redownloaded)):
        summary |= {f"{who}_{key}": metrics[name] for _, name, key in _MEASURES}
    for key in ("solved", "solved_greedy"):
        low, high = difference(summary[f"base_{key}"], summary[f"tuned_{key}"], result.puzzles)
        summary[f"{key}_gain_interval_95"] = [low, high]
    return summary | {
        "held_out_puzzles": result.puzzles,
        "checkpoint": str(result.checkpoint),
        "seconds": round(result.seconds, 1),
    }


def _generate(home: Path, train_rows: int, held_out_rows: int) -> tuple[Path, Path]:
    """The training puzzles and the held-out ones, of which no grid occurs in the training split."""
    data = home / "data"
    data.mkdir(exist_ok=True)
    paths = data / "train.jsonl", data / "held_out.jsonl"
    plans = (("train", train_rows, _TRAIN_SEED), ("test", held_out_rows, _HELD_OUT_SEED))
    for path, (split, rows, seed) in zip(paths, plans, strict=True):
        _run("bgpo.tasks", "sudoku", "--split", split, "--rows", str(rows), "--seed", str(seed), "--out", str(path))
    return paths


def _train(
    service: Service, example: Path, train: Path, held_out: Path, console: Console, check: Callable[[], None]
) -> tuple[dict[str, Any], list[tuple[int, Metrics]]]:
    """Submit the example and watch it; the job and its evaluations."""
    body = json.loads(example.read_bytes())
    body |= {"training_file": service.upload(train), "validation_file": service.upload(held_out)}
    job_id = service.create_job(body)["id"]
    console.print(f"job {job_id}: {body['model']} on {example}", highlight=False, soft_wrap=True)
    job, progress = watch(service, job_id, console, check)
    if job["status"] != "succeeded":
        raise CliError(describe_failure(job))
    evaluations = progress.evaluations()
    if len(evaluations) < 2 or evaluations[0][0] != 0:
        raise CliError(f"job {job_id} has no evaluation before and after training")
    return job, evaluations


def _measure(home: Path, checkpoint: Path, held_out: Path) -> Metrics:
    """Evaluate the downloaded checkpoint in a fresh process, with the recipe stored in it."""
    state = json.loads((checkpoint / "trainer_state" / "state.json").read_bytes())
    recipe, out = home / "recipe.json", home / "redownloaded.json"
    recipe.write_text(json.dumps(state["recipe"]))
    arguments = [
        "--model",
        checkpoint,
        "--data",
        held_out,
        "--recipe",
        recipe,
        "--json",
        out,
        "--threads",
        _TRAINER["BGPO_TRAINER_THREADS"],
    ]
    _run("bgpo.evaluate", *map(str, arguments))
    metrics: Metrics = json.loads(out.read_bytes())
    return metrics


def _run(module: str, *arguments: str) -> None:
    command = guarded([sys.executable, "-m", module, *arguments])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CliError(f"python -m {module} ended with status {done.returncode}:\n{done.stderr[-2000:]}")


def _show(result: Result, summary: dict[str, Any], console: Console) -> None:
    table = Table(title=f"{result.puzzles} held-out puzzles", title_justify="left")
    for heading in ("right answers", "base", "tuned", "gain (95 % interval)", "downloaded"):
        table.add_column(heading, justify="left" if heading == "right answers" else "right", no_wrap=True)
    for words, name, key in _MEASURES:
        base, tuned = result.base[name], result.tuned[name]
        gain = f"{100 * (tuned - base):+.1f}"
        if interval := summary.get(f"{key}_gain_interval_95"):
            gain += f" ({100 * interval[0]:+.1f} to {100 * interval[1]:+.1f})"
        table.add_row(words, f"{base:.1%}", f"{tuned:.1%}", gain, f"{result.redownloaded[name]:.1%}")
    console.print(table)
    console.print(f"checkpoint: {result.checkpoint}", highlight=False, soft_wrap=True)
    console.print(f"{duration(result.seconds)} in all", highlight=False)
