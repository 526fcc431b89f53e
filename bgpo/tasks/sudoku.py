"""4x4 Sudoku puzzles with one solution, split by solution grid: 200 grids to train on, 88 to test on.

The test grids are those of the public solution-disjoint test file, so a test score cannot come from a memorized grid.
Training puzzles also avoid the public test puzzles. The prompt is the 16 digits and nothing else: the shipped model is
tiny and reads characters. Rows of one file are distinct; files of different seeds may share rows.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, Literal

from bgpo.errors import InvalidInput
from bgpo.rewards.grids import CELLS, GRIDS, is_unique
from bgpo.tasks.held_out import fingerprint, held_out, read_sudoku
from bgpo.tasks.rows import Row, Split, seeded, with_answer

MIN_GIVENS, MAX_GIVENS = 4, 15
"""No puzzle with fewer than 4 givens has one solution."""
WRONG_CELLS = (2, 5)
_MAX_ATTEMPTS = 50_000


def grids(split: Split) -> tuple[str, ...]:
    """The solution grids of a split."""
    test = held_out().sudoku_grids
    return tuple(grid for grid in GRIDS if (fingerprint(grid) in test) == (split == "test"))


def generate(rows: int, seed: int, split: Split, givens: tuple[int, int] = (4, 9)) -> list[Row]:
    """Distinct puzzle rows; the number of givens is uniform over the range while puzzles of each number last.

    Raises:
        InvalidInput: when the range is wrong, or there are not that many distinct puzzles in it.
    """
    low, high = givens
    if not MIN_GIVENS <= low <= high <= MAX_GIVENS:
        raise InvalidInput(f"givens must be a range within {MIN_GIVENS}-{MAX_GIVENS}, got {low}-{high}", "givens")
    rng = seeded("sudoku", split, seed)
    solutions = grids(split)
    counts = list(range(low, high + 1))
    made: dict[str, str] = {}
    while len(made) < rows:
        count = rng.choice(counts)
        found = _new_puzzle(rng, solutions, count, made, split)
        if found is not None:
            made[found[0]] = found[1]
        elif len(counts) > 1:
            counts.remove(count)
        else:
            raise InvalidInput(
                f"found only {len(made)} distinct {split} puzzles with {low}-{high} givens, {rows} were asked for",
                "rows",
            )
    return [to_row(puzzle, solution) for puzzle, solution in made.items()]


def _new_puzzle(
    rng: random.Random, solutions: tuple[str, ...], givens: int, made: dict[str, str], split: Split
) -> tuple[str, str] | None:
    """A puzzle that is not in `made`, with its solution; None when many attempts find none."""
    for _ in range(_MAX_ATTEMPTS):
        solution = rng.choice(solutions)
        shown = set(rng.sample(range(CELLS), givens))
        puzzle = "".join(digit if cell in shown else "0" for cell, digit in enumerate(solution))
        if puzzle not in made and is_unique(puzzle) and belongs(puzzle, split):
            return puzzle, solution
    return None


def belongs(puzzle: str, split: Split) -> bool:
    """Whether a puzzle on a grid of this split may be in its data: public test puzzles are never in training data."""
    return split == "test" or fingerprint(puzzle) not in held_out().sudoku_puzzles


def to_row(puzzle: str, solution: str) -> Row:
    """The dataset row of a puzzle."""
    return {"messages": [{"role": "user", "content": puzzle}], "puzzle": puzzle, "solution": solution}


def demonstrate(row: Row, rng: random.Random, noise: float) -> Row:
    """The row with an assistant message: the solution, with probability `noise` wrong in 2 to 5 empty cells."""
    answer = list(row["solution"])
    if rng.random() < noise:
        empty = [cell for cell, digit in enumerate(row["puzzle"]) if digit == "0"]
        for cell in rng.sample(empty, min(rng.randint(*WRONG_CELLS), len(empty))):
            answer[cell] = rng.choice([digit for digit in "1234" if digit != answer[cell]])
    return with_answer(row, "".join(answer))


def grader_spec(
    reward: Literal["solved", "cell_accuracy", "mixed"] = "cell_accuracy", reference: bool = False
) -> dict[str, Any]:
    """The grader of this task; `reference` counts cells against the row's own solution, for puzzles with several."""
    spec: dict[str, Any] = {"type": "sudoku", "name": "sudoku", "puzzle": "{{ item.puzzle }}", "reward": reward}
    return {**spec, "solution": "{{ item.solution }}"} if reference else spec


def read_public(path: Path) -> list[Row]:
    """The rows of a public test file (CSV: Puzzle, Solution). Raises DataError.

    A quarter of the puzzles in the file split by puzzle have several solutions: grade with `reference=True`.
    """
    return [to_row(puzzle, solution) for puzzle, solution in read_sudoku(path)]
