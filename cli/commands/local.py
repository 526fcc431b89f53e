"""Commands that run something on this machine: the service, the demo, a worker, the trainer."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cli.app import app, errors
from cli.demo import run_demo
from cli.stack import Stack, stop_signals

_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
_REPOSITORY = Path(__file__).resolve().parents[2]


@app.command()
def up(
    home: Annotated[Path, typer.Option(help="Folder of everything: database, artifacts, logs.")] = Path("~/.bgpo"),
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Default: 8000, or a free one.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Jobs that may run at once.")] = 1,
) -> None:
    """Run the whole service on this machine until Ctrl-C: API, workers, a private Redis, SQLite."""
    with errors(), stop_signals():
        try:
            with Stack(home, port=port, workers=workers) as stack:
                typer.echo(f"ready {stack.url}")
                while True:
                    stack.check()
                    time.sleep(0.2)
        except KeyboardInterrupt:
            return  # asked to stop, and stopped


@app.command()
def demo(
    home: Annotated[Path, typer.Option(help="Where the demo keeps its files.")] = _REPOSITORY / ".demo",
) -> None:
    """Train the example model through the whole service and show what it learned."""
    with errors(), stop_signals():
        run_demo(home, _REPOSITORY / "examples" / "sudoku" / "job.json", Console())


@app.command()
def worker() -> None:
    """Run a worker with the BGPO_* settings of the environment."""
    _become("worker")


@app.command(context_settings=_PASS_ON)
def train(context: typer.Context) -> None:
    """Train without any service: `python -m bgpo.run` with the same arguments."""
    _become("bgpo.run", *context.args)


@app.command(context_settings=_PASS_ON)
def evaluate(context: typer.Context) -> None:
    """Evaluate a checkpoint: `python -m bgpo.evaluate` with the same arguments."""
    _become("bgpo.evaluate", *context.args)


def _become(module: str, *arguments: str) -> None:
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606 - no shell is wanted
