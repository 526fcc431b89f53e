"""`json_schema`: agreement with `jsonschema` itself, JSON in completions, and schemas and texts that cost too much."""

from __future__ import annotations

import json
import socket
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgpo.errors import SpecError
from bgpo.rewards import Grade, Sample, compile_grader
from bgpo.rewards.json_schema import last_fenced
from bgpo.rewards.schemas import MAX_SCHEMA, MAX_STEPS, Schema, SchemaTooCostly

CITY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1},
        "people": {"type": "integer", "minimum": 0},
        "twins": {"type": "array", "items": {"$ref": "#"}, "maxItems": 3},
    },
    "required": ["name"],
    "additionalProperties": False,
}


def grade(text: str, schema: dict[str, Any] = CITY, **fields: Any) -> Grade:
    with compile_grader({"type": "json_schema", "name": "form", "json_schema": schema, **fields}) as grader:
        return grader.grade(Sample(text), {})


@pytest.mark.parametrize(
    ("text", "solved", "valid"),
    [
        ('{"name": "Bern"}', 1, 1),
        (' \n{"name": "Bern", "people": 134290, "twins": [{"name": "Thun"}]}\n', 1, 1),
        ('{"name": "Bern", "people": 1.5}', 0, 1),
        ('{"name": "Bern", "twins": [{"nam": "Thun"}]}', 0, 1),
        ('{"name": ""}', 0, 1),
        ("[]", 0, 1),
        ('{"name": "Bern"', 0, 0),
        ('{"name": "Bern", "people": NaN}', 0, 0),
        ('{"name": "Bern", "name": "Thun"}', 0, 0),
        ('{"name": "Bern", "people": ' + "9" * 60_000 + "}", 0, 0),
        ('{"name": "Bern", "twins": ' + "[" * 30_000, 0, 0),
        ("", 0, 0),
        ('Here it is:\n```json\n{"name": "Bern"}\n```\nAnything else?', 1, 1),
        ('```\n{"name": 1}\n```\nno:\n```json\n{\n  "name": "Bern"\n}\n```', 1, 1),
        ('```json\n{"name": "Bern"}', 0, 0),
        ('The city is {"name": "Bern"}.', 0, 0),
    ],
)
def test_completions(text: str, solved: int, valid: int) -> None:
    result = grade(text)
    assert result.error is None
    assert (result.score, result.metrics) == (solved, {"solved": solved, "valid_json": valid})


def test_fenced_blocks_only_if_asked_for() -> None:
    text = '```json\n{"name": "Bern"}\n```'
    assert (grade(text).score, grade(text, fenced=False).score) == (1.0, 0.0)
    assert last_fenced("```\na\n```\nb\n```\nc") == "\na\n"  # the third was never closed
    assert last_fenced("no ``` fence") is None


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 1.0, 1e300]) | st.text("ab1 ", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
SCHEMAS = st.recursive(
    st.booleans()
    | st.builds(lambda name: {"type": name}, st.sampled_from(["object", "array", "string", "number", "integer"]))
    | st.builds(lambda value: {"const": value}, VALUES)
    | st.builds(lambda values: {"enum": values}, st.lists(VALUES, max_size=3))
    | st.sampled_from(
        [{"pattern": "^a"}, {"minimum": 1}, {"uniqueItems": True}, {"multipleOf": 0.5}, {"maxLength": 2}]
    ),
    lambda inner: st.one_of(
        st.builds(lambda some: {"properties": some}, st.dictionaries(st.sampled_from("abc"), inner, max_size=2)),
        st.builds(
            lambda named, rest: {"properties": {"a": named}, "additionalProperties": rest, "required": ["a"]},
            inner,
            inner,
        ),
        st.builds(lambda some, rest: {"patternProperties": {"[ab]": some}, "additionalProperties": rest}, inner, inner),
        st.builds(lambda some, rest: {"prefixItems": [some], "items": rest}, inner, inner),
        st.builds(lambda some: {"contains": some, "maxContains": 2}, inner),
        st.builds(
            lambda key, some: {key: some}, st.sampled_from(["allOf", "anyOf", "oneOf"]), st.lists(inner, min_size=1)
        ),
        st.builds(lambda some: {"not": some}, inner),
        st.builds(lambda a, b, c: {"if": a, "then": b, "else": c}, inner, inner, inner),
    ),
    max_leaves=6,
)


@given(SCHEMAS, VALUES)
def test_agrees_with_jsonschema(schema: Any, value: Any) -> None:
    schema = {"allOf": [schema]}
    assert Schema(schema).accepts(value) == jsonschema.Draft202012Validator(schema).is_valid(value)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "objekt"}, "not a JSON Schema, at type: 'objekt'"),
        ({"properties": {"a": {"minimum": "1"}}}, "at properties.a.minimum"),
        ({"$ref": "https://example.com/s.json"}, "leaves the schema"),
        ({"properties": {"a": {"$ref": "file:///etc/passwd"}}}, "leaves the schema"),
        ({"$dynamicRef": "other.json#x"}, "leaves the schema"),
        ({"$ref": "#/$defs/nothing"}, "'#/\\$defs/nothing' is not in the schema"),
        ({"$defs": {"a": {"$id": "https://example.com/"}}}, "root of the schema only"),
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, "only draft 2020-12"),
        ({"unevaluatedProperties": False}, "not supported"),
        ({"items": {"unevaluatedItems": False}}, "not supported"),
        ({"pattern": "("}, "pattern '\\(': not a regular expression"),
        ({"patternProperties": {"((a{1000}){1000}){1000}": {}}}, "multiply"),
        ({"items": {"pattern": "(?R)"}}, "calls itself"),
        ({"enum": ["x" * MAX_SCHEMA]}, "more than 65536"),
        ({"const": float("nan")}, "JSON compliant"),
    ],
)
def test_a_schema_that_is_refused_names_its_field(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        grade("{}", schema)
    assert caught.value.param == "json_schema"


def test_a_schema_nested_too_deep_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(70):
        schema = {"not": schema}
    with pytest.raises(SpecError, match="nested deeper") as caught:
        grade("1", schema)
    assert caught.value.param == "json_schema"


def test_references_connect_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **_: asked.append(a))
    monkeypatch.setattr(socket.socket, "connect", lambda *a: asked.append(a))
    for target in ("http://127.0.0.1:9/s.json", "https://example.com/s", "//example.com/s", "s.json"):
        with pytest.raises(SpecError, match="leaves the schema"):
            grade("{}", {"$ref": target})
    # An $id of the root makes its own references absolute; they are still those of the schema, or of nothing.
    assert grade("1", {"$id": "http://127.0.0.1:9/s", "$ref": "#/$defs/n", "$defs": {"n": {"const": 1}}}).solved
    with pytest.raises(SpecError, match="is not in the schema"):
        grade("1", {"$id": "http://127.0.0.1:9/s", "$ref": "#/$defs/n"})
    assert not asked


