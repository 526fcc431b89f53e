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


def watch(
    service: Service, job_id: str, console: Console, check: Callable[[], None] = lambda: None
) -> tuple[dict[str, Any], Progress]:
    """The job as it ended, and all its metrics. `check` is called at each look and may raise."""
    job = service.job(job_id)
    progress = Progress(job["rl"]["total_steps"], _eval_interval(job))
    with _line(console) as show:
        while True:
            check()
            job = service.job(job_id)
            over = job["status"] in TERMINAL
            # A resumed job repeats steps; what it says then replaces what was seen.
            progress.add(service.metrics(job_id, 0 if over else max(min(progress.step, job["rl"]["step"]) - 1, 0)))
            show(progress.line(job["rl"]["phase"]))
            if over:
                return job, progress
            time.sleep(_POLL_S)


def describe_failure(job: dict[str, Any]) -> str:
    """Why a job did not succeed, in one line."""
    error = job.get("error")
    if not error:
        return f"job {job['id']} was {job['status']}"
    where = f" ({error['param']})" if error.get("param") else ""
    return f"job {job['id']} failed with {error['code']}{where}: {error['message']}"


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
