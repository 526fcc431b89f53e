"""What a job tells as server-sent events, from the database: any replica can serve any reconnect.

The place of each stream is the `seq` of events, which has no gaps, so nothing is lost or repeated. That holds for
metrics, too: a step of a split has one event, with its values, and when it is replayed after a resume it gets no other.
Lines of the
log have a rising number of their own. `api.feeds` says when the database is asked.
"""

from __future__ import annotations

from api.feeds import Batch
from api.metrics import point_json
from api.schemas.jobs import event_json, log_line_json
from jobs.context import Context
from jobs.services import jobs, logs
from jobs.tables import Event

_BATCH = 200


def events_behind(ctx: Context, project_id: str, job_id: str, seq: int) -> Batch:
    """The next events, oldest first."""
    state, rows = jobs.events_since(ctx, project_id, job_id, seq, _BATCH)
    messages = [(row.id, event_json(row)) for row in rows]
    return Batch(state, messages, rows[-1].seq if rows else seq, len(rows) == _BATCH)


def metrics_behind(ctx: Context, project_id: str, job_id: str, seq: int) -> Batch:
    """The values of the next steps, in the order in which they were recorded."""
    state, rows, place = jobs.metrics_since(ctx, project_id, job_id, seq, _BATCH)
    messages = [(row.id, point) for row in rows if (point := _point(row)) is not None]
    return Batch(state, messages, place, len(rows) == _BATCH)


def logs_behind(ctx: Context, project_id: str, job_id: str, seq: int) -> Batch:
    """The next lines that trainers printed."""
    state, rows = logs.behind(ctx, project_id, job_id, seq, _BATCH)
    messages = [(str(row.seq), log_line_json(row)) for row in rows]
    return Batch(state, messages, rows[-1].seq if rows else seq, len(rows) == _BATCH)


def _point(event: Event) -> str | None:
    """None when the step had no finite value."""
    data = event.data or {}
    split, values = ("train", data["train"]) if "train" in data else ("validation", data.get("valid"))
    return point_json(data["step"], split, values) if values else None
