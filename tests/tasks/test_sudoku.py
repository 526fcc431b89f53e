"""Generated Sudoku data: valid, unique, distinct, deterministic, split by grid; demonstrations as noisy as asked."""

from __future__ import annotations

from collections import Counter

import pytest

from bgpo.errors import InvalidInput
from bgpo.rewards import Sample, compile_grader
from bgpo.rewards.grids import GRIDS, solve
from bgpo.tasks import sudoku
from bgpo.tasks.rows import seeded


def test_split_is_by_grid() -> None:
    train, test = set(sudoku.grids("train")), set(sudoku.grids("test"))
    assert (len(train), len(test)) == (200, 88)
    assert train | test == set(GRIDS)
    assert {row["solution"] for row in sudoku.generate(3000, 0, "train")} == train
    assert {row["solution"] for row in sudoku.generate(3000, 0, "test")} == test


def test_rows() -> None:
    rows = sudoku.generate(1200, 7, "train")
    puzzles = [row["puzzle"] for row in rows]
    assert len(set(puzzles)) == 1200
    for row in rows:
        assert row["messages"] == [{"role": "user", "content": row["puzzle"]}]
        assert solve(row["puzzle"]) == row["solution"]
    givens = Counter(16 - puzzle.count("0") for puzzle in puzzles)
    assert set(givens) == set(range(4, 10))
    assert min(givens.values()) > 150  # uniform would be 200


def test_deterministic_by_seed_and_split() -> None:
    first = sudoku.generate(50, 1, "train")
    assert sudoku.generate(50, 1, "train") == first
    assert sudoku.generate(20, 1, "train") == first[:20]
    assert sudoku.generate(50, 2, "train") != first


def test_givens() -> None:
    rows = sudoku.generate(100, 0, "test", (15, 15))
    assert all(row["puzzle"].count("0") == 1 for row in rows)
    for bad in [(3, 9), (4, 16), (9, 4)]:
        with pytest.raises(InvalidInput, match="givens"):
            sudoku.generate(1, 0, "train", bad)


def test_asking_for_more_than_there_are_is_an_error() -> None:
    assert len(sudoku.generate(88 * 16, 0, "test", (15, 15))) == 88 * 16
    with pytest.raises(InvalidInput, match=f"only {88 * 16} distinct test puzzles with 15-15 givens"):
        sudoku.generate(88 * 16 + 1, 0, "test", (15, 15))
    several = sudoku.generate(2000, 0, "test", (14, 15))  # 15 givens run out, 14 go on
    assert len({row["puzzle"] for row in several}) == 2000


def test_demonstrations() -> None:
    rng = seeded("noise")
    wrong_cells: Counter[int] = Counter()
    for row in sudoku.generate(2000, 0, "train"):
        shown = sudoku.demonstrate(row, rng, noise=0.65)
        user, assistant = shown["messages"]
        assert user == row["messages"][0]
        assert assistant["role"] == "assistant"
        assert {key: value for key, value in shown.items() if key != "messages"} == {
            "puzzle": row["puzzle"],
            "solution": row["solution"],
        }
        wrong = [cell for cell in range(16) if assistant["content"][cell] != row["solution"][cell]]
        assert all(row["puzzle"][cell] == "0" for cell in wrong)
        assert set(assistant["content"]) <= set("1234")
        wrong_cells[len(wrong)] += 1
    assert set(wrong_cells) == {0, 2, 3, 4, 5}
    assert wrong_cells[0] / 2000 == pytest.approx(0.35, abs=0.04)
    assert all(wrong_cells[count] / 1300 == pytest.approx(0.25, abs=0.05) for count in (2, 3, 4, 5))


def test_noise_zero_and_few_empty_cells() -> None:
    row = sudoku.generate(1, 0, "train", (15, 15))[0]
    assert sudoku.demonstrate(row, seeded(0), noise=0)["messages"][1]["content"] == row["solution"]
    wrong = sudoku.demonstrate(row, seeded(0), noise=1)["messages"][1]["content"]
    assert sum(a != b for a, b in zip(wrong, row["solution"], strict=True)) == 1


def test_grader_fits_the_rows() -> None:
    for row in sudoku.generate(20, 3, "test"):
        for spec in (sudoku.grader_spec("mixed"), sudoku.grader_spec("solved", reference=True)):
            grade = compile_grader(spec).grade(Sample(row["solution"]), row)
            assert (grade.score, grade.solved, grade.error) == (1.0, True, None)
