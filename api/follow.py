"""Waiting for a job's end without a thread or a database connection for each who waits.

They ask `Polls` for the version of the job's row, which it reads for all of them in one statement, as `api.feeds` does
for those who listen to what a job tells.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

from api.poll import Polls
from jobs.repositories import polls as versions
from jobs.states import TERMINAL, State

POLL_S = 0.5
MAX_WAIT_S = 300
OVER = TERMINAL | {State.CANCELLING}
"""Of a job being cancelled nothing more is told."""


async def until_over(
    polls: Polls, job_id: str, timeout_s: float, stopping: threading.Event, gone: Callable[[], Awaitable[bool]]
) -> None:
    """Return when the job is over, the time is, the server stops, or nobody waits any more (`gone`)."""
    deadline = time.monotonic() + timeout_s
    while not stopping.is_set() and (left := deadline - time.monotonic()) > 0:
        version = await polls.version(job_id)
        if version is not None and versions.state_of(version) in OVER:
            return
        if await gone():
            return
        await asyncio.sleep(min(POLL_S, left))
