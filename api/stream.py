"""The events of a job as server-sent events, from the database: any replica can serve any reconnect.

The database is polled; `seq` has no gaps, so nothing is lost or repeated. The stream ends with `[DONE]` when the job is
over, and without it when the server stops (clients reconnect with Last-Event-ID). Keep-alive comments are FastAPI's.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

from fastapi.sse import ServerSentEvent
from starlette.concurrency import run_in_threadpool

from api.schemas.jobs import event_json
from jobs.context import Context
from jobs.services import jobs
from jobs.states import TERMINAL, State

_POLL_S = 0.5
_BATCH = 200
_OVER = TERMINAL | {State.CANCELLING}
"""Of a job being cancelled nothing more is told."""


async def job_events(
    ctx: Context, project_id: str, job_id: str, after_seq: int, stopping: threading.Event
) -> AsyncIterator[ServerSentEvent]:
    """Events after `after_seq`, oldest first, as they happen."""
    seq = after_seq
    while not stopping.is_set():
        state, rows = await run_in_threadpool(jobs.events_since, ctx, project_id, job_id, seq, _BATCH)
        for row in rows:
            seq = row.seq
            yield ServerSentEvent(raw_data=event_json(row), id=row.id)
        if len(rows) == _BATCH:
            continue
        if state in _OVER:
            yield ServerSentEvent(raw_data="[DONE]")
            return
        await asyncio.sleep(_POLL_S)
