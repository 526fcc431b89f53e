"""What a batch of grades says in numbers."""

from __future__ import annotations

import pickle

import pytest

from bgpo.rewards import Grade, GradeErrorInfo, GradeErrorKind, Part, Usage
from bgpo.training.grade_metrics import MAX_DETAILS, MAX_MESSAGE, compact, counts, errors_of, grader_seconds, summarize


def part(name: str, score: float | None, seconds: float = 0.5, usage: Usage | None = None) -> Part:
    return Part(name, "python", score, None, seconds, usage)


def failed(name: str, kind: GradeErrorKind = "python_grader_runtime_error", details: str | None = None) -> Part:
    return Part(name, "python", None, GradeErrorInfo(kind, "boom", details), 1.5)


def grade(score: float, *parts: Part, solved: bool = False, **metrics: float) -> Grade:
    error = next((part.error for part in parts if part.error is not None), None)
    return Grade(score, solved, metrics, error, parts={part.name: part for part in parts})


BATCH = [
    grade(1.0, part("a", 1.0), part("b", 0.0), solved=True, cell_accuracy=1.0, solved_=9.0),
    grade(0.25, part("a", 0.5), part("b", 0.0), cell_accuracy=0.5),
    grade(0.0, part("a", 0.9), failed("b"), cell_accuracy=77.0),
    Grade(0.0, False, error=GradeErrorInfo("formula_parse_error", "log of 0"), parts={"a": part("a", 0.0)}),
]


def test_means_run_over_what_was_graded() -> None:
    assert summarize(BATCH, "both") == {
        "responses": 4.0,
        "grader_errors": 2.0,
        "grader_error_rate": 0.5,
        "grader_errors/b/python_grader_runtime_error": 1.0,
        "grader_errors/both/formula_parse_error": 1.0,
        "solved_rate": 0.5,
        "reward_mean": 0.625,
        "cell_accuracy": 0.75,
        "solved_": 9.0,
        "reward/a": 0.75,
        "reward/b": 0.0,
    }


def test_with_zero_an_error_is_a_reward_of_0() -> None:
    found = summarize(BATCH, "both", "zero")
    assert (found["reward_mean"], found["solved_rate"]) == (1.25 / 4, 0.25)
    assert (found["grader_errors"], found["reward/b"]) == (2.0, 0.0)
    assert [counts(BATCH[2], mode) for mode in ("drop", "zero", "fail")] == [False, True, False]


def test_where_nothing_was_graded_there_is_no_mean() -> None:
    assert summarize([grade(0.0, failed("g"))] * 2, "g") == {
        "responses": 2.0,
        "grader_errors": 2.0,
        "grader_error_rate": 1.0,
        "grader_errors/g/python_grader_runtime_error": 2.0,
    }


def test_tokens_are_summed_by_model_and_by_grader_also_of_samples_with_an_error() -> None:
    unread = GradeErrorInfo("model_grader_parse_error", "?")
    judged = [
        grade(1.0, part("x", 1.0, usage=Usage("small", 10, 2)), part("y", 1.0, usage=Usage("small", 5, 1))),
        Grade(0.0, False, error=unread, parts={"x": Part("x", "score_model", None, unread, 1, Usage("small", 7, 3))}),
    ]
    tokens = {name: value for name, value in summarize(judged, "m").items() if "tokens" in name}
    assert tokens == {
        "judge_tokens/small/prompt": 22.0,
        "judge_tokens/small/completion": 6.0,
        "grader_tokens/x/prompt": 17.0,
        "grader_tokens/x/completion": 5.0,
        "grader_tokens/y/prompt": 5.0,
        "grader_tokens/y/completion": 1.0,
    }


def test_seconds_are_means_of_each_grader() -> None:
    assert grader_seconds(BATCH) == {"seconds_grader/a": 0.5, "seconds_grader/b": pytest.approx((0.5 + 0.5 + 1.5) / 3)}


def test_what_processes_exchange_is_small() -> None:
    long = "x" * 100_000
    error = GradeErrorInfo("python_grader_runtime_error", long, "first\n" + "é" * 50_000 + "\nValueError: the end")
    bad = Part("g", "python", None, error, 1.0)
    small = compact(Grade(0.0, False, error=error, details=(long,), parts={"g": bad}))
    assert len(pickle.dumps(small)) < 5_000
    ((name, found),) = errors_of(small, "g")
    assert (name, found.kind, len(found.message)) == ("g", "python_grader_runtime_error", MAX_MESSAGE)
    assert str(found.details).endswith("é\nValueError: the end")
    assert MAX_DETAILS - 2 < len(str(found.details).encode()) <= MAX_DETAILS
    assert compact(BATCH[0]) == BATCH[0]
