"""What a batch of grades says in numbers: means, errors by grader and kind, time and tokens of each grader.

Pure functions of the grades and of which of them count. Names of metrics are defined in docs/trainer.md.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Literal

from bgpo.rewards import Grade, GradeErrorInfo

OnError = Literal["drop", "zero", "fail"]

MAX_MESSAGE = 500
MAX_DETAILS = 2048
"""Bytes of a traceback that are kept: the end, where the error stands."""


def counts(grade: Grade, on_error: OnError) -> bool:
    """Whether a sample has a reward: it was graded, or its error counts as 0."""
    return grade.error is None or on_error == "zero"


def summarize(grades: Sequence[Grade], grader: str, on_error: OnError = "drop") -> dict[str, float]:
    """Means over the samples that count, errors and tokens over all.

    Args:
        grader: name of the one that gave the grades.
    """
    errors = sum(grade.error is not None for grade in grades)
    summary = {"responses": float(len(grades)), "grader_errors": float(errors)}
    if grades:
        summary["grader_error_rate"] = errors / len(grades)
    counted = [grade for grade in grades if counts(grade, on_error)]
    if counted:
        summary["solved_rate"] = fmean(grade.solved for grade in counted)
        summary["reward_mean"] = fmean(grade.score for grade in counted)
    for name in sorted({name for grade in counted for name in grade.metrics} - {"solved"}):
        summary[name] = fmean(grade.metrics[name] for grade in counted if name in grade.metrics)
    for name in sorted({name for grade in counted for name in grade.sub_scores}):
        summary[f"reward/{name}"] = fmean(grade.sub_scores[name] for grade in counted if name in grade.sub_scores)
    return summary | error_counts(grades, grader) | token_counts(grades)


def error_counts(grades: Sequence[Grade], grader: str) -> dict[str, float]:
    """`grader_errors/<grader>/<kind>` of those that occurred."""
    found = Counter(f"{name}/{error.kind}" for grade in grades for name, error in errors_of(grade, grader))
    return {f"grader_errors/{name}": float(count) for name, count in sorted(found.items())}


def token_counts(grades: Sequence[Grade]) -> dict[str, float]:
    """Tokens of judges, by model and by grader."""
    found: Counter[str] = Counter()
    for grade in grades:
        for name, part in grade.parts.items():
            if part.usage is not None:
                for whose in (f"judge_tokens/{part.usage.model}", f"grader_tokens/{name}"):
                    found[f"{whose}/prompt"] += part.usage.prompt_tokens
                    found[f"{whose}/completion"] += part.usage.completion_tokens
    return {name: float(count) for name, count in sorted(found.items())}


def grader_seconds(grades: Sequence[Grade]) -> dict[str, float]:
    """`seconds_grader/<grader>`: mean seconds a sample."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for grade in grades:
        for name, part in grade.parts.items():
            found[name].append(part.seconds)
    return {f"seconds_grader/{name}": fmean(seconds) for name, seconds in sorted(found.items())}


def errors_of(grade: Grade, grader: str) -> Iterator[tuple[str, GradeErrorInfo]]:
    """A sample's errors with the graders they belong to: those of a multi grader's parts, else its own."""
    failed = [(name, part.error) for name, part in grade.parts.items() if part.error is not None]
    if failed:
        yield from failed
    elif grade.error is not None:
        yield grader, grade.error


def compact(grade: Grade) -> Grade:
    """The grade as the processes of a run exchange it: without what only people read, errors cut to a fixed size."""
    if grade.error is None:
        return replace(grade, details=())
    parts = {
        name: part if part.error is None else replace(part, error=_cut(part.error))
        for name, part in grade.parts.items()
    }
    error = _cut(grade.error)
    if any(part.error is not None for part in parts.values()):  # the traceback stands there
        error = replace(error, details=None)
    return replace(grade, details=(), error=error, parts=parts)


def _cut(error: GradeErrorInfo) -> GradeErrorInfo:
    message, details = error.message, error.details
    if len(message) > MAX_MESSAGE:
        message = f"{message[: MAX_MESSAGE - 3]}..."
    if details is not None:
        raw = details.encode(errors="replace")
        details = raw[-MAX_DETAILS:].decode(errors="ignore") if len(raw) > MAX_DETAILS else raw.decode()
    return GradeErrorInfo(error.kind, message, details)
