"""/v1/fine_tuning/evaluations, and evaluating a checkpoint."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from api import filters
from api.deps import After, Ctx, Limit, ReadsJobs, WritesJobs
from api.download import object_response
from api.errors import RESPONSES
from api.json_body import JsonRoute
from api.once import Once, Repeats
from api.schemas.lists import ListOf, list_of
from api.schemas.tasks import (
    EvaluationDeleted,
    EvaluationObject,
    EvaluationSampleObject,
    Mode,
    evaluation_object,
    sample_object,
)
from jobs.artifacts import Manifest
from jobs.context import Context
from jobs.errors import InvalidRequest, NotFound
from jobs.kinds import Kind
from jobs.services import changes, evaluate, jobs, tasks
from jobs.services.once import Ticket
from jobs.wire.tasks import CreateEvaluation, Evaluate

RESULTS = "results.jsonl"
_PATH = "/v1/fine_tuning/evaluations"
_MAX_DIGITS = 15
router = APIRouter(tags=["Evaluations"], responses=RESPONSES, route_class=JsonRoute)


@router.post("/v1/fine_tuning/checkpoints/{checkpoint_id}/evaluate")
async def evaluate_checkpoint(
    checkpoint_id: str, ctx: Ctx, project: WritesJobs, repeats: Once, body: Evaluate | None = None
) -> EvaluationObject:
    """Let a checkpoint answer the rows of a file, and grade the answers, as evaluations of its job do.

    What the body leaves out is as that job has it: an empty one repeats the evaluation of these weights.
    """

    def load() -> str:
        return jobs.checkpoint(ctx, project, checkpoint_id).id

    return await _create(ctx, project, await run_in_threadpool(load), body or Evaluate(), repeats)


@router.post(_PATH)
async def create_evaluation(body: CreateEvaluation, ctx: Ctx, project: WritesJobs, repeats: Once) -> EvaluationObject:
    """The same of any model: a base model, a tuned model, or a checkpoint. A base model needs `file` and `grader`."""
    return await _create(ctx, project, body.model, body, repeats)


@router.get(_PATH)
def list_evaluations(
    request: Request,
    ctx: Ctx,
    project: ReadsJobs,
    after: After = None,
    limit: Limit = 20,
    status: filters.Status = None,
    model: Annotated[str | None, Query(max_length=512, description="Only of this model.")] = None,
) -> ListOf[EvaluationObject]:
    """List evaluations, newest first. `metadata[key]=value` filters; `metadata=null` finds those with none."""
    tags, untagged = filters.metadata(request)
    page = tasks.page(
        ctx,
        project,
        Kind.EVALUATE,
        after=after,
        limit=limit,
        tags=tags,
        untagged=untagged,
        states=filters.states(status),
        model=model,
    )
    return list_of(page, evaluation_object)


@router.get(_PATH + "/{evaluation_id}")
def retrieve_evaluation(evaluation_id: str, ctx: Ctx, project: ReadsJobs) -> EvaluationObject:
    """Describe an evaluation; once it has succeeded, with its results."""
    return evaluation_object(tasks.get(ctx, project, evaluation_id, Kind.EVALUATE))


@router.delete(_PATH + "/{evaluation_id}")
def delete_evaluation(evaluation_id: str, ctx: Ctx, project: WritesJobs) -> EvaluationDeleted:
    """Delete an evaluation that is over, with its answers; its usage still counts."""
    changes.delete(ctx, project, evaluation_id, Kind.EVALUATE)
    return EvaluationDeleted(id=evaluation_id)


@router.post(_PATH + "/{evaluation_id}/cancel")
def cancel_evaluation(evaluation_id: str, ctx: Ctx, project: WritesJobs) -> EvaluationObject:
    """Cancel an evaluation. It is cancelled at once; the answers it has listed stay."""
    return evaluation_object(tasks.cancel(ctx, project, evaluation_id, Kind.EVALUATE))


@router.post(_PATH + "/{evaluation_id}/resume")
def resume_evaluation(evaluation_id: str, ctx: Ctx, project: WritesJobs) -> EvaluationObject:
    """Put an evaluation that the service has paused back in the queue; it begins again."""
    return evaluation_object(tasks.resume(ctx, project, evaluation_id, Kind.EVALUATE))


@router.get(_PATH + "/{evaluation_id}/samples")
def list_evaluation_samples(
    evaluation_id: str,
    ctx: Ctx,
    project: ReadsJobs,
    after: After = None,
    limit: Limit = 20,
    decoding: Annotated[Mode | None, Query(description="Only these answers.")] = None,
) -> ListOf[EvaluationSampleObject]:
    """List the answers with what the grader gave, row by row; also while the evaluation runs. Texts are cut to 64 Ki
    characters; the content has them whole."""
    if after is not None and not (after.isascii() and after.isdecimal() and len(after) <= _MAX_DIGITS):
        raise InvalidRequest(f"after: no such object in this list: {after}", "after")
    start = None if after is None else int(after)
    greedy = None if decoding is None else decoding == "greedy"
    job, page = tasks.answers_page(ctx, project, evaluation_id, after=start, limit=limit, greedy=greedy)
    return list_of(page, lambda row: sample_object(job, row))


@router.get(_PATH + "/{evaluation_id}/content", response_class=Response)
def download_evaluation(evaluation_id: str, request: Request, ctx: Ctx, project: ReadsJobs) -> Response:
    """All answers as JSON lines, once the evaluation has succeeded. Supports Range and If-None-Match."""
    task = tasks.get(ctx, project, evaluation_id, Kind.EVALUATE)
    file = None if task.result is None else Manifest.from_json(task.result.manifest).find(RESULTS)
    if task.result is None or file is None:
        raise NotFound(f"Evaluation {evaluation_id} has no results: its status is not succeeded.", "id")
    return object_response(
        request,
        ctx.store,
        f"{task.result.key}/{file.path}",
        name=f"{evaluation_id}.jsonl",
        size=file.bytes,
        sha256=file.sha256,
    )


async def _create(ctx: Context, project: str, model: str, body: Evaluate, repeats: Repeats) -> EvaluationObject:
    def shown(task_id: str) -> EvaluationObject:
        return evaluation_object(tasks.get(ctx, project, task_id, Kind.EVALUATE))

    def make(ticket: Ticket | None) -> EvaluationObject:
        return shown(evaluate.create(ctx, project, model, body, repeats.key, ticket).id)

    return await repeats.once_in_row(ctx, project, "evaluation", make=make, load=shown)
