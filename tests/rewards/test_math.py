"""`math`: what is taken for the answer in messy completions, what equals what, and hostile answers.

Equality is checked against a table worked by hand; all rows that need math-verify share its processes.
"""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgpo.rewards import Grader, Sample, compile_grader
from bgpo.rewards.math import equivalent, extract_answer
from bgpo.rewards.numbers import parse_number, plain_words
from bgpo.rewards.verifier import Verifier, VerifierError, shared_verifier


def grader(**fields: Any) -> Grader:
    return compile_grader({"type": "math", "name": "m", **fields})


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{42}.", "42"),
        ("first \\boxed{1}, no: \\boxed{2} it is", "2"),
        ("\\boxed{\\frac{1}{\\sqrt{2}}}", "\\frac{1}{\\sqrt{2}}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("<reasoning>\n\\boxed{3}\nno\n</reasoning>\n<answer>\n\\boxed{4}\n</answer>", "4"),
        ("<answer>1,234</answer>", "1,234"),
        ("<answer>x^2 + 1</answer>", "x^2 + 1"),
        ("<answer>The answer is 18 dollars.</answer>", "18"),
        ("<answer>\n18", "18"),
        ("16 - 3 - 4 = 9\nso 9 * 2 = $18 a day", "$18"),
        ("She has 1,000 left.", "1,000"),
        ("it costs $3.50.", "$3.50"),
        ("that is 25%", "25%"),
        ("about 3/4 of them", "3/4"),
        ("it is -7", "-7"),
        ("10-3=7", "7"),
        ("we get 12 = 7+5\n#### 12 apples", "12 apples"),
        ("so $x = \\frac{3}{4}$.", "\\frac{3}{4}"),
        ("costs $5, then $6", "$6"),
        ("version2 has x1", None),
        ("no number", None),
        ("", None),
        ("\\boxed{}", None),
        ("\\boxed{unclosed 3", "3"),
        ("\\boxed{" + "1" * 1000 + "}", None),
        ("1 " * 40_000 + "7", "7"),
    ],
)
def test_extraction(text: str, answer: str | None) -> None:
    found = extract_answer(text)
    assert (found.strip() if found is not None else None) == answer


@pytest.mark.timeout(20)  # fails on another order of growth, not on a busy machine
def test_hostile_completions_end() -> None:
    for unit in (
        "answer is ",
        "answer: =",
        "<answer>",
        "<answer> ",
        "\\boxed{",
        "\\fbox {",
        "$\\",
        "#### ",
        "1,",
        "**",
        "\\(",
    ):
        extract_answer(unit * 50_000)
        extract_answer(unit * 50_000 + "7")


@given(st.text() | st.text(alphabet="0123456789,./%$-\\{}()= \nanswer is boxed#<>"))
def test_any_text_has_an_answer_or_none(text: str) -> None:
    answer = extract_answer(text)
    assert answer is None or 0 < len(answer.strip()) <= 400
    parse_number(text)
    plain_words(text)


def test_only_boxed() -> None:
    assert extract_answer("the answer is 4", boxed_only=True) is None
    assert extract_answer("<answer>4</answer>", boxed_only=True) is None
    assert extract_answer("\\boxed{4}", boxed_only=True) == "4"


@pytest.mark.parametrize(
    ("text", "value", "percent"),
    [
        ("1,000", Fraction(1000), False),
        ("1{,}000", Fraction(1000), False),
        ("-1,234,567.50", Fraction(-123456750, 100), False),
        ("3.50", Fraction(7, 2), False),
        (".5", Fraction(1, 2), False),
        ("5.", Fraction(5), False),
        ("$18.00", Fraction(18), False),
        ("-\\$18", Fraction(-18), False),
        ("\\frac{3}{4}", Fraction(3, 4), False),
        ("-\\dfrac34", Fraction(-3, 4), False),
        ("\\frac{-3}{4}", Fraction(-3, 4), False),
        ("3 / 4", Fraction(3, 4), False),
        ("1 1/2", Fraction(3, 2), False),
        ("-1\\frac{1}{2}", Fraction(-3, 2), False),
        ("50\\%", Fraction(50), True),
        ("90^\\circ", Fraction(90), False),
        ("3\\text{ cm}", Fraction(3), False),
        ("18 dollars", Fraction(18), False),
        ("12 square feet", Fraction(12), False),
        ("2 pi", None, False),
        ("3 or 4", None, False),
        ("18 x", None, False),
        ("1.5e3", Fraction(1500), False),
        ("\u22125", Fraction(-5), False),
        ("1,00", None, False),
        ("1/0", None, False),
        ("\\frac{1}{0}", None, False),
        ("1e999999999", None, False),
        ("9" * 150, None, False),
        ("(1,2)", None, False),
        ("x", None, False),
        ("", None, False),
    ],
)
def test_numbers(text: str, value: Fraction | None, percent: bool) -> None:
    number = parse_number(text)
    assert (number.value if number else None) == value
    assert number is None or number.percent == percent


