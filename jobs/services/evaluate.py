"""Making an evaluation: all that can be wrong with it is found before the row exists.

What a request leaves out is as the job has it that made the checkpoint, so that an empty one repeats the job's own last
evaluation: same rows, grader, sampler, seed and streams. A checkpoint that another project shares brings none of that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from sqlalchemy.orm import Session

from bgpo.rewards.spec import parse_grader_spec
from bgpo.spec import Recipe
from jobs.context import Context
from jobs.errors import InvalidRequest
from jobs.kinds import Kind
from jobs.services import scheduling, tuned_models
from jobs.services.create import dataset, rows_of
from jobs.services.grader_check import INVALID, located
from jobs.services.once import Ticket
from jobs.services.stored_graders import Resolved, resolve
from jobs.services.submit import repeated, submission, submit
from jobs.services.tasks import enter_queue, own_maker
from jobs.services.trial import try_grader
from jobs.services.tuned_models import Weights
from jobs.tables import Job
from jobs.wire.recipe import rollout_of
from jobs.wire.request import Scheduling
from jobs.wire.tasks import Evaluate

_MISSING = "missing_required_parameter"


def create(
    ctx: Context,
    project_id: str,
    model: str,
    body: Evaluate,
    idempotency_key: str | None = None,
    ticket: Ticket | None = None,
) -> Job:
    """Queue the evaluation of a model.

    Raises:
        NotFound: no such model.
        InvalidRequest: anything else wrong with the request.
        InsufficientQuota: as many jobs of the project wait as may.
        Conflict: the key was used with another body.
    """
    asked = {"evaluate": model, "body": body.model_dump(mode="json", exclude_unset=True)}
    wanted = submission(project_id, idempotency_key, asked, ticket)
    if (made := repeated(ctx, wanted)) is not None:
        return made
    with ctx.db.read() as session:
        weights = tuned_models.resolve(ctx, session, project_id, model)
    maker = own_maker(weights, project_id)
    file = body.file or (maker.validation_file if maker is not None else None)
    if file is None:
        raise InvalidRequest("file is required: there is no job whose validation file it could be.", "file", _MISSING)
    grader = _grader(ctx, project_id, body, maker)
    rows = rows_of(ctx, project_id, file)
    with located("grader", INVALID):
        try_grader(ctx, project_id, grader.spec, {"file": rows} if rows else {})
    recipe = _recipe(body, maker, weights, grader)
    where = scheduling.columns(ctx, Scheduling())

    def enter(session: Session) -> Job:
        count = dataset(session, project_id, file, "file", None)["rows"]
        used = min(recipe.evaluation.samples or count, count)
        return enter_queue(
            ctx,
            session,
            Kind.EVALUATE,
            wanted,
            model,
            validation_file=file,
            seed=recipe.seed,
            method={"grader": grader.shown},
            recipe=recipe.model_dump(mode="json"),
            total_steps=used * (recipe.evaluation.answers + 1),
            request=asked,
            tags=body.metadata or None,
            **where,
        )

    return submit(ctx, wanted, enter)


def _grader(ctx: Context, project_id: str, body: Evaluate, maker: Job | None) -> Resolved:
    """The request's, or the job's. Raises InvalidRequest."""
    if body.grader is not None:
        with located("grader", INVALID):
            return resolve(ctx, project_id, body.grader)
    method = _method_of(maker)
    if maker is None or method.get("grader") is None:
        raise InvalidRequest("grader is required: there is no job whose grader it could be.", "grader", _MISSING)
    return Resolved(parse_grader_spec(method["grader"]), maker.method[method["type"]]["grader"])


def _recipe(body: Evaluate, maker: Job | None, weights: Weights, grader: Resolved) -> Recipe:
    """Its method trains nothing: it is where a recipe has grader, sampler and the kind of weights.

    Raises InvalidRequest.
    """
    theirs = maker.recipe if maker is not None else {}
    evaluation, method = theirs.get("evaluation", {}), _method_of(maker)
    if body.sampler is not None:
        rollout = rollout_of(body.sampler.model_dump(exclude_none=True))
    else:
        rollout = method.get("rollout") or rollout_of({})
    precision = theirs.get("precision", "float32")
    values = {
        "seed": theirs.get("seed", 0) if body.seed is None else body.seed,
        "precision": body.precision or precision,
        "method": {
            "type": "reinforcement",
            "grader": grader.spec.model_dump(mode="json"),
            "rollout": rollout,
            # Under bfloat16 a run with an adapter keeps the frozen weights so, and one without does not.
            "lora": None if weights.job is None else weights.job.recipe.get("method", {}).get("lora"),
        },
        "evaluation": {
            "samples": body.samples or evaluation.get("samples"),
            "answers": body.answers or evaluation.get("answers", 1),
            "batch_size": body.batch_size,
        },
        "grading": {"on_error": body.on_grader_error or theirs.get("grading", {}).get("on_error", "drop")},
    }
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        name = message.split()[0]  # rules between fields name the offender first
        raise InvalidRequest(message, f"sampler.{name}" if name in rollout else "sampler") from error


def _method_of(maker: Job | None) -> Mapping[str, Any]:
    method: Mapping[str, Any] = {} if maker is None else maker.recipe.get("method", {})
    return method
