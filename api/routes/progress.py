"""/v1/fine_tuning/jobs/{job_id}/...: what a job tells while it runs."""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import Response

from api.deps import After, Ctx, Limit, ReadsJobs
from api.errors import RESPONSES
from api.event_stream import EVENTS, EventStream
from api.feeds import Feeds
from api.json_body import JsonRoute
from api.metrics import Format, metrics_response
from api.schemas.attempts import AttemptObject, attempt_object
from api.schemas.checkpoints import CheckpointObject, checkpoint_object
from api.schemas.jobs import (
    EventObject,
    LogLineObject,
    MetricSeries,
    SampleObject,
    event_object,
    log_line_object,
    sample_object,
)
from api.schemas.lists import ListOf, list_of
from api.stream import events_behind, logs_behind, metrics_behind
from api.streams import OneStream
from jobs.errors import InvalidRequest
from jobs.repositories.events import LEVELS, Level
from jobs.repositories.logs import KEPT
from jobs.repositories.metrics import Selection
from jobs.services import jobs, logs
from jobs.services.metric_series import series

router = APIRouter(
    prefix="/v1/fine_tuning/jobs/{job_id}",
    tags=["Progress"],
    responses=RESPONSES,
    route_class=JsonRoute,
)
_SAMPLE_ID = re.compile(r"(\d{1,15})\.(train|validation)\.(\d{1,15})")
Split = Literal["train", "validation"]


@router.get("/events")
def list_events(
    job_id: str, ctx: Ctx, project: ReadsJobs, after: After = None, limit: Limit = 20
) -> ListOf[EventObject]:
    """List events, newest first."""
    return list_of(jobs.events_page(ctx, project, job_id, after=after, limit=limit), event_object)


def _stream_start(
    job_id: str,
    ctx: Ctx,
    project: ReadsJobs,
    after: Annotated[str | None, Query(max_length=64, description="Id of the last event seen.")] = None,
    last_event_id: Annotated[str | None, Header(max_length=64, description="The same, as browsers send it.")] = None,
) -> int:
    """Looked up before the stream begins, so that a wrong id is an ordinary error."""
    return jobs.event_seq(ctx, project, job_id, last_event_id or after)


Start = Annotated[int, Depends(_stream_start)]


@router.get("/events/stream", response_class=EventStream, status_code=200, responses=EVENTS)
async def stream_events(
    job_id: str, request: Request, ctx: Ctx, project: ReadsJobs, start: Start, _: OneStream
) -> EventStream:
    """Follow the events as server-sent events, oldest first; `[DONE]` ends the stream when the job is over.

    After a broken connection the stream goes on where it was with the `Last-Event-ID` header or `?after=`.
    """
    feeds: Feeds = request.app.state.feeds
    read = partial(events_behind, ctx, project, job_id)
    return EventStream(feeds.listening("events", job_id, read, in_row=True), start)


@router.get("/metrics/stream", response_class=EventStream, status_code=200, responses=EVENTS)
async def stream_metrics(
    job_id: str, request: Request, ctx: Ctx, project: ReadsJobs, start: Start, _: OneStream
) -> EventStream:
    """Follow the metrics as server-sent events, each a `MetricsPoint`; `[DONE]` ends the stream when the job is over.

    Each step of a split comes once, however often it is replayed after a resume. The ids are those of the steps'
    events; reconnecting is as for `/events/stream`.
    """
    feeds: Feeds = request.app.state.feeds
    read = partial(metrics_behind, ctx, project, job_id)
    return EventStream(feeds.listening("metrics", job_id, read, in_row=True), start)


@router.get("/attempts")
def list_attempts(
    job_id: str, ctx: Ctx, project: ReadsJobs, after: After = None, limit: Limit = 20
) -> ListOf[AttemptObject]:
    """List the times a worker had the job and how each ended, newest first."""
    return list_of(jobs.attempts_page(ctx, project, job_id, after=after, limit=limit), attempt_object)


@router.get("/checkpoints")
def list_checkpoints(
    job_id: str, ctx: Ctx, project: ReadsJobs, after: After = None, limit: Limit = 10
) -> ListOf[CheckpointObject]:
    """List checkpoints, newest first."""
    return list_of(jobs.checkpoints_page(ctx, project, job_id, after=after, limit=limit), checkpoint_object)


