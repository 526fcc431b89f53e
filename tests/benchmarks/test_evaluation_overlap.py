"""The overlap benchmark measures an evaluation of all rows, both halves of which take time."""

from __future__ import annotations

from benchmarks.evaluation_overlap import measure


def test_a_small_measurement() -> None:
    row = measure(4, 2, 0.001)
    assert (row["rows"], row["batch"], row["grading_s"]) == (4, 2, 0.01)
    assert float(row["together_s"]) > 0
    assert float(row["sampling_s"]) > 0
