"""OpenAI's `string_check`: 1 when two rendered texts compare, else 0. Case folding is Unicode's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bgpo.rewards.grade import Grade, Grader, Sample, rendered
from bgpo.rewards.spec import StringCheckSpec
from bgpo.rewards.templates import parse_template

_OPERATIONS: dict[str, Callable[[str, str], bool]] = {
    "eq": lambda text, reference: text == reference,
    "ne": lambda text, reference: text != reference,
    "like": lambda text, reference: reference in text,
    "ilike": lambda text, reference: reference.casefold() in text.casefold(),
}


class StringCheckGrader(Grader):
    """Compiled `string_check`."""

    def __init__(self, spec: StringCheckSpec) -> None:
        self.name, self.type = spec.name, spec.type
        self._input = parse_template(spec.input)
        self._reference = parse_template(spec.reference)
        self._compare = _OPERATIONS[spec.operation]

    def _grade(self, sample: Sample, item: Mapping[str, Any]) -> Grade:
        passed = self._compare(rendered(self._input, sample, item), rendered(self._reference, sample, item))
        return Grade(float(passed), solved=passed)
