"""The `bgpo` command. Every sub-command is thin: it starts processes or speaks HTTP, and never loads the trainer."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from cli.client import Service
from cli.demo import run_demo
from cli.errors import CliError
from cli.stack import Stack, stop_signals
from cli.watch import describe_failure, watch

app = typer.Typer(
    name="bgpo",
    help="Reinforcement learning for diffusion language models, as a service.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
_REPOSITORY = Path(__file__).resolve().parent.parent

Url = Annotated[str, typer.Option(envvar="BGPO_URL", help="Where the service is.")]
DEFAULT_URL = "http://127.0.0.1:8000"


@contextmanager
def _errors() -> Iterator[None]:
    """What went wrong, on stderr, and the exit status: 1 for errors, 130 after an interrupt."""
    try:
        yield
    except CliError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@app.command()
def up(
    home: Annotated[Path, typer.Option(help="Folder of everything: database, artifacts, logs.")] = Path("~/.bgpo"),
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Default: 8000, or a free one.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Jobs that may run at once.")] = 1,
) -> None:
    """Run the whole service on this machine until Ctrl-C: API, workers, a private Redis, SQLite."""
    with _errors(), stop_signals():
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
    with _errors(), stop_signals():
        run_demo(home, _REPOSITORY / "examples" / "sudoku" / "job.json", Console())


@app.command()
def submit(
    job: Annotated[Path, typer.Argument(help="Body of the create request, JSON, without file ids.")],
    train: Annotated[Path, typer.Option(help="Training file, JSONL.")],
    validation: Annotated[Path | None, typer.Option(help="Validation file, JSONL.")] = None,
    follow: Annotated[bool, typer.Option("--watch", help="Watch it until it is over.")] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Upload the files, create a job and print its id."""
    with _errors(), Service(url) as service:
        body = _read_json(job) | {"training_file": service.upload(train)}
        if validation is not None:
            body["validation_file"] = service.upload(validation)
        created = service.create_job(body)
        typer.echo(created["id"])
        if follow:
            _watch(service, created["id"])


@app.command("watch")
def watch_command(job_id: str, url: Url = DEFAULT_URL) -> None:
    """Follow a job; exit status 1 unless it succeeds."""
    with _errors(), Service(url) as service:
        _watch(service, job_id)


@app.command()
def events(job_id: str, url: Url = DEFAULT_URL) -> None:
    """Print what happened to a job, oldest first."""
    with _errors(), Service(url) as service:
        for event in service.events(job_id):
            moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["created_at"]))
            typer.echo(f"{moment}  {event['level']:5}  {event['message']}")


@app.command()
def cancel(job_id: str, url: Url = DEFAULT_URL) -> None:
    """Cancel a job."""
    with _errors(), Service(url) as service:
        typer.echo(f"{job_id} {service.cancel(job_id)['status']}")


@app.command()
def download(
    source: Annotated[str, typer.Argument(help="A checkpoint (ftckpt_...) or a job (its newest checkpoint).")],
    target: Annotated[Path, typer.Argument(help="A new folder.")],
    url: Url = DEFAULT_URL,
) -> None:
    """Download a checkpoint and verify every file."""
    with _errors(), Service(url) as service:
        checkpoint_id = source
        if source.startswith("ftjob-"):
            checkpoints = service.checkpoints(source)
            if not checkpoints:
                raise CliError(f"job {source} has no checkpoint yet")
            checkpoint_id = checkpoints[0]["id"]
        size = service.download(checkpoint_id, target)
        typer.echo(f"{checkpoint_id} -> {target} ({size / 1e6:.1f} MB)")


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


def _watch(service: Service, job_id: str) -> None:
    job, _ = watch(service, job_id, Console(stderr=True))
    if job["status"] != "succeeded":
        raise CliError(describe_failure(job))
    typer.echo(f"{job_id} succeeded: {job['fine_tuned_model']}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CliError(f"cannot read {path}: {error}") from error
    if not isinstance(body, dict):
        raise CliError(f"{path} must hold a JSON object")
    return body


if __name__ == "__main__":
    app()
