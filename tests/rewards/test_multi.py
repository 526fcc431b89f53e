"""`multi`: the formula over sub-scores, merged metrics, and errors of sub-graders and of the formula."""

from __future__ import annotations

from typing import Any

import pytest

from bgpo.rewards import Grade, Grader, Sample, compile_grader

SUDOKU = {"type": "sudoku", "name": "s", "reward": "cell_accuracy"}
SHORT = {
    "type": "string_check",
    "name": "c",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.solution }}",
    "operation": "eq",
}
ITEM = {"puzzle": "3102200002100320", "solution": "3142243142131324"}


def multi(graders: dict[str, Any], formula: str) -> Grader:
    return compile_grader({"type": "multi", "name": "m", "graders": graders, "calculate_output": formula})


def test_formula_scores_metrics() -> None:
    grader = multi({"grid": SUDOKU, "exact": SHORT}, "0.25 * exact + 0.5 * grid ^ 2")
    right = grader.grade(Sample(ITEM["solution"]), ITEM)
    assert (right.score, right.solved, right.error) == (0.75, True, None)
    assert right.metrics == {"solved": 1.0, "cell_accuracy": 1.0}
    assert right.sub_scores == {"grid": 1.0, "exact": 1.0}
    half = grader.grade(Sample("3142243142131324"[:8] + "0000" * 2), ITEM)
    assert half.sub_scores == {"grid": 0.5, "exact": 0.0}
    assert half.score == 0.125
    assert not half.solved


def test_solved_needs_every_sub_grader() -> None:
    never = {**SHORT, "operation": "ne"}
    assert not multi({"grid": SUDOKU, "never": never}, "grid").grade(Sample(ITEM["solution"]), ITEM).solved


def test_metrics_of_the_same_name_are_prefixed() -> None:
    countdown = {"type": "countdown", "name": "c", "numbers": "1,2", "target": "3"}
    grader = multi({"a": SUDOKU, "b": countdown}, "a + b")
    assert set(grader.metric_names) == {"a.solved", "cell_accuracy", "b.solved", "valid_expression"}
    assert set(grader.grade(Sample("1+2"), ITEM).metrics) == set(grader.metric_names)


def test_failing_sub_grader_is_an_error() -> None:
    grade = multi({"grid": SUDOKU, "exact": SHORT}, "max(grid, exact)").grade(Sample("x"), {"solution": "x"})
    assert grade.error is not None
    assert grade.error.kind == "invalid_variable_error"
    assert grade.error.message.startswith("grid: ")
    assert (grade.score, grade.solved, grade.sub_scores) == (0.0, False, {"exact": 1.0})


@pytest.mark.parametrize("formula", ["1 / exact", "log(exact)", "exp(1e4 * (1 - exact))"])
def test_formula_without_a_value_is_an_error(formula: str) -> None:
    grade = multi({"exact": SHORT}, formula).grade(Sample("wrong"), ITEM)
    assert grade.error is not None
    assert grade.error.kind == "formula_parse_error"
    assert grade.score == 0.0


def test_grade_all_keeps_order_and_length() -> None:
    grader = compile_grader(SHORT)
    samples = [Sample("a"), Sample("b")]
    assert [grade.score for grade in grader.grade_all(samples, [{"solution": "a"}] * 2)] == [1.0, 0.0]
    with pytest.raises(ValueError, match="2 samples and 1 items"):
        grader.grade_all(samples, [{"solution": "a"}])


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_grade_is_finite(score: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Grade(score, solved=False)
