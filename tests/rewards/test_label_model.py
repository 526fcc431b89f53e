"""`label_model`: labels that pass, labels that do not, and answers that are none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bgpo.rewards import Grade, Sample, compile_grader
from tests.jobs.receivers import receiver, saying
from tests.rewards.servers import asked, completion, judged_by, verdict

SPEC: dict[str, Any] = {
    "type": "label_model",
    "name": "tone",
    "model": "critic",
    "input": [{"role": "user", "content": "Label: {{ sample.output_text }}"}],
    "labels": ["kind", "neutral", 'say "rude"'],
    "passing_labels": ["kind", "neutral"],
}


def graded(answer: bytes) -> Grade:
    with receiver(saying(answer)) as server:
        return compile_grader(SPEC, judged_by(server)).grade(Sample("hello"), {})


@pytest.mark.parametrize(("label", "score"), [("kind", 1.0), ("neutral", 1.0), ('say "rude"', 0.0)])
def test_a_label_passes_or_does_not(label: str, score: float) -> None:
    grade = graded(verdict(label))
    assert (grade.score, grade.solved, grade.error) == (score, bool(score), None)
    assert grade.details == ("look: seen", f"label: {label}")
    assert grade.usage is not None


def test_the_judge_is_told_the_labels() -> None:
    with receiver(saying(verdict("kind"))) as server:
        compile_grader(SPEC, judged_by(server)).grade(Sample("hello"), {})
    (request,) = asked(server)
    result = request["response_format"]["json_schema"]["schema"]["properties"]["result"]
    assert result == {"type": "string", "enum": SPEC["labels"]}
    assert 'exactly one of "kind", "neutral", "say \\"rude\\""' in request["messages"][0]["content"]


@pytest.mark.parametrize("result", ["Kind", "kind ", "", "other", 1, True, None, ["kind"], {"kind": 1}])
def test_anything_else_is_an_error(result: Any) -> None:
    grade = graded(verdict(result))
    assert grade.error is not None
    assert grade.error.kind == "model_grader_parse_error"
    assert json.loads(grade.error.details or "")["result"] == result
    assert grade.usage is not None


def test_a_refusal() -> None:
    grade = graded(completion(None, refusal="I would rather not."))
    assert grade.error is not None
    assert (grade.error.kind, grade.error.details) == ("model_grader_refusal_error", "I would rather not.")
