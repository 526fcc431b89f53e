"""The Countdown grader against Python's exact arithmetic, messy completions, cheats and hostile input."""

from __future__ import annotations

import ast
import re
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgpo.rewards import Sample, compile_grader
from bgpo.rewards.countdown import MAX_DEPTH, ExpressionError, evaluate
from bgpo.rewards.extract import boxed

ITEM = {"numbers": [30, 100, 93], "target": 23}
GRADER = compile_grader({"type": "countdown", "name": "reach"})


def score(text: str, numbers: object = ITEM["numbers"], target: object = ITEM["target"]) -> float:
    grade = GRADER.grade(Sample(text), {"numbers": numbers, "target": target})
    assert grade.error is None, grade.error
    return grade.score


def exact(node: ast.expr) -> Fraction:
    """Python's own parse, evaluated in rationals."""
    match node:
        case ast.Constant(value=int(value)):
            return Fraction(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -exact(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return exact(operand)
        case ast.BinOp(left=left, op=op, right=right):
            a, b = exact(left), exact(right)
            match op:
                case ast.Add():
                    return a + b
                case ast.Sub():
                    return a - b
                case ast.Mult():
                    return a * b
                case ast.Div():
                    return a / b
    raise AssertionError(ast.dump(node))


def expressions() -> st.SearchStrategy[str]:
    def extend(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        pair = st.tuples(inner, inner)
        return st.one_of(
            st.builds("{0[0]}{1}{0[1]}".format, pair, st.sampled_from(["+", "-", "*", "/", " - ", " / "])),
            st.builds("({})".format, inner),
            st.builds("-{}".format, inner),
        )

    return st.recursive(st.integers(0, 120).map(str), extend, max_leaves=8)


@settings(max_examples=500, deadline=None)
@given(expressions())
def test_value_equals_python(text: str) -> None:
    try:
        expected = exact(ast.parse(text, mode="eval").body)
    except ZeroDivisionError:
        with pytest.raises(ExpressionError, match="division by zero"):
            evaluate(text)
        return
    assert evaluate(text) == expected
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    if len(numbers) >= 2 and expected.denominator == 1:
        assert score(text, numbers, int(expected)) == 1.0
        assert score(text, numbers, int(expected) + 1) == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "30+93-100",
        "30 + 93 - 100 = 23",
        "23 = 30 + 93 - 100",
        "30-(100-93)",
        "((30)) + (93-100)",
        "-100+93+30",
        "Let me try 100-93=7, and 30-7=23.\nSo the answer is 30 - (100 - 93).",
        "<think>100*30</think><answer>30+93-100</answer>",
        "<answer>\n30+93-100 = 23\n</answer>\nI used 30, 93 and 100 once each.",
        "<answer>30-93-100</answer> no: <answer>30+93-100",
        "The result is \\boxed{30 + 93 - 100}.",
        "\\boxed{30+93} is partial, \\boxed{\\left(30 + 93\\right) - 100 = 23}",
        "$$30 + 93 - 100 = 23$$",
        "30 + 93 \u2212 100",
        "- 30 + 93 - 100 = 23",  # a list marker, not a sign
        "1. 30+93 = 123\n2. 30+93-100 = 23",
        "[30 + 93] - 100",
        "First 100-30-93 = -23, wrong sign. Then 30+93-100 = 23. Check: 123-100 = 23.",
    ],
)
def test_messy_completion_is_read(text: str) -> None:
    assert score(text) == 1.0


def test_latex_products_and_fractions() -> None:
    assert score("\\boxed{\\frac{6 \\times 8}{2}}", [6, 8, 2], 24) == 1.0
    assert score("\\dfrac{\\frac{12}{3}}{2} + 5", [12, 3, 2, 5], 7) == 1.0
    assert score("6 \\cdot 8 \\div 2", [6, 8, 2], 24) == 1.0
    assert score("6 \u00d7 8 \u00f7 2", [6, 8, 2], 24) == 1.0


def test_fractions_on_the_way_are_exact() -> None:
    assert score("8/(3-8/3)", [8, 3, 8, 3], 24) == 1.0
    assert score("(1/3)*3*7", [1, 3, 3, 7], 7) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "23",
        "30+93",  # not all numbers
        "30+93-100+0",  # a number too many
        "30+93-100+30-30",  # used twice
        "30+93+100",  # wrong value
        "100-93+30-14",
        "30+9 3-100",
        "3093-100",
        "30 93 100",
        "(30+93)-(100",
        "30+93-100)",
        "30++93--100*",
    ],
)
def test_wrong_answers_score_zero(text: str) -> None:
    assert score(text) == 0.0


