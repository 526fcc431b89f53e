"""`length`: the band, its margins and its units, against values worked by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgpo.rewards import Grade, Sample, compile_grader


def grade(text: str, **fields: Any) -> Grade:
    return compile_grader({"type": "length", "name": "short", **fields}).grade(Sample(text), {})


@pytest.mark.parametrize(
    ("words", "score"),
    [(0, 0.0), (5, 0.0), (6, 0.0), (7, 0.25), (9, 0.75), (10, 1.0), (20, 1.0), (21, 0.75), (24, 0.0), (400, 0.0)],
)
def test_band_with_margin(words: int, score: float) -> None:
    result = grade("word " * words, minimum=10, maximum=20, margin=4)
    assert result.score == pytest.approx(score)
    assert result.metrics == {"solved": float(score == 1.0), "length": words}
    hard = grade("word " * words, minimum=10, maximum=20)
    assert hard.score == float(score == 1.0)


def test_one_end_is_enough() -> None:
    assert [grade("x" * n, unit="characters", minimum=3).score for n in (2, 3, 3000)] == [0.0, 1.0, 1.0]
    assert [grade("x" * n, unit="characters", maximum=0, margin=2).score for n in (0, 1, 2)] == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("unit", "text", "length"),
    [
        ("characters", "na\u00efve \U0001f600", 7),
        ("words", " two\n\nwords\t", 2),
        ("lines", "one\ntwo\r\n\nfour\n", 4),
        ("lines", "", 0),
    ],
)
def test_units(unit: str, text: str, length: int) -> None:
    assert grade(text, unit=unit, minimum=1).metrics["length"] == length


@given(st.text(), st.sampled_from(["characters", "words", "lines"]), st.integers(0, 9), st.integers(0, 9))
def test_any_text_scores_within_the_range(text: str, unit: str, minimum: int, margin: int) -> None:
    result = grade(text, unit=unit, minimum=minimum, maximum=9, margin=margin)
    assert result.error is None
    assert 0.0 <= result.score <= 1.0
    assert result.solved == (result.score == 1.0)
