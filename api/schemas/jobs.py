"""Fine-tuning jobs, their events, metrics and samples on the wire."""

from __future__ import annotations

import json
from typing import Any, Literal, get_args

from pydantic import BaseModel, Field

from api.schemas.lists import Listed
from bgpo.spec import GradingSpec
from jobs.repositories.events import Level
from jobs.repositories.queue import Waiting
from jobs.services import scheduling
from jobs.states import State, WireStatus, wire_status
from jobs.tables import DEFAULT_ORGANIZATION, Event, Job, LogLine, Sample
from jobs.wire.request import OnExceed, PriorityName

Phase = Literal[
    "validating",
    "waiting_for_gpu",
    "retrying",
    "loading_model",
    "rollout",
    "grading",
    "training",
    "evaluating",
    "checkpointing",
    "pausing",
    "cancelling",
]
StopReason = Literal["early_stopping", "budget_exceeded"]
_PHASES: dict[State, Phase] = {
    State.VALIDATING: "validating",
    State.CANCELLING: "cancelling",
    State.PAUSING: "pausing",
}


class JobErrorObject(BaseModel):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class ResourcesObject(BaseModel):
    """What a job needs of a worker, and for how long."""

    gpus: int
    gpu_type: str | None
    max_runtime_s: float | None


class BudgetObject(BaseModel):
    """What a job may use, and what happens then."""

    gpu_seconds: float | None
    judge_tokens: int | None
    on_exceed: OnExceed


class ResumeObject(BaseModel):
    """What a job was asked to go on from."""

    checkpoint: str
    load_optimizer: bool


class PauseReason(BaseModel):
    """Why the service paused a job."""

    code: str
    message: str


class FailureObject(BaseModel):
    """The failure record: what happened, where, and what to change."""

    code: str = Field(description="One of docs/failures.md.")
    phase: str | None = Field(description="What the run was doing.")
    step: int | None
    message: str = Field(description="Ends with what to change.")
    log_tail: str | None = Field(description="The end of the trainer's log, and a traceback of the job's own grader.")
    attempt: int = Field(description="Number of the attempt that ended the job; 0 when no worker ever had it.")


class Ancestor(BaseModel):
    """A tuned model that a job's weights descend from."""

    model: str = Field(description="As the request named it.")
    checkpoint: str
    job: str = Field(description="The job that made it.")
    step: int


class JobBase(BaseModel):
    """Which weights a job starts from."""

    model: str = Field(description="The base model under all of it.")
    checkpoint: str | None = Field(description="The checkpoint it starts from; null = the base model's own weights.")
    lineage: list[Ancestor] = Field(description="All tuned models in between, the nearest first.")


class JobDetails(BaseModel):
    """`rl`: what OpenAI's job object has no place for."""

    base: JobBase
    resume_from: ResumeObject | None
    priority: PriorityName
    resources: ResourcesObject
    budget: BudgetObject
    webhook_url: str | None
    source_job: str | None = Field(description="The job that this one retries or was cloned from.")
    queue_position: int | None = Field(
        description="Of a queued job: 1 starts next. Null in lists; GET /v1/fine_tuning/queue has all."
    )
    wait_reason: str | None = Field(description="Of a queued job: what it waits for. Null where the position is.")
    pause_reason: PauseReason | None = Field(description="Of a job that the service paused, not its user.")
    failure: FailureObject | None = Field(description="Of a failed job.")
    phase: Phase | None = Field(description="Of a job that is not over: what it waits for or does.")
    step: int = Field(description="Last step begun.")
    total_steps: int
    attempt: int = Field(description="Times a worker has taken the job.")
    attempts_left: int = Field(description="Crashes it may still have before the next checkpoint.")
    started_at: int | None
    stop_reason: StopReason | None = Field(
        description="Why a job succeeded before its last step: evaluations did not improve any more, or its budget was "
        "used up."
    )
    eval: dict[str, Any]
    checkpointing: dict[str, Any]
    early_stopping: dict[str, Any] | None
    on_grader_error: Literal["drop", "zero", "fail"]
    max_error_rate: float
    sample_log: int


class JobObject(Listed):
    """A fine-tuning job."""

    id: str = Field(examples=["ftjob-0197..."])
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    estimated_finish: int | None = None
    status: WireStatus
    model: str = Field(description="What the job starts from, as the request named it.")
    fine_tuned_model: str | None = Field(description="Name of the result, once the job has succeeded.")
    training_file: str
    validation_file: str | None
    result_files: list[str] = Field(description="Of a job that has succeeded: step_metrics.csv and metrics.jsonl.")
    trained_tokens: int | None = None
    method: dict[str, Any] = Field(description="With the values that the job uses for everything left out or auto.")
    hyperparameters: dict[str, Any] = Field(description="Deprecated; of supervised jobs.")
    seed: int
    error: JobErrorObject | None
    metadata: dict[str, str] | None
    organization_id: str = DEFAULT_ORGANIZATION
    integrations: list[Any] | None = None
    user_provided_suffix: str | None
    rl: JobDetails


