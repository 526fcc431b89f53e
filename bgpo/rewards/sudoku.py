"""4x4 Sudoku: the whole grid (`solved`) and the share of empty cells filled with the right digit (`cell_accuracy`).

The solution is computed from the puzzle, so rows need no solution field and a wrong one cannot teach anything. A puzzle
with several solutions is a faulty item, unless the specification has a `solution` (d1's public test file needs that):
then cells are counted against it, and any grid that keeps the rules and the givens is solved. Cell accuracy looks at
the empty cells only, as in d1. The answer is the last block of 16 digits in the completion (inside the last `<answer>`
tag, if there is one).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bgpo.rewards.extract import answer_text
from bgpo.rewards.grade import Grade, GradeFault, Grader, Sample, rendered
from bgpo.rewards.grids import CELLS, check_puzzle, is_solution, solve
from bgpo.rewards.spec import SudokuSpec
from bgpo.rewards.templates import parse_template

_COMPACT = re.compile(r"(?<![0-9])[0-9]{16}(?![0-9])")
_RUN = re.compile(r"[0-9](?:[\s|,;\[\]+*_/&\"'\u2500-\u257f-]*[0-9])*")
"""Digits with the separators grids are drawn with, box-drawing characters included."""
_ROW_END = re.compile(r"\\\\|<br ?/?>")
"""Of LaTeX arrays and of tables in HTML."""
_LABEL = re.compile(
    r"^[ \t]*(?:[-*>][ \t]+)?[*_]{0,3}(?:(?:row|line|r)[ \t]?[1-4][ \t]?[:.)=]|[1-4][.)](?=[ \t]))", re.I | re.M
)
"""What stands before a row: `Row 1:`, `- **R2:**`, `3.`"""
_NOT_DIGIT = re.compile(r"[^0-9]+")


class SudokuGrader(Grader):
    """Compiled `sudoku`."""

    metric_names = ("solved", "cell_accuracy")

    def __init__(self, spec: SudokuSpec) -> None:
        self.name, self.type = spec.name, spec.type
        self._puzzle = parse_template(spec.puzzle)
        self._solution = parse_template(spec.solution) if spec.solution is not None else None
        self._input = parse_template(spec.input)
        self._reward = spec.reward

    def _grade(self, sample: Sample, item: Mapping[str, Any]) -> Grade:
        puzzle = _digits(rendered(self._puzzle, sample, item))
        solution = self._reference(puzzle, sample, item)
        answer = extract_grid(rendered(self._input, sample, item))
        solved = answer is not None and is_solution(puzzle, answer)
        accuracy = cell_accuracy(puzzle, solution, answer) if answer is not None else 0.0
        score = {"solved": float(solved), "cell_accuracy": accuracy, "mixed": (solved + accuracy) / 2}[self._reward]
        metrics = {"solved": float(solved), "cell_accuracy": accuracy}
        return Grade(score, solved=solved, metrics=metrics)

    def _reference(self, puzzle: str, sample: Sample, item: Mapping[str, Any]) -> str:
        try:
            if self._solution is None:
                return solve(puzzle)
            check_puzzle(puzzle)
        except ValueError as error:
            raise GradeFault(str(error)) from error
        solution = _digits(rendered(self._solution, sample, item))
        if not is_solution(puzzle, solution):
            raise GradeFault(f"solution {solution[:40]!r} does not solve the puzzle {puzzle}")
        return solution


def _digits(text: str) -> str:
    return "".join(text.split())


def cell_accuracy(puzzle: str, solution: str, answer: str) -> float:
    """Share of the puzzle's empty cells where a 16-digit answer equals the solution."""
    empty = [cell for cell in range(CELLS) if puzzle[cell] == "0"]
    return sum(answer[cell] == solution[cell] for cell in empty) / len(empty)


def extract_grid(text: str) -> str | None:
    """The last grid in a completion: 16 digits in one piece, or spread over lines and separators; None without one."""
    text = _LABEL.sub("", _ROW_END.sub("\n", answer_text(text)))
    last_end, found = -1, None
    for match in _COMPACT.finditer(text):
        last_end, found = match.end(), match[0]
    for run in _RUN.finditer(text):
        grid = _grid_in_run(run[0])
        if grid is not None and run.end() > last_end:
            last_end, found = run.end(), grid
    return found


def _grid_in_run(run: str) -> str | None:
    """The grid in one run of digits: all of it, or its last four neighbouring lines of four digits each."""
    digits = _NOT_DIGIT.sub("", run)
    if len(digits) <= CELLS:
        return digits if len(digits) == CELLS else None
    lines = [line for text_line in run.splitlines() if (line := _NOT_DIGIT.sub("", text_line))]
    for end in range(len(lines), 3, -1):
        if all(len(line) == 4 for line in lines[end - 4 : end]):
            return "".join(lines[end - 4 : end])
    return None
