"""All 288 solved 4x4 Sudoku grids, and the puzzles they solve.

A grid is a string of 16 digits, row by row; in a puzzle 0 is an empty cell. Which grids fit a puzzle is one bitwise
AND per given over 288-bit masks, fast enough to grade inside a training step. Only 4x4; larger boards need a search.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import permutations

CELLS = 16
_ROWS = tuple("".join(row) for row in permutations("1234"))
_PUZZLE = re.compile(r"[0-4]{16}")


def _enumerate() -> tuple[str, ...]:
    grids = [""]
    for _ in range(4):
        grids = [grid + row for grid in grids for row in _ROWS if _fits(grid, row)]
    return tuple(grids)


def _fits(grid: str, row: str) -> bool:
    """Whether `row` may follow the rows in `grid`: no digit twice in a column or a 2x2 box."""
    if any(grid[column::4].find(digit) >= 0 for column, digit in enumerate(row)):
        return False
    if len(grid) % 8 == 0:
        return True
    above = grid[-4:]
    return not (set(above[:2]) & set(row[:2]) or set(above[2:]) & set(row[2:]))


GRIDS = _enumerate()
"""Every valid grid, in ascending order."""

_GRID_SET = frozenset(GRIDS)
_ALL = (1 << len(GRIDS)) - 1
_MASKS: dict[tuple[int, str], int] = {
    (cell, digit): sum(1 << index for index, grid in enumerate(GRIDS) if grid[cell] == digit)
    for cell in range(CELLS)
    for digit in "1234"
}


def check_puzzle(puzzle: str) -> None:
    """Raise ValueError unless a puzzle is 16 digits of 0..4 with an empty cell."""
    if _PUZZLE.fullmatch(puzzle) is None or "0" not in puzzle:
        raise ValueError(f"a puzzle is 16 digits 0..4, 0 for the empty cells, got {puzzle[:40]!r}")


@lru_cache(maxsize=65_536)  # the responses of a group share their puzzle
def solve(puzzle: str) -> str:
    """The unique solution of a puzzle.

    Raises:
        ValueError: when it is not a puzzle, or has no solution or several.
    """
    check_puzzle(puzzle)
    fitting = _fitting(puzzle)
    if fitting.bit_count() != 1:
        raise ValueError(f"puzzle {puzzle} has {fitting.bit_count()} solutions, not one")
    return GRIDS[fitting.bit_length() - 1]


def is_solution(puzzle: str, answer: str) -> bool:
    """Whether an answer is a full valid grid that keeps the givens of a well-formed puzzle."""
    return answer in _GRID_SET and all(given in ("0", digit) for given, digit in zip(puzzle, answer, strict=True))


def is_unique(puzzle: str) -> bool:
    """Whether a well-formed puzzle has exactly one solution."""
    return _fitting(puzzle).bit_count() == 1


def _fitting(puzzle: str) -> int:
    fitting = _ALL
    for cell, digit in enumerate(puzzle):
        if digit != "0":
            fitting &= _MASKS[cell, digit]
    return fitting
