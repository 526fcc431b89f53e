"""Following a job without a thread or a database connection for each follower: streams, and waiting for its end.

Followers ask `Polls` for the version of the job's row, which it reads for all of them in one statement, and read
further only when that changed. They end when the server stops; clients of streams then reconnect where they were.
Keep-alive comments of streams are FastAPI's, every 15 seconds.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from fastapi.sse import ServerSentEvent
from starlette.concurrency import run_in_threadpool

from api.poll import Polls
from jobs.errors import NotFound
from jobs.repositories import polls as versions
from jobs.states import TERMINAL, State

_POLL_S = 0.5
MAX_WAIT_S = 300
OVER = TERMINAL | {State.CANCELLING}
"""Of a job being cancelled nothing more is told."""


@dataclass(frozen=True)
class Batch:
    """What there is to tell behind a place."""

    state: State
    """Of the job, read before the messages: of one that is over none can be missing."""
    messages: Sequence[tuple[str, str]]
    """Id and data of each."""
    place: int
    """The last one's."""
    full: bool
    """There may be more."""


async def stream(
    polls: Polls,
    job_id: str,
    read: Callable[[int], Batch],
    place: int,
    stopping: threading.Event,
    *,
    in_row: bool = True,
) -> AsyncIterator[ServerSentEvent]:
    """What `read` has to tell from a place on, as it comes; `[DONE]` ends it when the job is over or deleted.

    Args:
        read: what there is behind a place; runs in a thread.
        in_row: whatever there is to tell also changes the job's row.
    """
    seen: versions.Version | None = None
    while not stopping.is_set():
        version = await polls.version(job_id)
        if version is None or version != seen or not in_row:
            try:
                batch = await run_in_threadpool(read, place)
            except NotFound:
                break
            for id_, data in batch.messages:
                yield ServerSentEvent(raw_data=data, id=id_)
            place = batch.place
            if batch.full:
                continue
            if batch.state in OVER:
                break
            seen = version
        await asyncio.sleep(_POLL_S)
    else:
        return
    yield ServerSentEvent(raw_data="[DONE]")


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
        await asyncio.sleep(min(_POLL_S, left))
