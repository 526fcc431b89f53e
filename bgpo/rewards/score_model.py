"""OpenAI's `score_model`: the number that a judge model gives, clipped to `range`. Solved means the highest score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bgpo.rewards.grade import Grade, Grader, Sample
from bgpo.rewards.judge import JudgeClient
from bgpo.rewards.received import finite_number
from bgpo.rewards.settings import Resources
from bgpo.rewards.spec import ScoreModelSpec
from bgpo.rewards.verdict import VerdictRequest


class ScoreModelGrader(Grader):
    """Compiled `score_model`."""

    def __init__(self, spec: ScoreModelSpec, resources: Resources) -> None:
        self.name, self.type = spec.name, spec.type
        judge = JudgeClient(spec.model, resources)
        self.concurrency = judge.concurrency
        self._low, self._high = spec.range
        meaning = f"the score, a number from {self._low:g} to {self._high:g}"
        self._request = VerdictRequest(
            judge, spec.input, spec.sampling_params, {"type": "number"}, f"{self._high:g}", meaning
        )

    def _grade(self, sample: Sample, item: Mapping[str, Any]) -> Grade:
        answer = self._request.ask(sample, item)
        result, reasons = self._request.read(answer)
        try:
            score = min(max(finite_number(result), self._low), self._high)
        except ValueError as error:
            raise self._request.unreadable(answer, f"result: {error}") from error
        return Grade(score, solved=score == self._high, details=reasons, usage=answer.usage)
