"""Creating a job: everything that can be wrong is found before the row exists, and said with the parameter's path.

The grader is tried on the first rows of each file (`jobs.services.trial`), which finds templates that name fields the
rows do not have. `submit` does what is left once the request is known to be right.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from jobs import origin as origin_of
from jobs.context import Context
from jobs.errors import InvalidRequest
from jobs.ids import JOB, new_id, short
from jobs.repositories import checkpoints, events, files, job_rows
from jobs.services import resuming, scheduling, tuned_models
from jobs.services import secrets as stored_secrets
from jobs.services.grader_check import INVALID, located
from jobs.services.once import Ticket
from jobs.services.rows import first_rows
from jobs.services.stored_graders import Resolved, resolve
from jobs.services.submit import Submission, repeated, submission, submit
from jobs.services.trial import ROWS, Note, try_grader
from jobs.services.tuned_models import Weights
from jobs.states import State
from jobs.tables import File, Job
from jobs.wire.recipe import Method, build, method_of
from jobs.wire.request import CreateJob

MIN_TRAINING_ROWS = 10
"""OpenAI's minimum."""


def create(
    ctx: Context, project_id: str, body: CreateJob, idempotency_key: str | None = None, ticket: Ticket | None = None
) -> Job:
    """Make a queued job.

    Raises:
        NotFound: no such model.
        InvalidRequest: no such checkpoint to go on from, or anything else wrong with the request.
        InsufficientQuota: as many jobs of the project wait as may.
        Conflict: the key was used with another body.
    """
    wanted = submission(project_id, idempotency_key, body.model_dump(mode="json", exclude_unset=True), ticket)
    return repeated(ctx, wanted) or make(ctx, wanted, body)


def make(ctx: Context, wanted: Submission, body: CreateJob, source: Job | None = None) -> Job:
    """Make the job of a request that is not a repetition, cloned from `source` if given. Raises as `create`."""
    method = method_of(body)
    where = scheduling.columns(ctx, body.rl)
    with ctx.db.read() as session:  # before the grader is tried; again in the transaction
        start_of(ctx, session, wanted.project_id, body, method)
    grader, notes = tried_grader(ctx, wanted.project_id, body, method)

    def enter(session: Session) -> Job:
        origin = f"Cloned from {source.id}" if source is not None else None
        job = _row(ctx, session, wanted, body, method, grader, where, source)
        told = list(notes)
        if job.resume_checkpoint_id is not None:
            told.insert(0, ("info", f"Goes on from the checkpoint {job.resume_checkpoint_id} of step {job.last_step}"))
        return enter_queue(session, job, origin, told)

    return submit(ctx, wanted, enter)


def require_model(ctx: Context, model: str) -> None:
    """Raises NotFound when there is no such base model."""
    if ctx.catalog.get(model) is None:
        raise tuned_models.unknown(model)


def tuned_model(job_id: str, project_id: str, model: str, suffix: str | None) -> str:
    """The name of a job's result."""
    return f"ft:{_slug(model)}:{project_id}:{_slug(suffix or '')}:{short(job_id)}"


def enter_queue(session: Session, job: Job, origin: str | None = None, notes: Sequence[Note] = ()) -> Job:
    """Insert a validated job and let workers have it; the job as it is then.

    Args:
        origin: what it was made from.
        notes: what was seen while it was validated.

    Raises:
        MissingSecret: a secret of its grader has been deleted meanwhile.
    """
    stored_secrets.hold(session, job.project_id, job.recipe)
    job_rows.insert(session, job)
    events.append(session, job.id, None, "info", f"Created fine-tuning job: {job.id}", data=origin_of.current())
    told: list[Note] = [("info", origin)] if origin is not None else []
    told += [("info", f"Validating training file: {job.training_file}"), *notes]
    for level, message in [*told, ("info", "Files validated, moving job to queued state")]:
        events.append(session, job.id, None, level, message)
    job_rows.queue(session, job.id)
    return job_rows.get(session, job.project_id, job.id) or job


def _row(
    ctx: Context,
    session: Session,
    wanted: Submission,
    body: CreateJob,
    method: Method,
    grader: Resolved | None,
    where: dict[str, Any],
    source: Job | None,
) -> Job:
    project_id = wanted.project_id
    start = start_of(ctx, session, project_id, body, method)
    train = dataset(session, project_id, body.training_file, "training_file", method)
    valid = None
    if body.validation_file is not None:
        valid = dataset(session, project_id, body.validation_file, "validation_file", method)
    seed = body.seed if body.seed is not None else secrets.randbelow(2**31)
    spec = grader.spec if grader is not None else None
    recipe, shown = build(body, seed, train["rows"], valid["rows"] if valid else None, spec)
    origin = resuming.origin_of(ctx, session, project_id, body)
    if origin is not None:
        resuming.require_fit(origin, recipe)
    if grader is not None:
        shown[method.type]["grader"] = grader.shown
    job_id = new_id(JOB)
    return Job(
        id=job_id,
        project_id=project_id,
        idempotency_key=wanted.key,
        request_hash=wanted.digest,
        request=body.model_dump(mode="json", exclude_unset=True),
        source_job_id=source.id if source is not None else None,
        **start,
        training_file=body.training_file,
        validation_file=body.validation_file,
        suffix=body.suffix,
        tags=body.metadata or None,
        seed=seed,
        method=shown,
        recipe=recipe.model_dump(mode="json"),
        tuned_model=tuned_model(job_id, project_id, start["base_model"] or body.model, body.suffix),
        total_steps=recipe.method.max_steps,
        state=State.VALIDATING,
        desired="run",
        attempts_left=ctx.settings.max_attempts,
        max_attempts=ctx.settings.max_attempts,
        **where,
    )


