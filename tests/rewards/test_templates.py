"""Templates: rendering, unresolved variables, and syntax errors found when parsed."""

from __future__ import annotations

import json

import pytest

from bgpo.rewards import Sample
from bgpo.rewards.grade import GradeFault, rendered
from bgpo.rewards.templates import (
    MAX_PATH_STEPS,
    MAX_TEMPLATE_LENGTH,
    SAMPLE_FIELDS,
    UnresolvedVariable,
    parse_template,
)

ITEM = {
    "text": "plain",
    "number": 3,
    "deep": {"list": [{"k-1": "found"}, [1, 2.5, None]]},
    "messages": [{"role": "user", "content": "hi {{ item.text }}"}],
}
SAMPLE = {"output_text": "answer"}


def render(text: str) -> str:
    return parse_template(text).render(SAMPLE, ITEM)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("", ""),
        ("no variable, { } and }} are text", "no variable, { } and }} are text"),
        ("{{item.text}}", "plain"),
        ("a {{  item.text\t}} b {{ sample.output_text }}", "a plain b answer"),
        ("{{ item.number }}", "3"),
        ("{{ item.deep.list[0].k-1 }}", "found"),
        ("{{ item.deep.list[1][1] }}", "2.5"),
        ("{{ item.deep.list[1][2] }}", "null"),
        ("{{ item.deep }}", json.dumps(ITEM["deep"])),
        ("{{ item.messages[0].content }}", "hi {{ item.text }}"),  # data is never parsed as a template
    ],
)
def test_render(template: str, expected: str) -> None:
    assert render(template) == expected


@pytest.mark.parametrize(
    "template",
    [
        "{{ item.missing }}",
        "{{ item.text.length }}",
        "{{ item.text[0] }}",
        "{{ item.deep[0] }}",
        "{{ item.deep.list[9] }}",
    ],
)
def test_unresolved_variable_raises(template: str) -> None:
    with pytest.raises(UnresolvedVariable, match="not in the data"):
        render(template)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ item.a", "not closed"),
        ("{{ item.{{ b }} }}", "not closed"),
        ("{{ }}", "must start with"),
        ("{{ items.a }}", "must start with"),
        ("{{ env.HOME }}", "must start with"),
        ("{{ item }}", "must name a field"),
        ("{{ item.a[-1] }}", "expected"),
        ("{{ item.a b }}", "expected"),
        ("{{ item.a | upper }}", "expected"),
        ("{{ item.a() }}", "expected"),
        ("{{ item..a }}", "expected"),
        ("{{ sample.tokens }}", "sample has only output_text"),
        ("{{ item" + ".a" * (MAX_PATH_STEPS + 1) + " }}", "levels deep"),
        ("x" * (MAX_TEMPLATE_LENGTH + 1), "more than"),
    ],
)
def test_syntax_error_names_the_problem(template: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_template(template)


def test_python_attributes_are_not_reachable() -> None:
    with pytest.raises(UnresolvedVariable):
        render("{{ item.__class__ }}")
    with pytest.raises(UnresolvedVariable):
        render("{{ sample.output_text.__class__ }}")


@pytest.mark.timeout(20)  # fails on another order of growth, not on a busy machine
def test_hostile_template_ends() -> None:
    for text in ("{" * MAX_TEMPLATE_LENGTH, "{{ item." + "a" * 60_000, "{{ item.a }}" * 5_000):
        try:
            parse_template(text)
        except ValueError:
            continue


def sample_text(template: str, output: str) -> str:
    return rendered(parse_template(template), Sample(output), {})


@pytest.mark.parametrize(
    ("template", "output", "expected"),
    [
        ("{{ sample.choices[0].message.content }}", "an answer", "an answer"),
        ("{{ sample.output_tools }}", "an answer", "[]"),
        ("{{ sample.output_json.city }}", '{"city": "Z\u00fcrich"}', "Z\u00fcrich"),
        ("{{ sample.output_json.a[1].b }}", ' {"a": [0, {"b": 2.5}]}\n', "2.5"),
        ("{{ sample.output_json }}", '{"a":  [true, null]}', '{"a": [true, null]}'),
        ("{{ sample.output_json }}", "null", "null"),
    ],
)
def test_what_a_sample_has(template: str, output: str, expected: str) -> None:
    assert sample_text(template, output) == expected


@pytest.mark.parametrize(
    "output",
    ["no json", "", '{"a": 1', '{"a": NaN}', '{"a": 1, "a": 2}', '{"a": 1e999}', "[" * 100_000, "1" * 70_000],
)
def test_output_that_is_not_json_has_no_output_json(output: str) -> None:
    with pytest.raises(GradeFault) as caught:
        sample_text("{{ sample.output_json }}", output)
    assert caught.value.info.kind == "invalid_variable_error"
    assert "{{ sample.output_json }} is not in the data" in caught.value.info.message


def test_sample_fields_are_those_of_the_templates() -> None:
    assert set(Sample("{}").variables()) == set(SAMPLE_FIELDS)
    assert set(Sample("{").variables()) == set(SAMPLE_FIELDS) - {"output_json"}
    json.dumps(Sample('{"a": 1}').variables())


def test_output_is_parsed_once() -> None:
    sample = Sample('{"a": []}')
    assert sample.variables()["output_json"] is sample.variables()["output_json"]
    assert sample == Sample('{"a": []}')
