"""`format`: patterns over several lines, tag structures worked by hand, hostile patterns and texts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgpo.errors import SpecError
from bgpo.rewards import Grade, Sample, compile_grader
from bgpo.rewards.format import MAX_TEXT

TAGS = ["reasoning", "answer"]
GOOD = "<reasoning>\nfirst\nthen\n</reasoning>\n<answer>\n42\n</answer>\n"


def grade(text: str, **fields: Any) -> Grade:
    with compile_grader({"type": "format", "name": "form", **fields}) as grader:
        return grader.grade(Sample(text), {})


@pytest.mark.parametrize(
    ("pattern", "match", "text", "score"),
    [
        ("<think>.*</think>.*", "full", "<think>a\nb</think>\nso c", 1.0),
        ("<think>.*</think>", "full", " \n<think>a</think>\n", 1.0),
        ("<think>.*</think>", "full", "well <think>a</think>", 0.0),
        ("<think>.*</think>", "search", "well <think>a</think>", 1.0),
        (r"^#### \d+$", "search", "so\n#### 4", 0.0),  # ^ is the begin of the text
        (r"(?m)^#### \d+$", "search", "so\n#### 4\n", 1.0),
        ("", "full", "", None),
    ],
)
def test_patterns(pattern: str, match: str, text: str, score: float | None) -> None:
    if score is None:
        with pytest.raises(SpecError) as caught:
            grade(text, pattern=pattern, match=match)
        assert caught.value.param == "pattern"
        return
    result = grade(text, pattern=pattern, match=match)
    assert (result.score, result.solved, result.metrics) == (score, score == 1.0, {"solved": score})


@pytest.mark.parametrize("pattern", ["(", "((a{1000}){1000}){1000}", "(?R)", "a" * 4097])
def test_a_pattern_that_is_refused_names_its_field(pattern: str) -> None:
    with pytest.raises(SpecError) as caught:
        grade("", pattern=pattern)
    assert caught.value.param == "pattern"


def test_running_out_of_time_is_an_error_not_a_zero() -> None:
    result = grade("a" * 5000, pattern="(a+)+b(a|aa)+")
    assert result.error is None  # no b anywhere, which is seen at once
    result = grade("a" * 5000 + "c", pattern="(a|aa)+$")
    assert result.error is not None
    assert result.error.kind == "other_error"
    assert result.error.message == "the pattern took longer than 0.5 s"


def test_a_text_beyond_the_limit_matches_nothing() -> None:
    assert grade("a" * MAX_TEXT, pattern="a+").score == 1.0
    assert grade("a" * (MAX_TEXT + 1), pattern="a+").score == 0.0


@pytest.mark.parametrize(
    ("text", "share", "strict"),
    [
        (GOOD, 1.0, 1.0),
        (f"Sure!\n{GOOD}", 1.0, 2 / 3),
        (GOOD.replace("\n<answer>", "\nso\n<answer>"), 1.0, 2 / 3),
        (f"{GOOD}Done.", 1.0, 2 / 3),
        ("<reasoning>a</reasoning><answer>b", 0.5, 1 / 3),
        ("<reasoning>a<answer>b</answer>", 0.5, 1 / 3),
        ("<answer>b</answer><reasoning>a</reasoning>", 0.5, 1 / 3),
        (f"{GOOD}{GOOD}", 0.0, 0.0),
        (GOOD + "<answer>43</answer>", 0.5, 1 / 3),
        ("<reasoning>so <answer>b</answer></reasoning>", 0.5, 1 / 3),
        ("<reasoning>so <answer>b</reasoning></answer>", 0.5, 1 / 3),
        ("</reasoning>a<reasoning><answer>b</answer>", 0.5, 1 / 3),
        ("<Reasoning>a</Reasoning><answer >b</answer>", 0.0, 0.0),
        ("", 0.0, 0.0),
        (" \n", 0.0, 0.0),
    ],
)
def test_tags(text: str, share: float, strict: float) -> None:
    assert grade(text, tags=TAGS, reward="fraction").score == pytest.approx(share)
    assert grade(text, tags=TAGS, reward="fraction", strict=True).score == pytest.approx(strict)
    assert grade(text, tags=TAGS).score == float(share == 1.0)
    assert grade(text, tags=TAGS, strict=True).solved == (strict == 1.0)


@given(st.text() | st.lists(st.sampled_from(["<a>", "</a>", "<b>", "</b>", "x", " "])).map("".join), st.booleans())
def test_any_text_scores_within_the_range(text: str, strict: bool) -> None:
    result = grade(text, tags=["a", "b"], strict=strict, reward="fraction")
    assert result.error is None
    assert 0.0 <= result.score <= 1.0
    assert grade(text, pattern=".*").error is None
