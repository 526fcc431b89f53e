"""JSON of a model: what is refused beyond the standard parser, and agreement with it on the rest."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgpo.rewards.strict_json import MAX_DEPTH, MAX_TEXT, parse_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(VALUES)
def test_reads_what_the_standard_library_writes(value: Any) -> None:
    text = json.dumps(value)
    assert parse_json(text) == value
    assert parse_json(f"\n {json.dumps(value, ensure_ascii=False, indent=1)}\t") == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("{'a': 1}", "property name"),
        ("1 2", "Extra data"),
        ("NaN", "NaN is not JSON"),
        ("[-Infinity]", "-Infinity is not JSON"),
        ("1e400", "range of a double"),
        ("-" + "9" * 309, "range of a double"),
        ("9" * 60_000, "range of a double"),
        ('{"a": 1, "b": {"c": 1, "c": 1}}', "a key twice"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nested deeper"),
        ('{"a":' * 10_000 + "1" + "}" * 10_000, "nested deeper"),
        (" " * (MAX_TEXT + 1), "characters, more than"),
    ],
)
def test_refuses(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_limits_are_allowed() -> None:
    deep = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert json.dumps(parse_json(deep)) == deep
    assert parse_json("9" * 308) == int("9" * 308)
    assert len(parse_json('"' + "x" * (MAX_TEXT - 2) + '"')) == MAX_TEXT - 2


@given(st.text())
def test_any_text_is_a_value_or_a_value_error(text: str) -> None:
    try:
        value = parse_json(text)
    except ValueError:
        return
    assert value == json.loads(text)