def start_of(ctx: Context, session: Session, project_id: str, body: CreateJob, method: Method) -> dict[str, Any]:
    """The columns that say which weights a job starts from, and where it goes on. A checkpoint is held, so that nobody
    deletes it before the job exists. Raises NotFound, InvalidRequest."""
    origin = resuming.origin_of(ctx, session, project_id, body)
    if origin is not None and origin.load_optimizer:
        found = resuming.columns(session, origin)
    elif origin is not None:
        found = _start_at(session, origin.weights, body.model, origin.checkpoint.name)
    else:
        found = _start_at(session, tuned_models.resolve(ctx, session, project_id, body.model), body.model, body.model)
    if found.get("start_checkpoint_id") is not None:
        _require_merged(method)
    return found


def _start_at(session: Session, weights: Weights, model: str, name: str) -> dict[str, Any]:
    """The columns of a job with the model `model` that starts from weights called `name`. Raises NotFound."""
    if weights.checkpoint is None or weights.job is None:
        return {"model": model, "base_model": None}
    held = checkpoints.hold(session, weights.checkpoint.id)
    if held is None:  # deleted since
        raise tuned_models.unknown(name)
    origin = {"model": name, "checkpoint": held.id, "job": weights.job.id, "step": held.step}
    return {
        "model": model,
        "base_model": weights.base.id,
        "start_checkpoint_id": held.id,
        "lineage": [origin, *(weights.job.lineage or [])],
    }


def _require_merged(method: Method) -> None:
    """Raises InvalidRequest for a job over a tuned model that would write adapters alone."""
    lora = getattr(method.block.hyperparameters, "lora", None)
    if lora is not None and lora.checkpoints == "adapter":
        param = f"{method.path}.lora.checkpoints"
        message = f"{param}: an adapter alone is of use over a base model only: with a tuned model it must be merged."
        raise InvalidRequest(message, param)


def dataset(session: Session, project_id: str, file_id: str, param: str, method: Method | None) -> dict[str, Any]:
    """The summary of a file that suits the method, if given; locked, so that nobody deletes it before the job exists.

    Raises InvalidRequest.
    """
    code = f"invalid_{param}"
    file = files.get(session, project_id, file_id, lock="share")
    if file is None:
        raise InvalidRequest(f"No such File object: {file_id}", param, code)
    if file.problem is not None:
        raise InvalidRequest(f"File {file_id} cannot be used. {file.problem}", param, code)
    if file.summary is None:
        raise InvalidRequest(f"File {file_id} has purpose {file.purpose}, not fine-tune.", param, code)
    rows = file.summary["rows"]
    if param == "training_file" and rows < MIN_TRAINING_ROWS:
        message = f"Training file has {rows} example(s), but must have at least {MIN_TRAINING_ROWS} examples."
        raise InvalidRequest(message, param, "invalid_n_examples")
    if method is not None:
        _check_rows(file, param, method)
    return file.summary


def _check_rows(file: File, param: str, method: Method) -> None:
    """Refuse rows that are not of the method's kind; the check of the upload has seen them all."""
    summary = file.summary
    assert summary is not None
    if param == "validation_file" and method.grader is not None and method.type != "reinforcement":
        return  # answers are sampled and graded; what the row answers is ignored
    if method.type == "dpo":
        # Absent: the file was checked when conversations were all there was.
        line = summary.get("first_not_preference", 1)
        needs = "input.messages, preferred_output and non_preferred_output"
    elif method.type == "reinforcement":
        line, needs = summary["first_not_user"], "messages, the last of them the user's, the prompt to answer"
    else:
        line, needs = summary["first_not_answer"], "messages, the last of them the assistant's, the answer to learn"
    if line is not None:
        message = f"Line {line} of {file.id}: method {method.type} needs {needs}."
        raise InvalidRequest(message, param, f"invalid_{param}")


def tried_grader(
    ctx: Context, project_id: str, body: CreateJob, method: Method
) -> tuple[Resolved | None, Sequence[Note]]:
    """The method's grader without references, and what trying it showed. Raises InvalidRequest."""
    if method.block.grader is None:
        return None, ()
    rows = {param: rows_of(ctx, project_id, getattr(body, param)) for param in ("training_file", "validation_file")}
    with located(f"method.{method.type}.grader", INVALID):
        resolved = resolve(ctx, project_id, method.block.grader)
        usable = {param: found for param, found in rows.items() if found}
        return resolved, try_grader(ctx, project_id, resolved.spec, usable)


def rows_of(ctx: Context, project_id: str, file_id: str | None) -> list[dict[str, Any]]:
    """The first rows of a file; none when the file cannot be used, which `dataset` has the words for."""
    with ctx.db.read() as session:
        file = files.get(session, project_id, file_id) if file_id is not None else None
    return [] if file is None or file.summary is None else first_rows(ctx, file, ROWS)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-")
