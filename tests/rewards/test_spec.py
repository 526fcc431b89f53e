"""Grader specifications: the wire forms, and errors that name the field."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from bgpo.errors import SpecError
from bgpo.rewards.spec import GraderSpec, parse_grader_spec

CHECK = {
    "type": "string_check",
    "name": "exact",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "operation": "eq",
}
SUDOKU = {"type": "sudoku", "name": "grid"}
COUNTDOWN = {"type": "countdown", "name": "reach"}
MATH = {"type": "math", "name": "answer"}
CODE = {"type": "code", "name": "program", "reward": "fraction", "timeout_seconds": 5.0}
SIMILAR = {
    **{key: CHECK[key] for key in ("name", "input", "reference")},
    "type": "text_similarity",
    "evaluation_metric": "rouge_l",
    "pass_threshold": 0.5,
}
FORMAT = {"type": "format", "name": "form", "pattern": "a.*b"}
JSON_SCHEMA = {"type": "json_schema", "name": "form", "json_schema": {"type": "object", "text": {"type": "string"}}}
LENGTH = {"type": "length", "name": "short", "maximum": 100, "margin": 20}
GRADERS_JSON = "graders.exact.json_schema"
MULTI = {
    "type": "multi",
    "name": "both",
    "graders": {"exact": CHECK, "grid": SUDOKU},
    "calculate_output": "0.5 * exact + 0.5 * grid",
}


WIRES = [CHECK, SIMILAR, SUDOKU, COUNTDOWN, MATH, CODE, FORMAT, JSON_SCHEMA, LENGTH, MULTI]


@pytest.mark.parametrize("wire", WIRES, ids=lambda wire: wire["type"])
def test_round_trip_keeps_the_wire_form(wire: dict[str, Any]) -> None:
    spec = parse_grader_spec(wire)
    text = spec.model_dump_json(exclude_unset=True)
    assert json.loads(text) == wire
    adapter: TypeAdapter[Any] = TypeAdapter(GraderSpec)
    assert adapter.validate_json(spec.model_dump_json()) == spec


def test_defaults_read_the_usual_fields() -> None:
    sudoku = parse_grader_spec(SUDOKU).model_dump()
    assert sudoku["puzzle"] == "{{ item.puzzle }}"
    assert sudoku["input"] == "{{ sample.output_text }}"
    countdown = parse_grader_spec(COUNTDOWN).model_dump()
    assert (countdown["numbers"], countdown["target"]) == ("{{ item.numbers }}", "{{ item.target }}")
    assert parse_grader_spec(MATH).model_dump()["reference"] == "{{ item.answer }}"
    assert parse_grader_spec(CODE).model_dump()["tests"] == "{{ item.tests }}"


@pytest.mark.parametrize(
    ("wire", "param", "message"),
    [
        ({}, "type", "discriminator"),
        ({"type": "nope"}, "type", "'nope'"),
        ({**CHECK, "operation": "neq"}, "operation", "'eq', 'ne'"),
        ({key: value for key, value in CHECK.items() if key != "reference"}, "reference", "required"),
        ({**CHECK, "input": "{{ item.x"}, "input", "not closed"),
        ({**CHECK, "reference": "{{ env.x }}"}, "reference", "must start with"),
        ({**CHECK, "name": 3}, "name", "string"),
        ({**CHECK, "name": ""}, "name", "at least 1"),
        ({**CHECK, "extra": 1}, "extra", "not permitted"),
        ({**SUDOKU, "reward": "all"}, "reward", "'solved', 'cell_accuracy'"),
        ({**SUDOKU, "solution": "{{ nope }}"}, "solution", "must start with"),
        ({**COUNTDOWN, "target": 24}, "target", "string"),
        ({**MATH, "answer": "last"}, "answer", "'any' or 'boxed'"),
        ({**CODE, "timeout_seconds": 0.0}, "timeout_seconds", "greater than 0"),
        ({**CODE, "memory_mb": 1}, "memory_mb", "greater than or equal to 64"),
        ({"type": "json_schema", "json_schema": {}}, "name", "required"),
        ({**JSON_SCHEMA, "json_schema": 1}, "json_schema", "dictionary"),
        ({**MULTI, "graders": {"exact": {**JSON_SCHEMA, "json_schema": {"type": 1}}}}, GRADERS_JSON, "at type"),
        ({**SIMILAR, "evaluation_metric": "rouge_6"}, "evaluation_metric", "'rouge_5'"),
        ({**SIMILAR, "pass_threshold": 1.5}, "pass_threshold", "less than or equal to 1"),
        ({**FORMAT, "pattern": "("}, "pattern", "not a regular expression"),
        ({**FORMAT, "tags": ["a"]}, None, "one of the two"),
        ({**MULTI, "graders": {}}, "graders", "at least 1"),
        ({**MULTI, "graders": [CHECK]}, "graders", "dictionary"),
        ({**MULTI, "graders": {"a b": CHECK}}, "graders", "'a b'"),
        ({**MULTI, "graders": {"min": CHECK}}, "graders", "'min'"),
        ({**MULTI, "graders": {"exact": {**CHECK, "operation": "x"}}}, "graders.exact.operation", "'eq'"),
        ({**MULTI, "graders": {"inner": MULTI}}, "graders.inner.type", "'multi'"),
        ({**MULTI, "calculate_output": "exact +"}, "calculate_output", "end of the formula"),
        ({**MULTI, "calculate_output": "other"}, "calculate_output", "unknown name 'other'"),
        ({**MULTI, "graders": {f"g{i}": CHECK for i in range(65)}, "calculate_output": "g0"}, "graders", "at most 64"),
    ],
)
def test_error_names_the_field(wire: dict[str, Any], param: str | None, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        parse_grader_spec(wire)
    assert caught.value.param == param
    assert not caught.value.message.startswith("Value error")


def test_specs_are_immutable() -> None:
    spec = parse_grader_spec(SUDOKU)
    with pytest.raises(ValidationError, match="frozen"):
        spec.name = "other"  # type: ignore[misc]


def test_torch_free() -> None:
    code = "import sys, bgpo.rewards, bgpo.spec, bgpo.tasks.sudoku, bgpo.tasks.countdown; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
