"""The grading benchmark measures batches that are graded as they should be."""

from __future__ import annotations

import pytest

from benchmarks.rewards import GRADERS, measure


@pytest.mark.parametrize("name", GRADERS)
def test_half_or_all_are_solved_without_errors(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BGPO_ALLOW_UNSANDBOXED", "1")
    row = measure(name, 6)
    assert row["errors"] == 0
    # Of the math answers, those with i % 3 == 0 are right.
    solved = {"sudoku": 0.5, "countdown": 0.5, "math": round(2 / 6, 3), "python": 0.5, "code": 0.5}
    assert row["solved"] == solved[name]