EQUAL = [
    ("1000", "1,000"),
    ("0.5", "\\frac{1}{2}"),
    ("50\\%", "0.5"),
    ("50", "50%"),
    ("0.5", "50\\%"),
    ("\\text{(A)}", "A"),
    ("\\text{Evelyn}", "evelyn"),
    ("18", "18 dollars"),
    ("18", "x = 18"),
    ("2\\sqrt{2}", "\\sqrt{8}"),
    ("(x+1)^2", "x^2+2x+1"),
    ("(1, 2)", "\\left(1,2\\right)"),
    ("\\{1,2\\}", "\\{2,1\\}"),
    ("\\frac{\\pi}{2}", "\\pi/2"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"),
    ("2^{2024}", "2^{2024}"),
]
DIFFERENT = [
    ("3.50", "50"),
    ("50", "3.50"),
    ("1000", "1,00"),
    ("1/3", "0.33"),
    ("0.5", "0.05"),
    ("50%", "5"),
    ("A", "B"),
    ("2\\sqrt{2}", "2\\sqrt{3}"),
    ("[0,1)", "[0,1]"),
    ("(1,2)", "(2,1)"),
    ("18", "nothing"),
    ("18", "\\text{__import__('os')}"),
]


@pytest.mark.parametrize(("reference", "answer"), EQUAL)
def test_equal(reference: str, answer: str) -> None:
    assert equivalent(reference, answer)


@pytest.mark.parametrize(("reference", "answer"), DIFFERENT)
def test_different(reference: str, answer: str) -> None:
    assert not equivalent(reference, answer)


def test_rows_as_published_are_references() -> None:
    gsm8k = grader(reference="{{ item.answer }}")
    assert gsm8k.grade(Sample("it is 1000"), {"answer": "500 * 2\n#### 1,000"}).solved
    whole = grader(reference="{{ item.solution }}", answer="boxed")
    item = {"solution": "Hence $\\boxed{\\dfrac{1}{2}}$."}
    assert whole.grade(Sample("\\boxed{0.5}"), item).score == 1.0
    wrong = whole.grade(Sample("0.5"), item)
    assert (wrong.score, wrong.metrics) == (0.0, {"solved": 0.0, "answered": 0.0})


@pytest.mark.parametrize("answer", ["", "   ", "x" * 401])
def test_a_row_without_an_answer_is_an_error(answer: str) -> None:
    grade = grader().grade(Sample("\\boxed{1}"), {"answer": answer})
    assert grade.error is not None
    assert "reference must be an answer" in grade.error.message


def test_a_missing_field_is_an_error() -> None:
    grade = grader().grade(Sample("\\boxed{1}"), {})
    assert grade.error is not None
    assert grade.error.kind == "invalid_variable_error"


def test_a_power_tower_ends_its_process_and_nothing_else() -> None:
    batch = ["\\boxed{9^{9^{9^{9}}}}", "\\boxed{\\sqrt{16}}"]
    hostile, right = grader().grade_all([Sample(text) for text in batch], [{"answer": "4"}] * 2)
    assert (hostile.score, hostile.error) == (0.0, None)
    assert right.solved


def test_a_reference_that_never_ends_is_an_error() -> None:
    with pytest.raises(VerifierError, match="cannot read the reference"):
        shared_verifier().equal("9^{9^{9^{9}}}", "4")


def test_no_math_verify_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [])
    monkeypatch.setattr("sys.executable", str(Path(sys.executable).resolve()))  # outside of the virtual environment
    with pytest.raises(VerifierError, match=r"does not start: .*No module named"):
        Verifier().equal("x", "y")
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(VerifierError, match=r"does not start: .*/nowhere/python"):
        Verifier().equal("x", "y")


def test_many_samples_keep_their_order() -> None:
    count = 24
    samples = [Sample(f"\\boxed{{\\sqrt{{{n * n}}}}}") for n in range(count)]
    items = [{"answer": str(n if n % 3 else n + 1)} for n in range(count)]
    grades = grader().grade_all(samples, items)
    assert [grade.solved for grade in grades] == [bool(n % 3) for n in range(count)]
