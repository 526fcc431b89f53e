"""A python grader when a job is made: what raises on the empty answer is told with the traceback's last line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.api.test_trial import ABOUT, rows, try_to_create
from tests.service import Service

RAISES = "def grade(sample, item):\n    return float(sample['output_text'].split()[0] == item['answer'])\n"


def python(source: str) -> dict[str, Any]:
    return {"type": "python", "name": "mine", "source": source}


def test_what_raises_on_the_empty_answer_is_told(start_service: Callable[..., Service]) -> None:
    service = start_service(grader_try_s=100)
    status, _, told = try_to_create(service, python(RAISES), rows())
    assert (status, told[0][0]) == (200, "warn")
    assert told[0][1].startswith(ABOUT.format("mine", 3, "training_file") + "3 errors, the first on line 1: ")
    assert "IndexError: list index out of range" in told[0][1]


def test_a_source_that_is_no_python_refuses_the_job(start_service: Callable[..., Service]) -> None:
    service = start_service(grader_try_s=100)
    for source in ("def grade(sample, item:\n", "x = 1\n"):
        status, answer, _ = try_to_create(service, python(source), rows())
        assert (status, answer["param"], answer["code"]) == (
            400,
            "method.reinforcement.grader.source",
            "invalid_grader",
        )
