"""Commands about the queue and those who work on it."""

from __future__ import annotations

import os
from typing import Any

import typer

from cli.app import DEFAULT_URL, Url, app, errors
from cli.client import Service
from cli.table import moment, table


@app.command("queue")
def show_queue(url: Url = DEFAULT_URL) -> None:
    """Print your waiting and running jobs, and the workers by class."""
    with errors(), Service(url) as service:
        found = service.queue()
    for line in queue_lines(found):
        typer.echo(line)


@app.command()
def workers(url: Url = DEFAULT_URL) -> None:
    """Print all workers. Needs BGPO_ADMIN_KEY where the service has keys."""
    with errors(), Service(url, os.environ.get("BGPO_ADMIN_KEY")) as service:
        found = service.workers()
    headings = ("worker", "host", "class", "gpus", "state", "job", "last seen", "problem")
    names = ("id", "host", "gpu_type", "gpus", "state", "job_id")
    rows = [(*(each[name] for name in names), moment(each["last_seen"]), each["problem"]) for each in found]
    for line in table(headings, rows):
        typer.echo(line)


def queue_lines(found: dict[str, Any]) -> list[str]:
    """The answer of `GET /v1/fine_tuning/queue` for people."""
    waiting = [
        (job["position"] or "-", job["job"], job["priority"], _needs(job["resources"]), job["reason"])
        for job in found["waiting"]
    ]
    running = [(job["job"], f"{job['step']}/{job['total_steps']}", job["attempt"]) for job in found["running"]]
    slots = [(slot["gpu_type"], slot["gpus"], slot["total"], slot["busy"], slot["out"]) for slot in found["slots"]]
    lines = [f"{found['queued_total']} queued in all projects"]
    for title, headings, rows in (
        ("waiting", ("position", "job", "priority", "needs", "reason"), waiting),
        ("running", ("job", "step", "attempt"), running),
        ("workers", ("class", "gpus", "total", "busy", "out"), slots),
    ):
        lines += (
            ["", f"{title}: none"] if not rows else ["", f"{title}:", *(f"  {row}" for row in table(headings, rows))]
        )
    return lines


def _needs(resources: dict[str, Any]) -> str:
    return f"{resources['gpus']} x {resources['gpu_type'] or 'any'}"
