"""Graders, what they said of samples, and secrets, on the wire.

The answer of graders/run is OpenAI's, key by key; what it has no place for stands under `rl`.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from pydantic import BaseModel, Field

from api.schemas.lists import Listed
from bgpo.rewards import Grade, GradeErrorInfo, GradeErrorKind, Part, Usage
from jobs.repositories.text import clean
from jobs.services.grader_runs import Run
from jobs.services.stored_graders import Stored
from jobs.tables import Secret
from jobs.wire.graders import shown

_KINDS: tuple[GradeErrorKind, ...] = get_args(GradeErrorKind)
_MAX_TEXT = 8192
_MESSAGES = 3
"""Sampled for each grader and kind of error."""


class GraderErrors(BaseModel):
    """Which kinds of error occurred."""

    formula_parse_error: bool
    sample_parse_error: bool
    truncated_observation_error: bool
    unresponsive_reward_error: bool
    invalid_variable_error: bool
    other_error: bool
    python_grader_server_error: bool
    python_grader_server_error_type: str | None
    python_grader_runtime_error: bool
    python_grader_runtime_error_details: str | None
    model_grader_server_error: bool
    model_grader_refusal_error: bool
    model_grader_parse_error: bool
    model_grader_server_error_details: str | None


class RunMetadata(BaseModel):
    """About a run."""

    name: str
    type: str
    execution_time: float = Field(description="Seconds.")
    scores: dict[str, float] = Field(description="Of a multi grader: by key.")
    token_usage: int | None = Field(description="Tokens of all judges together; null without a judge.")
    sampled_model_name: str | None = Field(description="The judge's model, if there was one judge.")
    errors: GraderErrors


class ErrorDetail(BaseModel):
    """An error in words."""

    grader: str = Field(description="Its name; of a multi grader's part, its key.")
    kind: str
    message: str
    details: str | None = Field(description="Traceback of a python grader, answer of a server.")


class RunExtensions(BaseModel):
    """What OpenAI's answer has no place for."""

    solved: bool
    errors: list[ErrorDetail]
    details: list[str] = Field(description="For people, such as a line for each test of a program.")
    metrics: dict[str, float]


class GraderRun(BaseModel):
    """What a grader said of a sample. An error of the grader is a flag here and reward 0."""

    reward: float
    sub_rewards: dict[str, float] = Field(description="Of a multi grader: by key.")
    model_grader_token_usage_per_model: dict[str, dict[str, int]]
    metadata: RunMetadata
    rl: RunExtensions


class ErrorCount(BaseModel):
    """Errors of one kind of one grader."""

    kind: str
    count: int
    messages: list[str] = Field(description="Some of them, each once.")


class GraderStatistics(BaseModel):
    """One grader over a batch."""

    name: str
    type: str
    samples: int
    errors: list[ErrorCount]
    reward_mean: float | None = Field(description="Of the samples without error.")
    latency_p50: float | None = Field(description="Seconds for a sample.")
    latency_p95: float | None


class BatchStatistics(BaseModel):
    """A batch in numbers."""

    samples: int
    failed: int = Field(description="Samples with an error.")
    reward_mean: float | None = Field(description="Of the samples without error.")
    solved_rate: float | None
    seconds: float
    graders: list[GraderStatistics] = Field(description="The grader, or each part of a multi grader.")
    formula_errors: int = Field(description="Samples on which only the formula of a multi grader failed.")
    model_grader_token_usage_per_model: dict[str, dict[str, int]]


class GraderBatchRun(BaseModel):
    """What a grader said of many samples."""

    object: Literal["grader.batch_run"] = "grader.batch_run"
    data: list[GraderRun] = Field(description="In the order of the samples or rows.")
    statistics: BatchStatistics


class ValidatedGrader(BaseModel):
    """A grader that can be used."""

    grader: dict[str, Any] = Field(description="With every default filled in; header values hidden.")


class GraderObject(Listed):
    """A stored grader in one of its versions."""

    id: str = Field(examples=["grader-0197..."])
    object: Literal["grader"] = "grader"
    name: str
    created_at: int = Field(description="Of this version.")
    version: int
    grader: dict[str, Any] = Field(description="Header values are hidden.")


class GraderVersions(BaseModel):
    """Versions of a grader, newest first; the next page starts `after` the last one's number."""

    object: Literal["list"] = "list"
    data: Sequence[GraderObject]
    has_more: bool


class GraderDeleted(BaseModel):
    """Answer to a deletion."""

    id: str
    object: Literal["grader"] = "grader"
    deleted: Literal[True] = True


class SecretObject(BaseModel):
    """A stored secret; its value is never shown."""

    object: Literal["secret"] = "secret"
    name: str
    created_at: int
    updated_at: int


class SecretList(BaseModel):
    """All secrets by name; never paged."""

    object: Literal["list"] = "list"
    data: list[SecretObject]
    has_more: bool = False


class SecretDeleted(BaseModel):
    """Answer to a deletion."""

    name: str
    object: Literal["secret"] = "secret"
    deleted: Literal[True] = True