class JobDeleted(BaseModel):
    """Answer to a deletion."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    deleted: Literal[True] = True


class EventObject(Listed):
    """Something that happened to a job."""

    id: str = Field(examples=["ftevent-0197..."])
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any] | None


class MetricsPoint(BaseModel):
    """The values of one step."""

    step: int
    split: Literal["train", "validation"]
    values: dict[str, float]


class MetricSeries(BaseModel):
    """All values asked for, by step."""

    object: Literal["list"] = "list"
    data: list[MetricsPoint]
    has_more: bool = Field(False, description="There are later steps; only with `limit`.")


class SampleObject(Listed):
    """A logged rollout."""

    id: str = Field(description="Within its job: step.split.index.")
    object: Literal["fine_tuning.job.sample"] = "fine_tuning.job.sample"
    step: int
    split: Literal["train", "validation"]
    index: int
    prompt: str
    completion: str
    reward: float | None
    scores: dict[str, float]
    error: str | None


class LogLineObject(Listed):
    """A line that a trainer printed."""

    id: str = Field(description="Rises from line to line.")
    object: Literal["fine_tuning.job.log_line"] = "fine_tuning.job.log_line"
    created_at: float = Field(description="When the worker read it.")
    level: Level = Field(description="Guessed from the words of the line.")
    text: str
    attempt: int


def job_object(job: Job, waiting: Waiting | None = None) -> JobObject:
    """A row as the wire has it; `waiting` is its place in the queue, None where that is not looked up."""
    state = State(job.state)
    error = None
    if job.error_code is not None:
        error = JobErrorObject(code=job.error_code, message=job.error_message or "", param=job.error_param)
    return JobObject(
        id=job.id,
        created_at=int(job.created_at),
        finished_at=_seconds(job.finished_at),
        status=wire_status(state),
        model=job.model,
        fine_tuned_model=job.tuned_model if state == State.SUCCEEDED else None,
        training_file=job.training_file,
        validation_file=job.validation_file,
        result_files=job.result_files or [],
        method=job.method,
        hyperparameters=_deprecated_hyperparameters(job),
        seed=job.seed,
        error=error,
        metadata=job.tags,
        user_provided_suffix=job.suffix,
        rl=_details(job, state, waiting),
    )


def event_object(event: Event) -> EventObject:
    """A row as the wire has it."""
    shown = {name: getattr(event, name) for name in ("id", "level", "message", "type", "data")}
    return EventObject.model_validate(shown | {"created_at": int(event.created_at)})


def sample_object(row: Sample) -> SampleObject:
    """A row as the wire has it."""
    names = ("step", "split", "index", "prompt", "completion", "reward", "scores", "error")
    shown = {name: getattr(row, name) for name in names}
    return SampleObject.model_validate(shown | {"id": f"{row.step}.{row.split}.{row.index}"})


def log_line_object(row: LogLine) -> LogLineObject:
    """A row as the wire has it."""
    shown = {"id": str(row.seq), "created_at": row.created_at, "level": row.level, "text": row.text}
    return LogLineObject.model_validate(shown | {"attempt": row.epoch})


def log_line_json(row: LogLine) -> str:
    """A line as one line of JSON, for streams."""
    return json.dumps(log_line_object(row).model_dump(mode="json"), ensure_ascii=False, separators=(",", ":"))


def event_json(event: Event) -> str:
    """An event as one line of JSON, for streams."""
    return json.dumps(event_object(event).model_dump(mode="json"), ensure_ascii=False, separators=(",", ":"))


def _details(job: Job, state: State, waiting: Waiting | None) -> JobDetails:
    queued = waiting if state == State.QUEUED else None
    grading = GradingSpec.model_validate(job.recipe.get("grading", {}))  # absent in jobs of before it existed
    pause = None
    if state == State.PAUSED and job.pause_code is not None:
        pause = PauseReason(code=job.pause_code, message=job.pause_message or "")
    return JobDetails(
        base=JobBase.model_validate(
            {"model": job.base, "checkpoint": job.start_checkpoint_id, "lineage": job.lineage or []}
        ),
        resume_from=_resume_from(job),
        **scheduling.of_job(job),
        source_job=job.source_job_id,
        queue_position=queued.position if queued else None,
        wait_reason=queued.reason if queued else None,
        pause_reason=pause,
        failure=_failure(job, state),
        phase=_phase(job, state),
        step=job.last_step,
        total_steps=job.total_steps,
        attempt=job.epoch,
        attempts_left=job.attempts_left,
        started_at=_seconds(job.started_at),
        stop_reason=_stop_reason(job, state),
        eval=job.recipe["evaluation"],
        checkpointing=job.recipe["checkpointing"],
        early_stopping=job.recipe.get("early_stopping"),  # absent in jobs of before it existed
        on_grader_error=grading.on_error,
        max_error_rate=grading.max_error_rate,
        sample_log=job.recipe["sample_log"],
    )


def _resume_from(job: Job) -> ResumeObject | None:
    asked = ((job.request or {}).get("rl") or {}).get("resume_from")
    return None if asked is None else ResumeObject.model_validate({"load_optimizer": True} | asked)


def _failure(job: Job, state: State) -> FailureObject | None:
    if state != State.FAILED or job.error_code is None:
        return None
    return FailureObject(
        code=job.error_code,
        phase=job.error_phase,
        step=job.error_step,
        message=job.error_message or "",
        log_tail=job.error_log,
        attempt=job.epoch,
    )


def _phase(job: Job, state: State) -> Phase | None:
    if state == State.QUEUED:
        return "retrying" if job.epoch else "waiting_for_gpu"
    if state == State.RUNNING:
        return next((phase for phase in get_args(Phase) if phase == job.phase), "loading_model")
    return _PHASES.get(state)


def _stop_reason(job: Job, state: State) -> StopReason | None:
    stopped = state == State.SUCCEEDED and job.last_step < job.total_steps
    if stopped and job.pause_code == "budget_exceeded":
        return "budget_exceeded"
    return "early_stopping" if stopped and job.recipe.get("early_stopping") else None


def _deprecated_hyperparameters(job: Job) -> dict[str, Any]:
    if job.method["type"] != "supervised":
        return {}
    resolved = job.method["supervised"]["hyperparameters"]
    return {name: resolved[name] for name in ("n_epochs", "batch_size", "learning_rate_multiplier")}


def _seconds(time: float | None) -> int | None:
    return None if time is None else int(time)