@pytest.mark.parametrize(
    ("text", "numbers", "target"),
    [
        ("2**3", [2, 3], 8),
        ("7//2", [7, 2], 3),
        ("2^3", [2, 3], 8),
        ("2^3+5", [3, 5], 8),  # not "3+5" cut out of it
        ("sqrt(9)+3", [9, 3], 12),
        ("5!+3", [5, 3], 8),
        ("7%4+1", [4, 1], 5),
        ("1.5+2", [5, 2], 7),
        ("2(3)", [2, 3], 6),
        ("1e3+2", [1, 3, 2], 1002),
        ("0x10+2", [0, 10, 2], 12),
        ("1_0+2", [10, 2], 12),
        ("5/0*0", [5, 0, 0], 0),
        ("6=2*3", [6, 2, 3], 6),
        ("__import__('os').system('id')", [2, 3], 5),
    ],
)
def test_other_arithmetic_is_not_accepted(text: str, numbers: list[int], target: int) -> None:
    assert score(text, numbers, target) == 0.0


def test_valid_expression_metric() -> None:
    for text, solved, valid in [("30+93-100", 1, 1), ("30+93+100", 0, 1), ("30+93", 0, 0)]:
        assert GRADER.grade(Sample(text), ITEM).metrics == {"solved": solved, "valid_expression": valid}


@pytest.mark.parametrize("numbers", [[30, 100, 93], "30,100,93", "30 100 93", "[30, 100, 93]", " 30, 100,93 "])
def test_numbers_as_list_or_text(numbers: object) -> None:
    assert score("30+93-100", numbers, "23") == 1.0


@pytest.mark.parametrize(
    ("item", "kind", "message"),
    [
        ({"numbers": [1, 2]}, "invalid_variable_error", "item.target"),
        ({"target": 2}, "invalid_variable_error", "item.numbers"),
        ({"numbers": [5], "target": 5}, "other_error", "2 to 16"),
        ({"numbers": [1] * 17, "target": 17}, "other_error", "2 to 16"),
        ({"numbers": [1.5, 2], "target": 3}, "other_error", "integers"),
        ({"numbers": [-1, 2], "target": 1}, "other_error", "integers"),
        ({"numbers": None, "target": 1}, "other_error", "integers"),
        ({"numbers": [1, 2], "target": 1.5}, "other_error", "target"),
        ({"numbers": [1, 2], "target": "9" * 5000}, "other_error", "target"),
        ({"numbers": "9" * 5000 + ",1", "target": 1}, "other_error", "integers"),
    ],
)
def test_faulty_item_is_an_error_not_a_zero(item: dict[str, object], kind: str, message: str) -> None:
    grade = GRADER.grade(Sample("1+2"), item)
    assert grade.error is not None
    assert grade.error.kind == kind
    assert message in grade.error.message


@pytest.mark.parametrize(
    "text",
    [
        "99**98**97",
        "99*" * 200_000 + "1",
        "(" * 200_000,
        "-" * 200_000 + "1",
        "1+" * 100_000,
        "9" * 200_000,
        "\\boxed{" * 60_000,
        "**a" * 60_000,
        "** " * 60_000,
        "1 x" * 60_000,
        "<answer> " * 60_000,
        "\\frac{" * 60_000,
        "\\frac{1}{2}" * 20_000,
        "<answer>" * 50_000,
        "1 " * 100_000,
        "1 x " * 50_000,
        "= 1+1 " * 50_000,
        "{" * 200_000 + "}" * 200_000,
        "\n- " * 60_000,
        " " * 200_000,
        "(" * 100 + "1" + ")" * 100 + "+2",
        "\x00\ud800" * 100,
    ],
)
@pytest.mark.timeout(20)  # fails on another order of growth, not on a busy machine
def test_hostile_completion_scores_zero(text: str) -> None:
    assert score(text, [99, 98, 97], 5) == 0.0


@given(st.text() | st.text(alphabet="12 3+-*/()x{}[]=\\\\<answer>.\n"))
def test_any_text_scores_zero_or_one(text: str) -> None:
    assert score(text) in (0.0, 1.0)


def test_depth_and_length_caps() -> None:
    deep = MAX_DEPTH + 1
    with pytest.raises(ExpressionError, match="nested deeper"):
        evaluate("(" * deep + "1" + ")" * deep)
    with pytest.raises(ExpressionError, match="more than"):
        evaluate("1+" * 200 + "1")


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("\\boxed{a{b}c}", "a{b}c"),
        ("\\boxed{1} and \\boxed{2}", "2"),
        ("{ \\boxed{1}", "1"),
        ("} \\boxed{1} \\boxed{2", "1"),
        ("none {here}", None),
    ],
)
def test_boxed(text: str, content: str | None) -> None:
    assert boxed(text) == content