def grader_run(run: Run, index: int = 0) -> GraderRun:
    """One sample's result as the wire has it."""
    grade = run.grades[index]
    usages = _usages([grade])
    scores = grade.sub_scores if run.spec.type == "multi" else {}
    name = next(iter(usages)) if len(usages) == 1 else None
    metadata = RunMetadata(
        name=run.name,
        type=run.spec.type,
        execution_time=max((part.seconds for part in grade.parts.values()), default=run.seconds),
        scores=scores,
        token_usage=sum(used["total_tokens"] for used in usages.values()) if usages else None,
        sampled_model_name=name,
        errors=_flags(grade),
    )
    return GraderRun(
        reward=grade.score,
        sub_rewards=scores,
        model_grader_token_usage_per_model=usages,
        metadata=metadata,
        rl=RunExtensions(
            solved=grade.solved,
            errors=[_detail(name, error) for name, error in _errors(run.name, grade)],
            details=[clean(line, _MAX_TEXT) for line in grade.details],
            metrics=grade.metrics,
        ),
    )


def batch_run(run: Run) -> GraderBatchRun:
    """A batch as the wire has it."""
    good = [grade for grade in run.grades if grade.error is None]
    parts: dict[str, list[Part]] = defaultdict(list)
    for grade in run.grades:
        for name, part in grade.parts.items():
            parts[name].append(part)
    only_formula = [
        grade for grade in run.grades if grade.error is not None and not any(p.error for p in grade.parts.values())
    ]
    statistics = BatchStatistics(
        samples=len(run.grades),
        failed=len(run.grades) - len(good),
        reward_mean=_mean([grade.score for grade in good]),
        solved_rate=_mean([float(grade.solved) for grade in good]),
        seconds=run.seconds,
        graders=[_statistics(name, found) for name, found in parts.items()],
        formula_errors=sum(grade.error.kind == "formula_parse_error" for grade in only_formula if grade.error),
        model_grader_token_usage_per_model=_usages(run.grades),
    )
    return GraderBatchRun(data=[grader_run(run, index) for index in range(len(run.grades))], statistics=statistics)


def grader_object(stored: Stored) -> GraderObject:
    """A stored grader as the wire has it."""
    return GraderObject(
        id=stored.grader.id,
        name=stored.grader.name,
        created_at=int(stored.version.created_at),
        version=stored.version.version,
        grader=shown(stored.version.definition),
    )


def secret_object(row: Secret) -> SecretObject:
    """A row as the wire has it."""
    return SecretObject(name=row.name, created_at=int(row.created_at), updated_at=int(row.updated_at))


def _errors(name: str, grade: Grade) -> list[tuple[str, GradeErrorInfo]]:
    """The errors of the parts, or that of the whole when it has another cause, such as its formula."""
    found = [(part.name, part.error) for part in grade.parts.values() if part.error is not None]
    return found or ([(name, grade.error)] if grade.error is not None else [])


def _flags(grade: Grade) -> GraderErrors:
    infos = [error for _, error in _errors("", grade)]
    text = {info.kind: clean(info.details or info.message, _MAX_TEXT) for info in reversed(infos)}
    flags: dict[str, Any] = {kind: kind in text for kind in _KINDS}
    return GraderErrors.model_validate(
        flags
        | {
            "python_grader_server_error_type": text.get("python_grader_server_error"),
            "python_grader_runtime_error_details": text.get("python_grader_runtime_error"),
            "model_grader_server_error_details": text.get("model_grader_server_error"),
        }
    )


def _detail(name: str, error: GradeErrorInfo) -> ErrorDetail:
    details = None if error.details is None else clean(error.details, _MAX_TEXT)
    return ErrorDetail(grader=name, kind=error.kind, message=clean(error.message, _MAX_TEXT), details=details)


def _usages(grades: Sequence[Grade]) -> dict[str, dict[str, int]]:
    totals: dict[str, dict[str, int]] = {}
    for usage in (part.usage for grade in grades for part in grade.parts.values()):
        if usage is not None:
            _add(totals.setdefault(usage.model, {}), usage)
    return totals


def _add(total: dict[str, int], usage: Usage) -> None:
    used: Mapping[str, int] = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
    for name, count in used.items():
        total[name] = total.get(name, 0) + count


def _statistics(name: str, parts: Sequence[Part]) -> GraderStatistics:
    counts = Counter(part.error.kind for part in parts if part.error is not None)
    messages: dict[str, dict[str, None]] = defaultdict(dict)  # as a set that keeps its order
    for part in parts:
        if part.error is not None and len(messages[part.error.kind]) < _MESSAGES:
            messages[part.error.kind][clean(part.error.message, _MAX_TEXT)] = None
    seconds = sorted(part.seconds for part in parts)
    return GraderStatistics(
        name=name,
        type=parts[0].type,
        samples=len(parts),
        errors=[ErrorCount(kind=kind, count=n, messages=list(messages[kind])) for kind, n in counts.most_common()],
        reward_mean=_mean([part.score for part in parts if part.score is not None]),
        latency_p50=_percentile(seconds, 0.5),
        latency_p95=_percentile(seconds, 0.95),
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _percentile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest value that at least `share` of all do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None