def doubling(levels: int) -> dict[str, Any]:
    parts: dict[str, Any] = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(levels)}
    return {"$ref": "#/$defs/d0", "$defs": parts | {f"d{levels}": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("schema", "value", "message"),
    [
        (doubling(40), 1, f"more than {MAX_STEPS} steps"),
        ({"$ref": "#"}, 1, "refers to itself"),
        ({"not": {"$ref": "#"}}, 1, "refers to itself"),
        ({"anyOf": [{"type": "null"}, {"$ref": "#"}]}, 1, "refers to itself"),
        ({"items": {"enum": [[n] for n in range(3000)]}}, [[2999]] * 5000, "steps"),
        ({"anyOf": [{"type": "integer"}] * 2000}, ["x" * 60_000], "steps"),
        ({"items": {"pattern": "(a|aa)+$"}}, ["a" * 50 + "!"] * 500, "patterns took longer than 0.5 s"),
        ({"patternProperties": {"(a|aa)+$": {}}}, {"a" * 100 + "!": 1}, "patterns took longer"),
        ({"patternProperties": {"(a|aa)+$": {}}, "additionalProperties": False}, {"a" * 99 + "!": 1}, "patterns"),
    ],
)
def test_what_costs_too_much_is_an_error_not_a_zero(schema: dict[str, Any], value: Any, message: str) -> None:
    result = grade(json.dumps(value), schema)
    assert result.error is not None
    assert result.error.kind == "other_error"
    assert message in result.error.message


def test_the_work_is_counted_for_each_text_anew() -> None:
    schema = Schema(doubling(12))
    for _ in range(20):
        assert schema.accepts(1)
    with pytest.raises(SchemaTooCostly):
        Schema(doubling(17)).accepts(1)


def test_unique_items_are_compared_as_json_and_in_one_pass() -> None:
    schema = Schema({"uniqueItems": True})
    assert schema.accepts([1, True, "1", [1], [True], {"a": 1}, {"a": True}, {"b": 1}, None, 0, False])
    for twice in ([1, 1.0], [{"a": [1], "b": 2}, {"b": 2.0, "a": [1.0]}], [[], []], [None, None]):
        assert not schema.accepts(twice)
    assert schema.accepts([{"a": n} for n in range(6000)])


def test_recursive_schemas_reach_the_depth_of_a_text() -> None:
    node = {"anyOf": [{"type": "null"}, {"type": "object", "properties": {"next": {"$ref": "#"}}}]}
    value = "null"
    for _ in range(50):
        value = f'{{"next": {value}}}'
    assert grade(value, node).solved


@given(st.text() | st.text(alphabet='{}[]":,`\n truefalsn01'))
def test_any_text_scores_zero_or_one(text: str) -> None:
    result = grade(text, {"type": "array"})
    assert result.error is None
    assert result.score in (0.0, 1.0)
