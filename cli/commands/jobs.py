"""Commands about one job: submit, watch, pause, resume, cancel, retry, clone, and what it tells."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from cli.app import DEFAULT_URL, Url, app, errors, read_json
from cli.client import Service
from cli.errors import CliError
from cli.table import moment, table
from cli.upload import upload
from cli.watch import describe_failure, watch

Follow = Annotated[bool, typer.Option("--watch", help="Watch it until it is over.")]


@app.command()
def submit(
    job: Annotated[Path, typer.Argument(help="Body of the create request, JSON, without file ids.")],
    train: Annotated[Path, typer.Option(help="Training file, JSONL.")],
    validation: Annotated[Path | None, typer.Option(help="Validation file, JSONL.")] = None,
    follow: Follow = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Upload the files, create a job and print its id."""
    with errors(), Service(url) as service:
        body = read_json(job) | {"training_file": upload(service, train)["id"]}
        if validation is not None:
            body["validation_file"] = upload(service, validation)["id"]
        _created(service, service.create_job(body), follow)


@app.command("watch")
def watch_command(job_id: str, url: Url = DEFAULT_URL) -> None:
    """Follow a job; exit status 1 unless it succeeds."""
    with errors(), Service(url) as service:
        _watch(service, job_id)


@app.command()
def events(job_id: str, url: Url = DEFAULT_URL) -> None:
    """Print what happened to a job, oldest first."""
    with errors(), Service(url) as service:
        for event in service.events(job_id):
            typer.echo(f"{moment(event['created_at'])}  {event['level']:5}  {event['message']}")


@app.command()
def cancel(job_id: str, url: Url = DEFAULT_URL) -> None:
    """Cancel a job."""
    _wish("cancel", job_id, url)


@app.command()
def pause(job_id: str, url: Url = DEFAULT_URL) -> None:
    """Pause a job; a running one writes a checkpoint first."""
    _wish("pause", job_id, url)


@app.command()
def resume(job_id: str, url: Url = DEFAULT_URL) -> None:
    """Queue a paused job; it goes on from its last checkpoint."""
    _wish("resume", job_id, url)


@app.command()
def retry(
    job_id: str,
    override: Annotated[Path | None, typer.Option(help='JSON: {"rl": {"priority", "resources", "budget"}}.')] = None,
    follow: Follow = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Do a failed or cancelled job again, from its last checkpoint, as a new job; print the new id."""
    with errors(), Service(url) as service:
        _created(service, service.retry(job_id, read_json(override) if override else {}), follow)


@app.command()
def clone(
    job_id: str,
    override: Annotated[Path | None, typer.Option(help="JSON merged into the job's create request.")] = None,
    follow: Follow = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Make a new job from a job's request, with changes; print the new id."""
    with errors(), Service(url) as service:
        _created(service, service.clone(job_id, read_json(override) if override else {}), follow)


@app.command()
def attempts(job_id: str, url: Url = DEFAULT_URL) -> None:
    """Print each time a worker had a job, and how it ended; oldest first."""
    with errors(), Service(url) as service:
        found = service.attempts(job_id)
        headings = ("attempt", "host", "devices", "started", "ended", "from step", "outcome", "why")
        for line in table(headings, [_attempt(each) for each in found]):
            typer.echo(line)


def _attempt(attempt: dict[str, Any]) -> tuple[object, ...]:
    error, status = attempt["error"], ""
    if attempt["exit_code"] or attempt["signal"]:
        status = f"signal {attempt['signal']}" if attempt["signal"] else f"status {attempt['exit_code']}"
    why = ", ".join(filter(None, (f"{error['code']}: {error['message']}" if error else "", status)))
    ended = attempt["ended_at"]
    return (
        attempt["number"],
        attempt["host"] or attempt["worker"],
        " ".join(attempt["devices"] or ()),
        moment(attempt["started_at"]),
        moment(ended) if ended is not None else "",
        attempt["resumed_step"] or 0,
        attempt["outcome"] or "running",
        why,
    )


def _wish(name: str, job_id: str, url: str) -> None:
    with errors(), Service(url) as service:
        job = service.wish(job_id, name)
        pausing = job["status"] == "running" and job["rl"]["phase"] == "pausing"
        typer.echo(f"{job_id} {'pausing' if pausing else job['status']}")


def _created(service: Service, job: dict[str, Any], follow: bool) -> None:
    typer.echo(job["id"])
    if follow:
        _watch(service, job["id"])


def _watch(service: Service, job_id: str) -> None:
    job, _ = watch(service, job_id, Console(stderr=True))
    if job["status"] != "succeeded":
        raise CliError(describe_failure(job))
    typer.echo(f"{job_id} succeeded: {job['fine_tuned_model']}")
