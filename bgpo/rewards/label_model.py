"""OpenAI's `label_model`: 1 when the label that a judge model chooses is a passing one, else 0."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bgpo.rewards.grade import Grade, Grader, Sample
from bgpo.rewards.judge import JudgeClient
from bgpo.rewards.settings import Resources
from bgpo.rewards.spec import LabelModelSpec
from bgpo.rewards.verdict import VerdictRequest


class LabelModelGrader(Grader):
    """Compiled `label_model`."""

    def __init__(self, spec: LabelModelSpec, resources: Resources) -> None:
        self.name, self.type = spec.name, spec.type
        judge = JudgeClient(spec.model, resources)
        self.concurrency = judge.concurrency
        self._labels, self._passing = frozenset(spec.labels), frozenset(spec.passing_labels)
        labels = list(dict.fromkeys(spec.labels))
        listed = ", ".join(json.dumps(label, ensure_ascii=False) for label in labels)
        meaning = f"the label that fits, exactly one of {listed}"
        self._request = VerdictRequest(
            judge, spec.input, spec.sampling_params, {"type": "string", "enum": labels}, '"..."', meaning
        )

    def _grade(self, sample: Sample, item: Mapping[str, Any]) -> Grade:
        answer = self._request.ask(sample, item)
        label, reasons = self._request.read(answer)
        if not isinstance(label, str) or label not in self._labels:
            raise self._request.unreadable(answer, "result is none of the labels")
        passed = label in self._passing
        return Grade(float(passed), solved=passed, details=(*reasons, f"label: {label}"), usage=answer.usage)
