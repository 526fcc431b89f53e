"""Users' regular expressions: agreement with `re`, time limits, and what is refused because no time limit covers it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgpo.rewards.patterns import MAX_PATTERN, MAX_UNROLLED, Pattern, PatternTimeout, unrolled


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"\d{4}-\d{2}-\d{2}", "on 2026-11-28"),
        (r"^(a|b)+$", "abab"),
        (r"(?P<x>.)(?P=x)", "hello"),
        (r"(?i)yes|no", "YES"),
        (r"^(?:\w+\s+){2,5}\w+$", "three words here"),
        (r"(?<!\d)\d{3}(?!\d)", "1234 567"),
        (r"a{3}", "aa"),
        ("", ""),
    ],
)
def test_agrees_with_re(pattern: str, text: str) -> None:
    assert Pattern(pattern).matches(text) == bool(re.search(pattern, text))
    assert Pattern(pattern).matches(text, whole=True) == bool(re.fullmatch(pattern, text))


def test_line_ends_only_if_asked_for() -> None:
    assert Pattern("a.b", dot_all=True).matches("a\nb")
    assert not Pattern("a.b").matches("a\nb")


@pytest.mark.parametrize("pattern", ["(a+)+d?$", "(a|aa)+$", "(a*)*(c|d)$"])
def test_a_pattern_that_backtracks_runs_out_of_time(pattern: str) -> None:
    with pytest.raises(PatternTimeout, match=r"took longer than 0.05 s"):
        Pattern(pattern).matches("a" * 10_000 + "!", seconds=0.05)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "not a regular expression"),
        ("a{2}{3}", "not a regular expression"),
        ("a" * (MAX_PATTERN + 1), "more than 4096"),
        ("(" * 1500 + "a" + ")" * 1500, "nested too deep"),
        ("(?R)", "calls itself"),
        ("(a(?1)?b)", "calls itself"),
        ("(?P<x>a(?&x)?)", "calls itself"),
        ("(?P<x>a(?P>x)?)", "calls itself"),
        ("(?-1)", "calls itself"),
        ("((a{1000}){1000}){1000}", "multiply"),
        ("(?:(?:.{60}){60}){60}{60}", "multiply"),
        ("(a{1000}[)]{1}b){1000}", "multiply"),
        (r"(a{1000}\)b){1000}", "multiply"),
        ("(?x)(a{1000}) {1000}", "multiply"),
        ("(a{1000})(?#why){1000}", "multiply"),
        ("(?x)(a{1000})#]\n{1000}", "multiply"),
        ("a{99999999999999999999}", "multiply"),
        ("a{9999}" * 300, "multiply"),
        (r"\p{L}{1000}" * 2 + r"(?:a){1000}", "multiply"),
    ],
)
def test_refused(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pattern(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        r"^.{0,4000}$",
        r"(?:\S+\s+){10,2000}\S+",
        r"\b[A-F0-9]{8}-([A-F0-9]{4}-){3}[A-F0-9]{12}\b",
        r"<think>.{100,}</think>\s*<answer>.{1,500}</answer>",
    ],
)
def test_usual_repeats_are_allowed(pattern: str) -> None:
    assert unrolled(pattern) < MAX_UNROLLED
    Pattern(pattern)


@given(st.text(alphabet="ab1(){}[]|*+?.^$\\<>=!:,-&#PxiR \n", max_size=16), st.text(max_size=8))
def test_any_pattern_compiles_or_is_a_value_error(pattern: str, text: str) -> None:
    try:
        compiled = Pattern(pattern)
    except ValueError:
        return
    try:
        compiled.matches(text)
    except PatternTimeout:
        return
