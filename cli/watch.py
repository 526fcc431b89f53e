"""Follows a job until it is over, with one live line on a terminal or a plain one every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from cli.client import TERMINAL, Service
from cli.progress import Progress

_POLL_S = 0.5
_PLAIN_EVERY_S = 5.0
_LOG_LINES = 20


def watch(
    service: Service, job_id: str, console: Console, check: Callable[[], None] = lambda: None
) -> tuple[dict[str, Any], Progress]:
    """The job as it ended, and all its metrics. `check` is called at each look and may raise."""
    job = service.job(job_id)
    done = job["rl"]["step"] if job["rl"]["attempt"] == 0 else 0  # a retry that has not begun
    progress = Progress(job["rl"]["total_steps"], _eval_interval(job), done)
    with _line(console) as show:
        while True:
            check()
            job = service.job(job_id)
            over = job["status"] in TERMINAL
            # A resumed job repeats steps; what it says then replaces what was seen.
            progress.add(service.metrics(job_id, 0 if over else max(min(progress.step, job["rl"]["step"]) - 1, 0)))
            show(progress.line(job["rl"]["phase"], _standing(job)))
            if over:
                return job, progress
            time.sleep(_POLL_S)


def describe_failure(job: dict[str, Any]) -> str:
    """Why a job did not succeed: what happened and what to change, then where, then the end of its log."""
    error, failure = job.get("error"), job["rl"].get("failure") or {}
    if not error:
        return f"job {job['id']} was {job['status']}"
    param = f" ({error['param']})" if error.get("param") else ""
    lines = [f"job {job['id']} failed with {error['code']}{param}: {error['message']}"]
    places = (("phase", failure.get("phase")), ("step", failure.get("step")), ("attempt", failure.get("attempt")))
    where = ", ".join(f"{name} {value}" for name, value in places if value)
    lines += [f"where: {where}"] if where else []
    if failure.get("log_tail"):
        lines += ["end of the log:", *(f"  {line}" for line in failure["log_tail"].splitlines()[-_LOG_LINES:])]
    return "\n".join(lines)


def _standing(job: dict[str, Any]) -> str | None:
    """Why a job stands still; None while it moves."""
    details = job["rl"]
    if job["status"] == "queued" and details["queue_position"] is not None:
        return f"position {details['queue_position']}: {details['wait_reason']}"
    if job["status"] == "paused":
        reason = details["pause_reason"]
        return f"paused by the service: {reason['message']}" if reason else "paused"
    return None


def _eval_interval(job: dict[str, Any]) -> int | None:
    interval: int | None = job["method"][job["method"]["type"]]["hyperparameters"].get("eval_interval")
    return interval


@contextmanager
def _line(console: Console) -> Iterator[Callable[[str], None]]:
    if console.is_terminal:
        with Live(console=console, auto_refresh=False, transient=False) as live:
            yield lambda text: live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)
        return
    newest, shown, shown_at = "", "", -_PLAIN_EVERY_S

    def show(text: str) -> None:
        nonlocal newest, shown, shown_at
        newest, now = text, time.monotonic()
        if text != shown and now - shown_at >= _PLAIN_EVERY_S:
            console.print(text, highlight=False, soft_wrap=True)
            shown, shown_at = text, now

    yield show
    if newest != shown:  # how it ended is never left out
        console.print(newest, highlight=False, soft_wrap=True)
