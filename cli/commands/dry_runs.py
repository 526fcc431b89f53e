"""Commands about a job before there is one: what is wrong with it, and what it would take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.app import DEFAULT_URL, Url, app, errors, read_json
from cli.client import Service
from cli.errors import CliError
from cli.table import table
from cli.upload import upload

Job = Annotated[Path, typer.Argument(help="Body of the create request, JSON; file ids in it, or the options below.")]
Train = Annotated[Path | None, typer.Option(help="Training file, JSONL: uploaded, and deleted afterwards.")]
Validation = Annotated[Path | None, typer.Option(help="Validation file, likewise.")]


@app.command()
def validate(job: Job, train: Train = None, validation: Validation = None, url: Url = DEFAULT_URL) -> None:
    """Print all that is wrong with a job, and what its grader makes of the first rows; exit status 1 if anything is."""
    with errors(), Service(url) as service, _body(service, job, train, validation) as body:
        found = service.call("POST", "fine_tuning/jobs/validate", json=body, timeout=240)
        for note in found["grader"]:
            typer.echo(f"{note['level']:5}  {note['message']}")
        for problem in found["problems"]:
            typer.echo(f"{problem['param'] or 'request'}: {problem['message']} ({problem['code']})")
        if not found["valid"]:
            raise CliError(f"the job would be refused: {len(found['problems'])} to change")
        typer.echo(f"valid: {found['total_steps']} steps")


@app.command("estimate")
def estimate_command(job: Job, train: Train = None, validation: Validation = None, url: Url = DEFAULT_URL) -> None:
    """Print what a job would take, each as a range and with what that stands on."""
    with errors(), Service(url) as service, _body(service, job, train, validation) as body:
        found = service.call("POST", "fine_tuning/jobs/estimate", json=body, timeout=60)
    for line in table(("", "from", "to", "basis"), estimate_rows(found)):
        typer.echo(line)


def estimate_rows(found: dict[str, Any]) -> list[tuple[object, ...]]:
    """The answer of `/estimate` for people."""
    names = ("steps", "optimizer_steps", "generated_tokens", "trained_tokens")
    rows: list[tuple[object, ...]] = [_row(name, found[name]) for name in names]
    rows.append(_row("gpu_seconds", found["gpu_seconds"]["range"], found["gpu_seconds"]["basis"]))
    rows.append(("disk_bytes", found["disk_bytes"], found["disk_bytes"], ""))
    rows.append(_row("peak_memory_bytes", found["peak_memory_bytes"]))
    rows += [_row(name, found[name]) for name in ("judge_calls", "judge_tokens")]
    queue = found["queue"]
    rows.append(("queue_position", queue["position"], queue["position"], f"{queue['workers']} workers fit"))
    rows.append(_row("wait_seconds", queue["wait_seconds"]["range"], queue["wait_seconds"]["basis"]))
    return rows


def _row(name: str, found: dict[str, int] | None, basis: str = "") -> tuple[object, ...]:
    return (name, "?", "?", basis) if found is None else (name, found["low"], found["high"], basis)


@contextmanager
def _body(service: Service, job: Path, train: Path | None, validation: Path | None) -> Iterator[dict[str, Any]]:
    body = read_json(job)
    uploaded = []
    try:
        for param, path in (("training_file", train), ("validation_file", validation)):
            if path is not None:
                body[param] = upload(service, path)["id"]
                uploaded.append(body[param])
        yield body
    finally:
        for file_id in uploaded:
            service.call("DELETE", f"files/{file_id}")
