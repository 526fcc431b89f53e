"""Evaluations and exports on the wire."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, Field

from api.schemas.jobs import JobErrorObject, PauseReason
from api.schemas.lists import Listed
from jobs.services.tasks import Task, answers_of
from jobs.states import State, WireStatus, wire_status
from jobs.tables import Job, Sample

Mode = Literal["sampled", "greedy"]


class TaskObject(Listed):
    """What evaluations and exports share."""

    created_at: int
    started_at: int | None = Field(description="When a worker first took it.")
    finished_at: int | None
    status: WireStatus
    phase: str | None = Field(description="While it runs: loading_model, evaluating, exporting or checkpointing.")
    model: str = Field(description="As the request named it.")
    base_model: str = Field(description="The base model under it.")
    checkpoint: str | None = Field(description="The checkpoint it is; null = the base model itself.")
    error: JobErrorObject | None = Field(description="Of a failed one.")
    pause_reason: PauseReason | None = Field(description="Of one that the service paused.")
    metadata: dict[str, str] | None


class Score(BaseModel):
    """The answers of one way of decoding, in numbers. Null where nothing could be graded, or for the errors of means
    where there are fewer than two rows."""

    responses: int
    graded: int = Field(description="Those that count: all but those that were dropped for an error.")
    errors: int = Field(description="Answers that the grader failed on.")
    mean: float | None = Field(description="Mean reward of those graded.")
    stderr: float | None = Field(description="Its standard error, over rows.")
    pass_rate: float | None = Field(description="Share of those graded that the grader calls solved.")
    pass_rate_stderr: float | None


class EvaluationResults(BaseModel):
    """The aggregate."""

    sampled: Score = Field(description="At the sampler's temperature; several answers a row if asked for.")
    greedy: Score = Field(description="One answer a row at temperature 0.")
    metrics: dict[str, float] = Field(description="All of them, by the names that a job's evaluations have.")


class EvaluationObject(TaskObject):
    """Answers of a model to the rows of a file, graded."""

    id: str = Field(examples=["fteval-0197..."])
    object: Literal["fine_tuning.evaluation"] = "fine_tuning.evaluation"
    file: str
    grader: dict[str, Any]
    sampler: dict[str, Any]
    samples: int | None = Field(description="Rows used; null = all.")
    answers: int = Field(description="Sampled answers per row.")
    batch_size: int
    seed: int
    precision: Literal["float32", "bfloat16"]
    on_grader_error: Literal["drop", "zero", "fail"]
    total_responses: int = Field(description="Answers there will be, the greedy ones included.")
    results: EvaluationResults | None = Field(description="Once it has succeeded.")


class EvaluationSampleObject(Listed):
    """One graded answer."""

    id: str = Field(description="Within its evaluation: rises row by row, the greedy answer of a row last.")
    object: Literal["fine_tuning.evaluation.sample"] = "fine_tuning.evaluation.sample"
    row: int = Field(description="Of the file, from 0.")
    decoding: Mode
    answer: int | None = Field(description="Number among the sampled ones of its row, from 0; null for the greedy one.")
    prompt: str = Field(description="The user's last message.")
    completion: str
    reward: float | None = Field(description="Null when the grader failed and such answers are dropped.")
    scores: dict[str, float] = Field(description="Of each grader of a multi grader, or of the one there is.")
    error: str | None


class ExportObject(TaskObject):
    """A checkpoint's weights, made ready for use elsewhere."""

    id: str = Field(examples=["ftexport-0197..."])
    object: Literal["fine_tuning.export"] = "fine_tuning.export"
    content: Literal["merged", "adapter"]
    dtype: Literal["float32", "bfloat16", "float16"]
    bytes: int | None = Field(description="Of all files, once it has succeeded.")
    manifest_sha256: str | None = Field(description="Identifies the content of all files together.")


class EvaluationDeleted(BaseModel):
    """Answer to a deletion."""

    id: str
    object: Literal["fine_tuning.evaluation"] = "fine_tuning.evaluation"
    deleted: Literal[True] = True


class ExportDeleted(BaseModel):
    """Answer to a deletion."""

    id: str
    object: Literal["fine_tuning.export"] = "fine_tuning.export"
    deleted: Literal[True] = True


def evaluation_object(task: Task) -> EvaluationObject:
    """A row as the wire has it."""
    job, recipe = task.job, task.job.recipe
    metrics = dict(task.result.metrics) if task.result is not None else None
    return EvaluationObject(
        **_shared(job),
        file=job.validation_file or "",
        grader=job.method["grader"],
        sampler=recipe["method"]["rollout"],
        samples=recipe["evaluation"]["samples"],
        answers=answers_of(job),
        batch_size=recipe["evaluation"]["batch_size"],
        seed=job.seed,
        precision=recipe["precision"],
        on_grader_error=recipe["grading"]["on_error"],
        total_responses=job.total_steps,
        results=None
        if metrics is None
        else EvaluationResults(sampled=_score(metrics, "sampled"), greedy=_score(metrics, "greedy"), metrics=metrics),
    )


def sample_object(job: Job, row: Sample) -> EvaluationSampleObject:
    """A row as the wire has it."""
    answers = answers_of(job)
    number, answer = divmod(row.index, answers + 1)
    greedy = answer == answers
    return EvaluationSampleObject(
        id=str(row.index),
        row=number,
        decoding="greedy" if greedy else "sampled",
        answer=None if greedy else answer,
        prompt=row.prompt,
        completion=row.completion,
        reward=row.reward,
        scores=row.scores,
        error=row.error,
    )


def export_object(task: Task) -> ExportObject:
    """A row as the wire has it."""
    job, result = task.job, task.result
    return ExportObject(
        **_shared(job),
        content=job.recipe["content"],
        dtype=job.recipe["dtype"],
        bytes=result.bytes if result is not None else None,
        manifest_sha256=result.manifest_sha256 if result is not None else None,
    )


def _shared(job: Job) -> dict[str, Any]:
    state = State(job.state)
    failed = state == State.FAILED
    paused = state == State.PAUSED and job.pause_code is not None
    return {
        "id": job.id,
        "created_at": int(job.created_at),
        "started_at": None if job.started_at is None else int(job.started_at),
        "finished_at": None if job.finished_at is None else int(job.finished_at),
        "status": wire_status(state),
        "phase": job.phase,
        "model": job.model,
        "base_model": job.base,
        "checkpoint": job.start_checkpoint_id,
        "error": JobErrorObject(code=job.error_code or "", message=job.error_message or "", param=job.error_param)
        if failed
        else None,
        "pause_reason": PauseReason(code=job.pause_code or "", message=job.pause_message or "") if paused else None,
        "metadata": job.tags,
    }


def _score(metrics: dict[str, float], mode: Mode) -> Score:
    def value(name: str) -> float | None:
        found = metrics.get(f"{mode}_{name}")
        return found if found is not None and math.isfinite(found) else None

    return Score(
        responses=int(value("responses") or 0),
        graded=int(value("graded") or 0),
        errors=int(value("grader_errors") or 0),
        mean=value("reward_mean"),
        stderr=value("reward_stderr"),
        pass_rate=value("solved_rate"),
        pass_rate_stderr=value("solved_stderr"),
    )
