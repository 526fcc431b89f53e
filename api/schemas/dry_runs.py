"""What a create request would come to, on the wire: the problems in it, and what its job would take."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, Field

from jobs.footprint import Range
from jobs.repositories.events import Level
from jobs.services.dry_run import Report
from jobs.services.estimate import Basis, Estimate, Seconds


class ProblemObject(BaseModel):
    """Something a create would be refused for, in the words of its error."""

    message: str
    param: str | None
    code: str


class TrialNote(BaseModel):
    """What trying the grader on the first rows of a file showed."""

    level: Level
    message: str


class ValidationObject(BaseModel):
    """The report on a create request."""

    object: Literal["fine_tuning.job.validation"] = "fine_tuning.job.validation"
    valid: bool
    problems: list[ProblemObject] = Field(description="All of them, as far as one does not hide another.")
    grader: list[TrialNote] = Field(description="What became of the grader on the first rows, with an empty answer.")
    method: dict[str, Any] | None = Field(description="What the job would show: resolved. Null when not valid.")
    total_steps: int | None


class RangeObject(BaseModel):
    """From `low` to `high`."""

    low: int
    high: int


class TimeEstimate(BaseModel):
    """A time, or null where nothing is known."""

    range: RangeObject | None
    basis: Basis = Field(
        description="finished_attempts: of this deployment, as many as `attempts`; formula: docs/jobs.md."
    )
    attempts: int


class QueueEstimate(BaseModel):
    """The queue, were the job created now."""

    position: int
    running: int = Field(description="Jobs of all projects that run.")
    workers: int = Field(description="Connected ones that could run it.")
    wait_seconds: TimeEstimate


class EstimateObject(BaseModel):
    """What a job would take. Ranges, because sampling, early stopping and tokenizers decide."""

    object: Literal["fine_tuning.job.estimate"] = "fine_tuning.job.estimate"
    steps: RangeObject = Field(description="As `rl.total_steps` counts them.")
    optimizer_steps: RangeObject
    prompt_tokens: RangeObject = Field(description="Of a row, guessed from the characters of the first rows.")
    generated_tokens: RangeObject
    trained_tokens: RangeObject = Field(description="Of prompts and answers that are trained on, once each.")
    gpu_seconds: TimeEstimate = Field(description="Accelerators times seconds, of all attempts.")
    disk_bytes: int = Field(description="On the worker, as it asks before it starts.")
    peak_memory_bytes: RangeObject | None = Field(
        description="Of one accelerator; null when the model does not tell its shape."
    )
    judge_calls: RangeObject
    judge_tokens: RangeObject
    queue: QueueEstimate


def validation_object(report: Report) -> ValidationObject:
    """A report as the wire has it."""
    return ValidationObject(
        valid=not report.problems,
        problems=[ProblemObject.model_validate(vars(problem)) for problem in report.problems],
        grader=[TrialNote(level=level, message=message) for level, message in report.notes],
        method=report.method,
        total_steps=report.total_steps,
    )


def estimate_object(found: Estimate) -> EstimateObject:
    """An estimate as the wire has it."""
    return EstimateObject(
        steps=_range(found.work.steps),
        optimizer_steps=_range(found.optimizer_steps),
        prompt_tokens=_range(found.prompt_tokens),
        generated_tokens=_range(found.work.generated_tokens),
        trained_tokens=_range(found.work.trained_tokens),
        gpu_seconds=_time(found.gpu_seconds),
        disk_bytes=found.disk_bytes,
        peak_memory_bytes=None if found.memory is None else _range(found.memory),
        judge_calls=_range(found.judge_calls),
        judge_tokens=_range(found.judge_tokens),
        queue=QueueEstimate(
            position=found.wait.position,
            running=found.wait.running,
            workers=found.wait.workers,
            wait_seconds=_time(found.wait.seconds),
        ),
    )


def _time(seconds: Seconds) -> TimeEstimate:
    range_ = None if seconds.range is None else _range(seconds.range)
    return TimeEstimate(range=range_, basis=seconds.basis, attempts=seconds.attempts)


def _range(found: Range) -> RangeObject:
    return RangeObject(low=math.floor(found.low), high=math.ceil(found.high))
