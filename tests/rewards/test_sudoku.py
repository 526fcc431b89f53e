"""The Sudoku grader against an independent backtracking solver, messy completions, faulty items, and its speed."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bgpo.rewards import Sample, compile_grader
from bgpo.rewards.grids import GRIDS, is_solution, is_unique, solve
from bgpo.rewards.sudoku import extract_grid

PUZZLE = "3102200002100320"
SOLUTION = "3142243142131324"
ITEM = {"puzzle": PUZZLE}
UNITS = (
    [[4 * row + column for column in range(4)] for row in range(4)]
    + [[4 * row + column for row in range(4)] for column in range(4)]
    + [[8 * r + 2 * c, 8 * r + 2 * c + 1, 8 * r + 2 * c + 4, 8 * r + 2 * c + 5] for r in range(2) for c in range(2)]
)


def backtrack(cells: list[str]) -> Iterator[str]:
    """All solutions, by trying digits in the first empty cell."""
    if "0" not in cells:
        yield "".join(cells)
        return
    empty = cells.index("0")
    used = {cells[cell] for unit in UNITS if empty in unit for cell in unit}
    for digit in sorted(set("1234") - used):
        yield from backtrack([*cells[:empty], digit, *cells[empty + 1 :]])


def grade(text: str, item: dict[str, str] = ITEM, **spec: str) -> float:
    result = compile_grader({"type": "sudoku", "name": "grid", **spec}).grade(Sample(text), item)
    assert result.error is None, result.error
    return result.score


def test_all_288_grids() -> None:
    assert list(backtrack(["0"] * 16)) == list(GRIDS)
    assert len(GRIDS) == 288


def test_solver_equals_backtracking_on_random_puzzles() -> None:
    rng = random.Random(0)
    seen = set()
    for _ in range(400):
        grid = rng.choice(GRIDS)
        puzzle = "".join(digit if rng.random() < 0.45 else "0" for digit in grid)
        if rng.random() < 0.2:  # contradictory givens too
            puzzle = "".join(rng.choice("1234") if digit != "0" else "0" for digit in puzzle)
        valid = all(
            len(shown) == len(set(shown)) for u in UNITS if (shown := [puzzle[c] for c in u if puzzle[c] != "0"])
        )
        solutions = list(backtrack(list(puzzle))) if valid else []
        seen.add(min(len(solutions), 2))
        assert is_unique(puzzle) == (len(solutions) == 1)
        assert all(is_solution(puzzle, solution) for solution in solutions)
        if len(solutions) == 1:
            assert solve(puzzle) == solutions[0]
        else:
            with pytest.raises(ValueError, match=r"has \d+ solutions|empty cells"):
                solve(puzzle)
    assert seen == {0, 1, 2}


def test_rewards() -> None:
    two_wrong = SOLUTION[:15] + "1"
    two_wrong = two_wrong[:2] + "1" + two_wrong[3:]  # empty cells 2 and 15 of 8
    for reward, expected in {"solved": 0.0, "cell_accuracy": 6 / 8, "mixed": 3 / 8}.items():
        assert grade(two_wrong, reward=reward) == expected
        assert grade(SOLUTION, reward=reward) == 1.0
        assert grade("no grid here", reward=reward) == 0.0


def test_changed_given_is_not_solved_but_counts_empty_cells() -> None:
    other_given = "4" + SOLUTION[1:]
    result = compile_grader({"type": "sudoku", "name": "grid"}).grade(Sample(other_given), ITEM)
    assert result.metrics == {"solved": 0.0, "cell_accuracy": 1.0}
    assert not result.solved


def test_valid_grid_of_another_puzzle_is_not_solved() -> None:
    assert grade(GRIDS[0], reward="solved") == 0.0


@pytest.mark.parametrize(
    "text",
    [
        SOLUTION,
        f"  {SOLUTION}\n",
        "3142 2431 4213 1324",
        "3142\n2431\n4213\n1324",
        "3 1 4 2\n2 4 3 1\n4 2 1 3\n1 3 2 4",
        "3 1 | 4 2\n2 4 | 3 1\n----+----\n4 2 | 1 3\n1 3 | 2 4\n",
        "| 3 | 1 | 4 | 2 |\n|---|---|---|---|\n| 2 | 4 | 3 | 1 |\n| 4 | 2 | 1 | 3 |\n| 1 | 3 | 2 | 4 |",
        "\u2502 3 1 \u2502 4 2 \u2502\n\u2502 2 4 \u2502 3 1 \u2502\n\u251c\u2500\u2500\u253c\u2500\u2500\u2524\n"
        "\u2502 4 2 \u2502 1 3 \u2502\n\u2502 1 3 \u2502 2 4 \u2502",
        "[[3,1,4,2],[2,4,3,1],[4,2,1,3],[1,3,2,4]]",
        f"The puzzle {PUZZLE} has the solution {SOLUTION}.",
        f"{PUZZLE}\n{SOLUTION}",
        "The puzzle is\n3102\n2000\n0210\n0320\n\n3142\n2431\n4213\n1324",
        f"{PUZZLE}\n3142\n2431\n4213\n1324",
        "Row 1 needs a 4, and row 2 a 1 and a 3.\n\nSolution:\n3142\n2431\n4213\n1324\n\nI checked all 4 rows.",
        f"<reasoning>try 1111222233334444</reasoning>\n<answer>\n{SOLUTION}\n</answer> or 4444333322221111",
        f"<answer>1111222233334444</answer> wait. <answer>{SOLUTION}</answer>",
        f"cut off: <answer>{SOLUTION}",
        f"The final answer is \\boxed{{{SOLUTION}}}.",
    ],
)
def test_messy_completion_is_read(text: str) -> None:
    assert extract_grid(text) == SOLUTION
    assert grade(text, reward="solved") == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        SOLUTION[:15],
        SOLUTION + "1",
        "1" * 15 + "x",
        "<answer>I give up</answer>" + SOLUTION,
        f"{SOLUTION} no, 1111222233334444",  # the last block is the answer
        "\u0663\u0661\u0664\u0662" * 4,
        f"<answer></answer>{SOLUTION}",
    ],
)
def test_not_an_answer_scores_zero(text: str) -> None:
    assert grade(text, reward="solved") == 0.0


@pytest.mark.parametrize(
    ("item", "kind", "message"),
    [
        ({}, "invalid_variable_error", "item.puzzle"),
        ({"puzzle": "123"}, "other_error", "16 digits"),
        ({"puzzle": 5}, "other_error", "16 digits"),
        ({"puzzle": "5" + PUZZLE[1:]}, "other_error", "16 digits"),
        ({"puzzle": SOLUTION}, "other_error", "empty cells"),
        ({"puzzle": "0" * 16}, "other_error", "288 solutions"),
        ({"puzzle": "11" + "0" * 14}, "other_error", "0 solutions"),
    ],
)
def test_faulty_item_is_an_error_not_a_zero(item: dict[str, object], kind: str, message: str) -> None:
    grade = compile_grader({"type": "sudoku", "name": "grid"}).grade(Sample(SOLUTION), item)
    assert grade.error is not None
    assert grade.error.kind == kind
    assert message in grade.error.message


def test_reference_solution_of_a_puzzle_with_several() -> None:
    puzzle = "0" * 16
    grader = compile_grader({"type": "sudoku", "name": "grid", "solution": "{{ item.solution }}"})
    reference, other = GRIDS[0], GRIDS[100]
    assert grader.grade(Sample(reference), {"puzzle": puzzle, "solution": reference}).score == 1.0
    grade = grader.grade(Sample(other), {"puzzle": puzzle, "solution": reference})
    matching = sum(a == b for a, b in zip(reference, other, strict=True))
    assert grade.metrics == {"solved": 1.0, "cell_accuracy": matching / 16}
    wrong = grader.grade(Sample(other), {"puzzle": PUZZLE, "solution": other})
    assert wrong.error is not None
    assert "does not solve" in wrong.error.message


def test_puzzle_may_be_written_in_rows() -> None:
    assert grade(SOLUTION, {"puzzle": "3102\n2000\n0210\n0320\n"}) == 1.0


@pytest.mark.timeout(20)  # fails on another order of growth, not on a busy machine
def test_a_thousand_grades_end() -> None:
    grader = compile_grader({"type": "sudoku", "name": "grid", "reward": "mixed"})
    rng = random.Random(1)
    puzzles = ["".join(digit if rng.random() < 0.6 else "0" for digit in rng.choice(GRIDS)) for _ in range(4000)]
    items = [{"puzzle": puzzle} for puzzle in puzzles if "0" in puzzle and is_unique(puzzle)][:1000]
    samples = [Sample(rng.choice(GRIDS)) for _ in items]
    assert len(items) == 1000
    grades = grader.grade_all(samples, items)
    assert all(grade.error is None for grade in grades)


@pytest.mark.timeout(20)
def test_hostile_completion_ends() -> None:
    for text in (
        "1 " * 100_000,
        "1" * 200_000,
        "1" + " " * 200_000,
        "<answer>" * 30_000,
        ("1111\n" * 40_000),
        "|" * 200_000,
        "Row 1: " * 30_000,
        "\n1. " * 50_000,
        "<answer> " * 30_000,
    ):
        extract_grid(text)


@given(st.text() | st.text(alphabet="1234 \n|,-[]Row:.<answer>"))
def test_any_text_scores_within_the_range(text: str) -> None:
    assert 0.0 <= grade(text, reward="mixed") <= 1.0