@router.get(
    "/metrics",
    response_model=MetricSeries,
    responses={
        200: {"content": {kind: {"schema": {"type": "string"}} for kind in ("text/csv", "application/jsonl")}},
    },
)
def get_metrics(
    job_id: str,
    ctx: Ctx,
    project: ReadsJobs,
    names: Annotated[list[str] | None, Query(description="Only these; repeat, or separate by commas.")] = None,
    split: Split | None = None,
    since_step: Annotated[int | None, Query(ge=0, le=2**53)] = None,
    until_step: Annotated[int | None, Query(ge=0, le=2**53)] = None,
    limit: Annotated[
        int | None, Query(ge=1, le=2**53, description="Steps; the next page has since_step of the last one plus 1.")
    ] = None,
    downsample: Annotated[
        int | None,
        Query(
            ge=4,
            le=100_000,
            description="At most so many values of each name and split, extremes among them. Not together with limit.",
        ),
    ] = None,
    format: Format = "json",
) -> Response:
    """All metric values by step: as JSON, as JSON lines of `MetricsPoint`, or as CSV with a column for each name."""
    if limit is not None and downsample is not None:
        raise InvalidRequest("downsample is of a whole series, of which limit shows a part: give one.", "downsample")
    wanted = [name for item in names for name in item.split(",") if name] if names else None
    selection = Selection(wanted, split, since_step, until_step)
    found = series(ctx, project, job_id, selection, steps=limit, most=downsample)
    return metrics_response(found, format)


LogId = Annotated[
    str | None, Query(pattern=r"^\d{1,18}$", description="Id of the last line seen.", examples=["4294967297"])
]


@router.get("/logs")
def list_logs(
    job_id: str,
    ctx: Ctx,
    project: ReadsJobs,
    after: LogId = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Lines in a page.")] = 100,
    tail: Annotated[
        int | None, Query(ge=1, le=KEPT, description="The last so many lines instead; not together with after.")
    ] = None,
    since: Annotated[float | None, Query(allow_inf_nan=False, description="Unix seconds.")] = None,
    level: Annotated[Level | None, Query(description="Only lines of this level and those above.")] = None,
) -> ListOf[LogLineObject]:
    """List what the job's trainers printed, oldest first: the last 5,000 lines, without paths and secrets."""
    levels = None if level is None else LEVELS[LEVELS.index(level) :]
    if tail is None:
        start = int(after or 0)
        page = logs.page(ctx, project, job_id, after=start, limit=limit, since=since, levels=levels)
    elif after is None:
        page = logs.tail(ctx, project, job_id, count=tail, since=since, levels=levels)
    else:
        raise InvalidRequest("tail is the end of all lines, after the place to go on from: give one.", "tail")
    return list_of(page, log_line_object)


def _log_start(
    job_id: str,
    ctx: Ctx,
    project: ReadsJobs,
    after: LogId = None,
    last_event_id: Annotated[str | None, Header(pattern=r"^\d{1,18}$", description="The same.")] = None,
) -> int:
    jobs.get(ctx, project, job_id)
    return int(last_event_id or after or 0)


@router.get("/logs/stream", response_class=EventStream, status_code=200, responses=EVENTS)
async def stream_logs(
    job_id: str,
    request: Request,
    ctx: Ctx,
    project: ReadsJobs,
    start: Annotated[int, Depends(_log_start)],
    _: OneStream,
) -> EventStream:
    """Follow what the job's trainers print as server-sent events; reconnecting is as for `/events/stream`."""
    feeds: Feeds = request.app.state.feeds
    read = partial(logs_behind, ctx, project, job_id)
    return EventStream(feeds.listening("logs", job_id, read, in_row=False), start)


@router.get("/samples")
def list_samples(
    job_id: str,
    ctx: Ctx,
    project: ReadsJobs,
    after: After = None,
    limit: Limit = 20,
    step: Annotated[int | None, Query(ge=0, le=2**53)] = None,
    split: Split | None = None,
    min_reward: Annotated[float | None, Query(allow_inf_nan=False)] = None,
) -> ListOf[SampleObject]:
    """List logged rollouts, newest step first."""
    start = None
    if after is not None:
        found = _SAMPLE_ID.fullmatch(after)
        if found is None:
            raise InvalidRequest(f"after: not the id of a sample: {after}", "after")
        start = (int(found[1]), found[2], int(found[3]))
    page = jobs.samples_page(
        ctx, project, job_id, after=start, limit=limit, step=step, split=split, min_reward=min_reward
    )
    return list_of(page, sample_object)
