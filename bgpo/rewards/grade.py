"""What a grader takes and returns, and the base class that turns a grader's own faults into error results.

A fault of the grader or of the item (an unresolved template, a puzzle without a unique solution, a formula without a
value) is a `Grade` with `error` set, never a silent zero: the trainer decides what to do with such samples. A wrong or
hostile model output is not a fault, it scores zero. Programming errors propagate.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Self

from bgpo.rewards.strict_json import parse_json
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


@dataclass(frozen=True)
class Sample:
    """What the model produced."""

    output_text: str

    def variables(self) -> dict[str, Any]:
        """What `{{ sample.… }}` can name, all of it JSON; keep in step with `templates.SAMPLE_FIELDS`.

        `output_json` is there when the text is JSON as `strict_json` reads it.
        """
        return dict(self._variables)

    @cached_property
    def _variables(self) -> dict[str, Any]:
        message = {"role": "assistant", "content": self.output_text}
        fields = {"output_text": self.output_text, "output_tools": [], "choices": [{"index": 0, "message": message}]}
        with suppress(ValueError):
            fields["output_json"] = parse_json(self.output_text)
        return fields


@dataclass(frozen=True, slots=True)
class GradeErrorInfo:
    """Why a sample could not be graded."""

    kind: GradeErrorKind
    message: str
    details: str | None = None
    """Traceback of the user's own code, or what a server answered: for the author of the grader."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that a judge model used for one sample."""

    model: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Part:
    """What one grader, alone or of several, said of a sample."""

    name: str
    type: str
    score: float | None
    """None with an error."""
    error: GradeErrorInfo | None
    seconds: float
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Grade:
    """One sample's reward. With `error` set, `score` is 0 and means nothing.

    `details` are for people: one line for each part of what was graded, such as a test of a program. `parts` is filled
    in by `Grader.grade`: a single grader's own name, or the keys of a multi grader.
    """

    score: float
    solved: bool
    metrics: dict[str, float] = field(default_factory=dict)
    error: GradeErrorInfo | None = None
    details: tuple[str, ...] = ()
    usage: Usage | None = None
    parts: dict[str, Part] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not math.isfinite(self.score):
            raise ValueError(f"score must be finite, got {self.score}")

    @property
    def sub_scores(self) -> dict[str, float]:
        """Scores by grader, of those that gave one."""
        return {key: part.score for key, part in self.parts.items() if part.score is not None}


class GradeFault(Exception):
    """Raised inside a grader: this sample cannot be graded, through no fault of the model."""

    def __init__(
        self,
        message: str,
        kind: GradeErrorKind = "other_error",
        details: str | None = None,
        usage: Usage | None = None,
    ) -> None:
        super().__init__(message)
        self.info = GradeErrorInfo(kind, message, details)
        self.usage = usage


class Grader(ABC):
    """A compiled grader, safe to share between threads. `close` gives back what it holds: processes, connections.

    A new grader implements `_grade`; one that does better on many samples at once overrides `_grade_all`.
    """

    name: str
    type: str
    metric_names: tuple[str, ...] = ()
    """The keys of `Grade.metrics` in every result without error."""
    concurrency: int = 1
    """How many samples are worth grading at a time: more than one where other processes do the work."""

    def grade(self, sample: Sample, item: Mapping[str, Any]) -> Grade:
        """Grade one sample against its dataset row; never raises for bad model output or a bad item."""
        return self.grade_all([sample], [item])[0]

    def grade_all(self, samples: Sequence[Sample], items: Sequence[Mapping[str, Any]]) -> list[Grade]:
        """Grade samples against their rows, in order, as many at a time as the grader allows.

        Raises:
            ValueError: the lengths differ.
        """
        if len(samples) != len(items):
            raise ValueError(f"{len(samples)} samples and {len(items)} items: give as many of the one as of the other")
        return self._grade_all(samples, items)

    def close(self) -> None:
        """Give back what the grader holds; it cannot grade any more."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _grade_all(self, samples: Sequence[Sample], items: Sequence[Mapping[str, Any]]) -> list[Grade]:
        if self.concurrency == 1 or len(samples) < 2:
            return [self._timed(*pair) for pair in zip(samples, items, strict=True)]
        with ThreadPoolExecutor(min(self.concurrency, len(samples))) as executor:
            return list(executor.map(self._timed, samples, items))

    def _timed(self, sample: Sample, item: Mapping[str, Any]) -> Grade:
        begin = time.perf_counter()
        try:
            grade = self._grade(sample, item)
        except GradeFault as fault:
            grade = Grade(0.0, solved=False, error=fault.info, usage=fault.usage)
        return self._labelled(grade, time.perf_counter() - begin)

    def _labelled(self, grade: Grade, seconds: float) -> Grade:
        """The grade with its part, that of a single grader."""
        score = grade.score if grade.error is None else None
        part = Part(self.name, self.type, score, grade.error, seconds, grade.usage)
        return replace(grade, parts={self.name: part})

    @abstractmethod
    def _grade(self, sample: Sample, item: Mapping[str, Any]) -> Grade:
        """Grade, or raise GradeFault."""


def clipped(score: float, range_: Sequence[float] | None) -> float:
    """A score within the range that its specification declares.

    Raises:
        GradeFault: it is not finite.
    """
    if not math.isfinite(score):
        raise GradeFault(f"the score is {score}: rewards are finite numbers", "unresponsive_reward_error")
    return score if range_ is None else min(max(score, range_[0]), range_[1])


def rendered(template: Template, sample: Sample, item: Mapping[str, Any]) -> str:
    """Render a template inside a grader. Raises GradeFault when a variable does not resolve."""
    try:
        return template.render(sample.variables(), item)
    except UnresolvedVariable as error:
        raise GradeFault(str(error), "invalid_variable_error") from error
