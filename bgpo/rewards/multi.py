"""OpenAI's `multi`: several graders, and a formula over their keys.

The graders run beside each other, each on the whole batch. A sub-grader's error is the result's error, also when the
formula would not read its score: a sum in which one term means nothing would be one more silent zero. `solved` means
that every sub-grader says solved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from bgpo.rewards.formula import FormulaError, compile_formula
from bgpo.rewards.grade import Grade, GradeErrorInfo, Grader, Part, Sample, clipped
from bgpo.rewards.spec import MultiSpec


class MultiGrader(Grader):
    """Compiled `multi`. Metrics keep their names when only one sub-grader has them, else become `key.name`."""

    def __init__(self, spec: MultiSpec, graders: Mapping[str, Grader]) -> None:
        self.name, self.type = spec.name, spec.type
        self._graders = dict(graders)
        self._range = spec.range
        self._formula = compile_formula(spec.calculate_output, self._graders)
        owners = Counter(metric for grader in graders.values() for metric in grader.metric_names)
        self._renamed = {
            (key, metric): metric if owners[metric] == 1 else f"{key}.{metric}"
            for key, grader in graders.items()
            for metric in grader.metric_names
        }
        self.metric_names = tuple(self._renamed.values())

    def close(self) -> None:
        for grader in self._graders.values():
            grader.close()

    def _grade_all(self, samples: Sequence[Sample], items: Sequence[Mapping[str, Any]]) -> list[Grade]:
        with ThreadPoolExecutor(len(self._graders)) as executor:
            columns = executor.map(lambda grader: grader.grade_all(samples, items), self._graders.values())
            return [self._combined(dict(zip(self._graders, row, strict=True))) for row in zip(*columns, strict=True)]

    def _grade(self, sample: Sample, item: Mapping[str, Any]) -> Grade:
        return self._grade_all([sample], [item])[0]

    def _combined(self, grades: Mapping[str, Grade]) -> Grade:
        parts = {key: _part(key, grade) for key, grade in grades.items()}
        scores = {key: grade.score for key, grade in grades.items() if grade.error is None}
        metrics = {
            self._renamed[key, metric]: value
            for key, grade in grades.items()
            for metric, value in grade.metrics.items()
        }
        error = _first_error(grades)
        score = 0.0
        if error is None:
            try:
                score = clipped(self._formula.evaluate(scores), self._range)
            except FormulaError as fault:
                error = GradeErrorInfo("formula_parse_error", f"calculate_output: {fault}")
        solved = error is None and all(grade.solved for grade in grades.values())
        details = tuple(f"{key}: {line}" for key, grade in grades.items() for line in grade.details)
        return Grade(score, solved=solved, metrics=metrics, error=error, details=details, parts=parts)


def _part(key: str, grade: Grade) -> Part:
    (part,) = grade.parts.values()  # graders of a multi are single ones
    return replace(part, name=key)


def _first_error(grades: Mapping[str, Grade]) -> GradeErrorInfo | None:
    for key, grade in grades.items():
        if grade.error is not None:
            return replace(grade.error, message=f"{key}: {grade.error.message}")
    return None
