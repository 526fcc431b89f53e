"""/v1/fine_tuning/jobs/{job_id}/...: what a job tells while it runs."""

from __future__ import annotations

import csv
import io
import re
import threading
from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import PlainTextResponse, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from api.deps import After, Ctx, Limit, ReadsJobs
from api.errors import RESPONSES
from api.json_body import JsonRoute
from api.schemas.attempts import AttemptObject, attempt_object
from api.schemas.checkpoints import CheckpointObject, checkpoint_object
from api.schemas.jobs import (
    EventObject,
    MetricSeries,
    MetricsPoint,
    SampleObject,
    event_object,
    metric_points,
    sample_object,
)
from api.schemas.lists import ListOf, list_of
from api.stream import job_events
from api.streams import OneStream
from jobs.errors import InvalidRequest
from jobs.services import jobs

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


@router.get("/events/stream", response_class=EventSourceResponse)
async def stream_events(
    job_id: str,
    request: Request,
    ctx: Ctx,
    project: ReadsJobs,
    start: Annotated[int, Depends(_stream_start)],
    _: OneStream,
) -> AsyncIterator[ServerSentEvent]:
    """Follow the events as server-sent events, oldest first; `[DONE]` ends the stream when the job is over.

    After a broken connection the stream goes on where it was with the `Last-Event-ID` header or `?after=`.
    """
    stopping: threading.Event = request.app.state.stopping
    async for event in job_events(ctx, project, job_id, start, stopping):
        yield event


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
    responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}}},
)
def get_metrics(
    job_id: str,
    ctx: Ctx,
    project: ReadsJobs,
    names: Annotated[list[str] | None, Query(description="Only these; repeat, or separate by commas.")] = None,
    split: Split | None = None,
    since_step: Annotated[int | None, Query(ge=0, le=2**53)] = None,
    until_step: Annotated[int | None, Query(ge=0, le=2**53)] = None,
    format: Literal["json", "csv"] = "json",
) -> MetricSeries | Response:
    """All metric values by step, as JSON or as CSV with a column for each name."""
    wanted = [name for item in names for name in item.split(",") if name] if names else None
    rows = jobs.metric_series(
        ctx, project, job_id, names=wanted, split=split, since_step=since_step, until_step=until_step
    )
    points = metric_points(rows)
    if format == "csv":
        return PlainTextResponse(_csv(points), media_type="text/csv")
    return MetricSeries(data=points)


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


def _csv(points: list[MetricsPoint]) -> str:
    names = sorted({name for point in points for name in point.values})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", "split", *names])
    for point in points:
        writer.writerow([point.step, point.split, *(point.values.get(name, "") for name in names)])
    return text.getvalue()
