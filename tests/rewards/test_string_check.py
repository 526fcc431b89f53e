"""`string_check`: the four operations and unresolved variables."""

from __future__ import annotations

import pytest

from bgpo.rewards import Sample, compile_grader


@pytest.mark.parametrize(
    ("operation", "output", "answer", "expected"),
    [
        ("eq", "42", "42", 1),
        ("eq", "42 ", "42", 0),
        ("eq", "Yes", "yes", 0),
        ("ne", "42", "43", 1),
        ("ne", "42", "42", 0),
        ("like", "the answer is 42.", "42", 1),
        ("like", "42", "the answer is 42.", 0),  # the reference is looked for in the input
        ("like", "YES", "yes", 0),
        ("ilike", "YES!", "yes", 1),
        ("ilike", "Stra\u00dfe", "STRASSE", 1),
        ("ilike", "no", "yes", 0),
        ("like", "anything", "", 1),
    ],
)
def test_operations(operation: str, output: str, answer: str, expected: int) -> None:
    grader = compile_grader(
        {
            "type": "string_check",
            "name": "check",
            "input": "{{ sample.output_text }}",
            "reference": "{{ item.answer }}",
            "operation": operation,
        }
    )
    grade = grader.grade(Sample(output), {"answer": answer})
    assert grade.error is None
    assert (grade.score, grade.solved, grade.sub_scores) == (expected, bool(expected), {"check": expected})


def test_unresolved_variable_is_an_error_not_a_zero() -> None:
    grader = compile_grader(
        {"type": "string_check", "name": "c", "input": "x", "reference": "{{ item.answer.deep }}", "operation": "ne"}
    )
    grade = grader.grade(Sample("x"), {"answer": "flat"})
    assert grade.error is not None
    assert grade.error.kind == "invalid_variable_error"
    assert "item.answer.deep" in grade.error.message
    assert (grade.score, grade.solved, grade.metrics) == (0.0, False, {})
