"""What a grader takes and returns, and the base class that turns a grader's own faults into error results.

A fault of the grader or of the item (an unresolved template, a puzzle without a unique solution, a formula without a
value) is a `Grade` with `error` set, never a silent zero: the trainer decides what to do with such samples. A wrong or
hostile model output is not a fault, it scores zero. Programming errors propagate.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bgpo.rewards.templates import Template, UnresolvedVariable

GradeErrorKind = Literal[
    "formula_parse_error",
    "sample_parse_error",
    "truncated_observation_error",
    "unresponsive_reward_error",
    "invalid_variable_error",
    "other_error",
    "python_grader_server_error",
    "python_grader_runtime_error",
    "model_grader_server_error",
    "model_grader_refusal_error",
    "model_grader_parse_error",
]
"""The error flags of OpenAI's `graders.run`."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the model produced."""

    output_text: str

    def variables(self) -> dict[str, Any]:
        """What `{{ sample.… }}` can name; keep in step with `templates.SAMPLE_FIELDS`."""
        return {"output_text": self.output_text}


@dataclass(frozen=True, slots=True)
class GradeErrorInfo:
    """Why a sample could not be graded."""

    kind: GradeErrorKind
    message: str


@dataclass(frozen=True, slots=True)
class Grade:
    """One sample's reward. With `error` set, `score` is 0 and means nothing.

    `sub_scores` maps grader names to scores: a single grader's own name, or the keys of a multi grader. `details` are
    for people: one line for each part of what was graded, such as a test of a program.
    """

    score: float
    solved: bool
    metrics: dict[str, float] = field(default_factory=dict)
    sub_scores: dict[str, float] = field(default_factory=dict)
    error: GradeErrorInfo | None = None
    details: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not math.isfinite(self.score):
            raise ValueError(f"score must be finite, got {self.score}")


class GradeFault(Exception):
    """Raised inside a grader: this sample cannot be graded, through no fault of the model."""

    def __init__(self, message: str, kind: GradeErrorKind = "other_error") -> None:
        super().__init__(message)
        self.info = GradeErrorInfo(kind, message)


class Grader(ABC):
    """A compiled grader: pure and immutable, safe to share between threads."""

    name: str
    metric_names: tuple[str, ...] = ()
    """The keys of `Grade.metrics` in every result without error."""
    concurrency: int = 1
    """How many samples are worth grading at a time: more than one where other processes do the work."""

    def grade(self, sample: Sample, item: Mapping[str, Any]) -> Grade:
        """Grade one sample against its dataset row; never raises for bad model output or a bad item."""
        try:
            return self._grade(sample, item)
        except GradeFault as fault:
            return Grade(0.0, solved=False, error=fault.info)

    @abstractmethod
    def _grade(self, sample: Sample, item: Mapping[str, Any]) -> Grade:
        """Grade, or raise GradeFault."""


def rendered(template: Template, sample: Sample, item: Mapping[str, Any]) -> str:
    """Render a template inside a grader. Raises GradeFault when a variable does not resolve."""
    try:
        return template.render(sample.variables(), item)
    except UnresolvedVariable as error:
        raise GradeFault(str(error), "invalid_variable_error") from error
