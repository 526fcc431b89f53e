"""`json_schema`: whether a text is JSON that a schema accepts.

The text may also stand in the last fenced block of a completion. JSON is read by `strict_json` (no NaN, no key twice,
bounded), schemas are applied by `schemas`. A text that is not JSON scores 0; a schema that cannot be applied to a text
within its limits is an error of that sample.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bgpo.rewards.grade import Grade, GradeFault, Grader, Sample, rendered
from bgpo.rewards.schemas import Schema, SchemaTooCostly
from bgpo.rewards.spec import JsonSchemaSpec
from bgpo.rewards.strict_json import MAX_TEXT, parse_json
from bgpo.rewards.templates import parse_template

_FENCE = re.compile(r"^[ \t]*```[^\n`]*$", re.MULTILINE)


class JsonSchemaGrader(Grader):
    """Compiled `json_schema`. Metric `valid_json`: it is JSON, whatever the schema says."""

    metric_names = ("solved", "valid_json")

    def __init__(self, spec: JsonSchemaSpec) -> None:
        self.name, self.type = spec.name, spec.type
        self._input = parse_template(spec.input)
        self._schema = Schema(spec.json_schema)
        self._fenced = spec.fenced

    def _grade(self, sample: Sample, item: Mapping[str, Any]) -> Grade:
        text = rendered(self._input, sample, item)
        for candidate in (text, last_fenced(text) if self._fenced else None):
            if candidate is not None:
                try:
                    value = parse_json(candidate)
                except ValueError:
                    continue
                return self._result(self._accepts(value), valid=True)
        return self._result(False, valid=False)

    def _accepts(self, value: Any) -> bool:
        try:
            return self._schema.accepts(value)
        except SchemaTooCostly as error:
            raise GradeFault(str(error)) from error

    @staticmethod
    def _result(solved: bool, *, valid: bool) -> Grade:
        metrics = {"solved": float(solved), "valid_json": float(valid)}
        return Grade(float(solved), solved=solved, metrics=metrics)


def last_fenced(text: str) -> str | None:
    """The content of the last closed fenced block within the last MAX_TEXT characters; None without one."""
    text = text[-MAX_TEXT:]
    fences = list(_FENCE.finditer(text))
    if len(fences) < 2:
        return None
    opening, closing = fences[-2:] if len(fences) % 2 == 0 else fences[-3:-1]
    return text[opening.end() : closing.start()]
