"""Formulas against Python's own arithmetic, plus caps, errors and hostile input."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bgpo.rewards.formula import FUNCTIONS, MAX_DEPTH, MAX_LENGTH, FormulaError, compile_formula, is_name

NAMES = ("a", "b", "min_length")
SCOPE = {
    "min": lambda *values: min(values),
    "max": lambda *values: max(values),
    "abs": abs,
    "floor": lambda x: float(math.floor(x)),  # Python's integers would be exact, huge and slow
    "ceil": lambda x: float(math.ceil(x)),
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}


def evaluate(text: str, **scores: float) -> float:
    return compile_formula(text, scores).evaluate(scores)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", 1.0),
        ("0.8 * a + 0.2 * b", 0.8 * 0.5 + 0.2 * 2),
        ("-2^2", -4.0),
        ("2^-1", 0.5),
        ("2^3^2", 512.0),
        ("(-8)^3", -512.0),
        ("8/4/2", 1.0),
        ("1-2-3", -4.0),
        ("--1", 1.0),
        ("min(a, b, -1)", -1.0),
        ("max(a)", 0.5),
        ("floor(2.7) + ceil(2.1)", 5.0),
        (".5e1", 5.0),
        ("\n a\t", 0.5),
    ],
)
def test_hand_worked(text: str, expected: float) -> None:
    assert evaluate(text, a=0.5, b=2.0) == pytest.approx(expected)


def test_functions_are_those_of_openai() -> None:
    assert set(SCOPE) == {"min", "max", "abs", "floor", "ceil", "exp", "sqrt", "log"} == FUNCTIONS


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2^64", 2.0**64),
        ("2^-64", 2.0**-64),
        ("0^0", 1.0),
        ("a^0.5", 0.5**0.5),
        ("exp(-1e4)", 0.0),
        ("log(exp(1))", 1.0),
    ],
)
def test_ends_of_the_range(text: str, value: float) -> None:
    assert evaluate(text, a=0.5) == pytest.approx(value)


def test_a_score_that_is_not_finite_is_an_error() -> None:
    formula = compile_formula("a + 0", ("a",))
    for score in (math.nan, math.inf):
        with pytest.raises(FormulaError, match="not finite"):
            formula.evaluate({"a": score})


def expressions() -> st.SearchStrategy[str]:
    atoms = st.sampled_from(NAMES) | st.floats(0, 9).map(lambda x: f"{x:.3f}") | st.integers(0, 12).map(str)

    def extend(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        pair = st.tuples(inner, inner)
        return st.one_of(
            st.builds("{0[0]}{1}{0[1]}".format, pair, st.sampled_from("+-*/^")),
            st.builds("({0[0]} {1} {0[1]})".format, pair, st.sampled_from("+-*/^")),
            st.builds("-{}".format, inner),
            st.builds("{}({})".format, st.sampled_from(sorted(FUNCTIONS)), inner),
            st.builds("{1}({0[0]}, {0[1]})".format, pair, st.sampled_from(["min", "max"])),
        )

    return st.recursive(atoms, extend, max_leaves=12)


@settings(max_examples=500, deadline=None)
@given(expressions(), st.tuples(*[st.floats(-4, 4)] * 3))
def test_equals_python(text: str, values: tuple[float, ...]) -> None:
    scores = dict(zip(NAMES, values, strict=True))
    try:
        ours = compile_formula(text, NAMES).evaluate(scores)
    except FormulaError:
        ours = None
    python = re.sub(r"(?<![\w.])(\d+)(?![\w.])", r"\1.0", text.replace("^", "**"))
    try:
        expected = eval(python, {"__builtins__": {}}, {**SCOPE, **scores})  # noqa: S307 - text made by this test
    except (ArithmeticError, ValueError, TypeError):  # TypeError: a complex number reached a function
        expected = None
    if ours is not None:
        assert expected is not None
        assert ours == pytest.approx(expected, rel=1e-12, nan_ok=False)
    elif isinstance(expected, float | int) and math.isfinite(expected):
        assert "**" in python or "exp" in python  # only the exponent cap or an overflow on the way may differ


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "end of the formula"),
        ("a +", "end of the formula"),
        ("a b", "unexpected 'b' at character 2"),
        ("(a", "expected '\\)'"),
        ("a)", "unexpected '\\)'"),
        ("a ** b", "unexpected '\\*'"),
        ("a // b", "unexpected '/'"),
        ("c", "unknown name 'c'"),
        ("min", "expected '\\('"),
        ("min()", "unexpected '\\)'"),
        ("sqrt(a, b)", "expected '\\)'"),
        ("pow(a, b)", "unknown name 'pow'"),
        ("a.b", "unexpected '.'"),
        ("__import__('os')", 'unexpected "\'"'),
        ("a if b else 0", "unexpected 'if'"),
        ("1e999", "too large"),
        ("1;2", "unexpected ';'"),
        ("\u0661", "unexpected"),
        ("a" * (MAX_LENGTH + 1), "more than"),
        ("(" * (MAX_DEPTH + 1) + "a" + ")" * (MAX_DEPTH + 1), "nested deeper"),
        ("-" * (MAX_DEPTH + 1) + "a", "nested deeper"),
        ("2^" * (MAX_DEPTH + 1) + "a", "nested deeper"),
        ("abs(" * (MAX_DEPTH + 1) + "a" + ")" * (MAX_DEPTH + 1), "nested deeper"),
    ],
)
def test_does_not_compile(text: str, message: str) -> None:
    with pytest.raises(FormulaError, match=message):
        compile_formula(text, ("a", "b"))


@pytest.mark.parametrize(
    "text",
    [
        "1/a",
        "a^-1",
        "sqrt(-1)",
        "log(a)",
        "exp(1000)",
        "(-8)^0.5",
        "99^98^97",
        "1e308*10",
        "2^64.5",
        "1e308+1e308-1e308",
    ],
)
def test_no_finite_value_is_an_error(text: str) -> None:
    formula = compile_formula(text, ("a",))
    with pytest.raises(FormulaError):
        formula.evaluate({"a": 0.0})


def test_long_chain_needs_no_recursion() -> None:
    terms = MAX_LENGTH // 2
    assert evaluate("+".join(["a"] * terms), a=1.0) == terms


def test_names_used() -> None:
    assert compile_formula("a + min(b, 1)", ("a", "b", "c")).names == {"a", "b"}
    assert is_name("exact_match")
    assert not any(is_name(name) for name in ("min", "1a", "a-b", "", "a b", "\u00e4"))


@pytest.mark.timeout(20)  # fails on another order of growth, not on a busy machine
def test_hostile_input_ends() -> None:
    for text in (" " * MAX_LENGTH, "9" * MAX_LENGTH, "(" * MAX_LENGTH, "2^" * 900, "1." * 900, "e" * MAX_LENGTH):
        with pytest.raises(FormulaError):
            compile_formula(text, ())
