"""`bgpo jobs`: waiting for a job, deleting one, its specification and its log."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer

from cli.app import DEFAULT_URL, Url, app, errors
from cli.client import TERMINAL, Service
from cli.errors import CliError
from cli.table import moment
from cli.watch import describe_failure

jobs = typer.Typer(help="Wait for a job, delete it, print its specification or its log.", no_args_is_help=True)
app.add_typer(jobs, name="jobs")
_TURN_S = 60.0


@jobs.command()
def wait(
    job_id: str,
    timeout: Annotated[float | None, typer.Option(help="Seconds; none: as long as it takes.")] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Wait until a job is over; exit status 1 unless it succeeds in time."""
    until = None if timeout is None else time.monotonic() + timeout
    with errors(), Service(url) as service:
        while True:
            left = _TURN_S if until is None else min(_TURN_S, max(0.0, until - time.monotonic()))
            job = _wait(service, job_id, left)
            if job["status"] in TERMINAL or (until is not None and time.monotonic() >= until):
                break
    with errors():
        if job["status"] not in TERMINAL:
            raise CliError(f"{job_id} is {job['status']} after {timeout:g} seconds")
        if job["status"] != "succeeded":
            raise CliError(describe_failure(job))
    typer.echo(f"{job_id} succeeded: {job['fine_tuned_model']}")


@jobs.command()
def delete(job_id: str, url: Url = DEFAULT_URL) -> None:
    """Delete a job that is over, with its checkpoints."""
    with errors(), Service(url) as service:
        service.call("DELETE", f"fine_tuning/jobs/{job_id}")
    typer.echo(f"deleted {job_id}")


@jobs.command()
def spec(
    job_id: str,
    run: Annotated[bool, typer.Option("--run", help="Only what `python -m bgpo.run` takes.")] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Print all that a job stood on, as JSON."""
    with errors(), Service(url) as service:
        found = service.call("GET", f"fine_tuning/jobs/{job_id}/spec")
    typer.echo(json.dumps(found["run"] if run else found, indent=2, ensure_ascii=False))


@jobs.command()
def logs(
    job_id: str,
    tail: Annotated[int, typer.Option(help="The last so many lines.", min=1, max=5000)] = 100,
    url: Url = DEFAULT_URL,
) -> None:
    """Print what a job's trainers printed."""
    with errors(), Service(url) as service:
        found = service.call("GET", f"fine_tuning/jobs/{job_id}/logs", params={"tail": tail})
    for line in found["data"]:
        typer.echo(f"{moment(int(line['created_at']))}  {line['level']:5}  {line['text']}")


def _wait(service: Service, job_id: str, seconds: float) -> dict[str, Any]:
    params = {"timeout": seconds}
    return service.call("GET", f"fine_tuning/jobs/{job_id}/wait", params=params, timeout=seconds + 30)
