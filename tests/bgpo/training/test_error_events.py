"""What the user hears of grading errors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bgpo.records import LogRecord, RecordWriter, Split, parse_record
from bgpo.rewards import Grade, GradeErrorInfo
from bgpo.training.error_events import MOST, REPEAT, ErrorEvents
from bgpo.training.reporter import Reporter


def failed(message: str, details: str | None = None) -> Grade:
    return Grade(0.0, False, error=GradeErrorInfo("python_grader_runtime_error", message, details))


FINE = Grade(1.0, True)


class Heard:
    def __init__(self, path: Path, descriptor: int) -> None:
        self.events = ErrorEvents("g", Reporter(RecordWriter(descriptor), 100))
        self._path = path
        self._read = 0

    def report(self, step: int, grades: list[Grade], split: Split = "train") -> None:
        self.events.report(step, grades, range(100, 100 + len(grades)), split)

    def __call__(self) -> list[LogRecord]:
        """What came since the last call."""
        records = [parse_record(line) for line in self._path.read_bytes().splitlines()]
        found, self._read = records[self._read :], len(records)
        assert all(isinstance(record, LogRecord) and record.level == "warn" for record in found)
        return [record for record in found if isinstance(record, LogRecord)]


@pytest.fixture
def heard(tmp_path: Path) -> Iterator[Heard]:
    descriptor = os.open(tmp_path / "records", os.O_WRONLY | os.O_CREAT)
    yield Heard(tmp_path / "records", descriptor)
    os.close(descriptor)


def test_an_error_is_told_with_its_traceback(heard: Heard) -> None:
    heard.report(4, [FINE, failed("boom", "Traceback ..."), failed("boom", "another")])
    (record,) = heard()
    assert record.message == (
        "step 4: grader 'g' failed on 2 of 3 samples, now on row 101: python_grader_runtime_error: boom"
    )
    assert record.data == {
        "grader": "g",
        "kind": "python_grader_runtime_error",
        "step": 4,
        "split": "train",
        "count": 2,
        "row": 101,
        "message": "boom",
        "traceback": "Traceback ...",
    }


def test_the_same_error_is_told_again_only_with_its_count(heard: Heard) -> None:
    for step in range(1, REPEAT + 2):
        heard.report(step, [failed("boom")] * step + [FINE])
    first, again = heard()
    more = sum(range(2, REPEAT + 2))
    assert "failed on 1 of 2 samples" in first.message
    assert f"step {REPEAT + 1}: grader 'g' failed {more} more times since step 1, now on row 100: " in again.message
    assert again.data is not None
    assert again.data["count"] == more


def test_an_error_that_comes_back_after_a_pause_is_told_with_its_count(heard: Heard) -> None:
    heard.report(1, [failed("boom")])
    heard.report(50, [failed("boom")], "validation")
    assert [record.message.split(":")[0] for record in heard()] == ["step 1", "evaluation at step 50"]


def test_a_step_tells_the_most_frequent_ones(heard: Heard) -> None:
    grades = [failed(f"message {i}") for i in range(10) for _ in range(1 + (i == 7))]
    heard.report(1, grades)
    told = [str(record.data and record.data["message"]) for record in heard()]
    assert told == ["message 7", "message 0", "message 1"]
    assert len(told) == MOST
    heard.report(2, grades)
    assert [record.data and record.data["message"] for record in heard()] == ["message 2", "message 3", "message 4"]


def test_messages_that_always_differ_do_not_pile_up(heard: Heard) -> None:
    for step in range(500):
        heard.report(step, [failed(f"sample {step}.{i}") for i in range(5)])
    assert len(heard()) == 500 * MOST
    assert len(heard.events._told) < 500


def test_no_errors_no_words(heard: Heard) -> None:
    heard.report(1, [FINE])
    assert heard() == []
