"""OpenAI's `multi`: several graders on the same sample, combined by a formula over their keys.

A sub-grader that fails makes the whole result an error: a formula over a score that means nothing would be one more
silent zero. `solved` means that every sub-grader says solved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from bgpo.rewards.formula import FormulaError, compile_formula
from bgpo.rewards.grade import Grade, GradeErrorInfo, Grader, Sample


class MultiGrader(Grader):
    """Compiled `multi`. Metrics keep their names when only one sub-grader has them, else become `key.name`."""

    def __init__(self, name: str, graders: Mapping[str, Grader], calculate_output: str) -> None:
        self.name = name
        self._graders = dict(graders)
        self.concurrency = max(grader.concurrency for grader in graders.values())
        self._formula = compile_formula(calculate_output, self._graders)
        owners = Counter(metric for grader in graders.values() for metric in grader.metric_names)
        self._renamed = {
            (key, metric): metric if owners[metric] == 1 else f"{key}.{metric}"
            for key, grader in graders.items()
            for metric in grader.metric_names
        }
        self.metric_names = tuple(self._renamed.values())

    def _grade(self, sample: Sample, item: Mapping[str, Any]) -> Grade:
        grades = {key: grader.grade(sample, item) for key, grader in self._graders.items()}
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
                score = self._formula.evaluate(scores)
            except FormulaError as fault:
                error = GradeErrorInfo("formula_parse_error", f"calculate_output: {fault}")
        solved = error is None and all(grade.solved for grade in grades.values())
        details = tuple(f"{key}: {line}" for key, grade in grades.items() for line in grade.details)
        return Grade(score, solved=solved, metrics=metrics, sub_scores=scores, error=error, details=details)


def _first_error(grades: Mapping[str, Grade]) -> GradeErrorInfo | None:
    for key, grade in grades.items():
        if grade.error is not None:
            return GradeErrorInfo(grade.error.kind, f"{key}: {grade.error.message}")
    return None
