"""Regenerate the paper's tables and figures at small scale.

    python -m benchmarks.paper all [--preset cpu] [--jobs 2] [--runs benchmarks/results/paper] [--out docs/results]
    python -m benchmarks.paper run [--only table1 ...] [--jobs 2] [--limit-seconds N] [--fresh]
    python -m benchmarks.paper table1 [--json PATH] [--png PATH] [--markdown PATH]    (table2, table3, figure1, figure3)
    python -m benchmarks.paper sweep      ... the learning rates, once: run and table

`run` does the work, job by job, and goes on where an interrupted session stopped; the others read its result files.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import _report
from benchmarks.paper import figures, plan, tables
from benchmarks.paper.execute import run_jobs
from benchmarks.paper.jobs import Job, Results
from benchmarks.paper.markdown import render
from benchmarks.paper.plots import draw
from benchmarks.paper.presets import PRESETS, Preset
from benchmarks.paper.tables import Table

RUNS = Path("benchmarks/results/paper")
OUT = Path("docs/results")

MAKERS: dict[str, Callable[[Preset, Results], Table]] = {
    "table1": tables.table1,
    "table2": tables.table2,
    "table3": tables.table3,
    "figure1": figures.figure1,
    "figure3": figures.figure3,
    "sweep": tables.sweep,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 1 when a job failed or has not run."""
    arguments = _parser().parse_args(argv)
    preset, results = PRESETS[arguments.preset], Results(arguments.runs)
    problems: list[str] = []
    names = arguments.only if arguments.command == "run" else [arguments.command]
    if arguments.command == "all":
        names = list(plan.TABLES)
    if arguments.command in ("run", "all", "sweep"):
        problems = run_jobs(
            preset,
            _jobs(preset, names),
            results,
            side_by_side=arguments.jobs,
            fresh=arguments.fresh,
            limit_seconds=arguments.limit_seconds,
        )
    if arguments.command == "all":
        for name in names:
            stem = arguments.out / (name if preset.name == "cpu" else f"{name}-{preset.name}")
            _write(
                MAKERS[name](preset, results),
                stem.with_suffix(".json"),
                stem.with_suffix(".png"),
                stem.with_suffix(".md"),
            )
    elif arguments.command != "run":
        _write(MAKERS[arguments.command](preset, results), arguments.json, arguments.png, arguments.markdown)
        problems = problems or [job.name for job in results.missing(_jobs(preset, names))]
    for problem in problems:
        print(f"not finished: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _jobs(preset: Preset, names: Sequence[str]) -> list[Job]:
    """Jobs of several tables, the seeds in turn, so that what an interruption leaves is whole seeds."""
    jobs = {job.key: job for name in names for job in plan.JOBS[name](preset)}
    return sorted(
        jobs.values(), key=lambda job: job.settings.get("seed", job.settings.get("recipe", {}).get("seed", 0))
    )


def _write(table: Table, json_path: Path | None, png: Path | None, markdown: Path | None) -> None:
    for path in (json_path, png, markdown):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    _report.report(table.title, table.rows, json_path)
    if json_path is not None:
        content = json.loads(json_path.read_bytes())
        json_path.write_text(json.dumps(content | {"claims": table.claims}, indent=2, allow_nan=False) + "\n")
    for claim in table.claims:
        print(" · ".join(str(value) for value in claim.values() if value is not None))
    if png is not None:
        draw(table, png)
    if markdown is not None:
        markdown.write_text(render(table, f"python -m benchmarks.paper {table.name}", png.name if png else None))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "all", *MAKERS):
        command = commands.add_parser(name)
        command.add_argument("--preset", choices=sorted(PRESETS), default="cpu")
        command.add_argument("--runs", type=Path, default=RUNS, help=f"folder of the result files (default {RUNS})")
        if name in ("run", "all", "sweep"):
            command.add_argument("--jobs", type=int, default=2, help="processes side by side (default 2)")
            command.add_argument("--fresh", action="store_true", help="run again what has run")
            command.add_argument("--limit-seconds", type=float, default=math.inf, help="start no job after so many")
        if name == "run":
            command.add_argument("--only", nargs="+", choices=sorted(plan.JOBS), default=list(plan.TABLES))
        if name == "all":
            command.add_argument("--out", type=Path, default=OUT, help=f"folder of the tables (default {OUT})")
        if name in MAKERS:
            command.add_argument("--json", type=Path, metavar="PATH")
            command.add_argument("--png", type=Path, metavar="PATH")
            command.add_argument("--markdown", type=Path, metavar="PATH")
    return parser


if __name__ == "__main__":
    sys.exit(main())
