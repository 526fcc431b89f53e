"""What training data must not contain: fingerprints of the public test sets.

The public files stay out of the repository; `held_out.json` keeps the first 4 bytes of the sha256 of each puzzle,
solution grid and Countdown tuple, made by `python -m bgpo.tasks held-out --data FOLDER`. A chance collision (one in
millions) only drops a training row. The solution-disjoint Sudoku file also defines the test grids of our own split.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from bgpo.errors import DataError
from bgpo.rewards.grids import is_solution

SUDOKU_BY_PUZZLE = "4x4_test_sudoku.csv"
SUDOKU_BY_SOLUTION = "sudoku_test_by_solution.csv"
COUNTDOWN = "countdown_cd3_test.jsonl"
DATA_FILE = Path(__file__).with_name("held_out.json")

_PUZZLE = re.compile(r"[0-4]{16}")


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Fingerprints by kind; test membership with `fingerprint(text) in ...`."""

    sudoku_grids: frozenset[str]
    sudoku_puzzles: frozenset[str]
    countdown: frozenset[str]


def fingerprint(text: str) -> str:
    """First 4 bytes of the sha256 of a text, as hex."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def countdown_key(numbers: Iterable[int], target: int) -> str:
    """One text for all orders of a Countdown task: `4,35,82=58`."""
    return ",".join(map(str, sorted(numbers))) + f"={target}"


@lru_cache(maxsize=1)
def held_out() -> HeldOut:
    """The committed fingerprints."""
    stored = json.loads(DATA_FILE.read_text())
    return HeldOut(**{kind: frozenset(prints) for kind, prints in stored.items()})


def from_public_files(folder: Path) -> HeldOut:
    """Fingerprints of the public test files in a folder. Raises DataError, or OSError for a missing file."""
    by_solution = read_sudoku(folder / SUDOKU_BY_SOLUTION)
    puzzles = by_solution + read_sudoku(folder / SUDOKU_BY_PUZZLE)
    return HeldOut(
        sudoku_grids=frozenset(fingerprint(solution) for _, solution in by_solution),
        sudoku_puzzles=frozenset(fingerprint(puzzle) for puzzle, _ in puzzles),
        countdown=frozenset(fingerprint(countdown_key(*task)) for task in read_countdown(folder / COUNTDOWN)),
    )


def serialize(prints: HeldOut) -> str:
    """The text of the data file: sorted, one line per kind, so that it is the same wherever it is made."""
    lines = (f" {json.dumps(kind)}: {json.dumps(sorted(values))}" for kind, values in asdict(prints).items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def read_sudoku(path: Path) -> list[tuple[str, str]]:
    """(puzzle, solution) pairs of a public CSV file with columns Puzzle and Solution. Raises DataError."""
    pairs = []
    with path.open(newline="") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            puzzle, solution = row.get("Puzzle") or "", row.get("Solution") or ""
            if _PUZZLE.fullmatch(puzzle) is None or not is_solution(puzzle, solution):
                raise DataError(f"{path.name} line {line}: not a 4x4 puzzle with its solution", line=line)
            pairs.append((puzzle, solution))
    return pairs


def read_countdown(path: Path) -> list[tuple[list[int], int]]:
    """(numbers, target) pairs of a public JSONL file of {"input": "30,100,93", "output": "23"}. Raises DataError."""
    tasks = []
    for line, text in enumerate(path.read_text().splitlines(), start=1):
        try:
            row = json.loads(text)
            tasks.append(([int(number) for number in row["input"].split(",")], int(row["output"])))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{path.name} line {line}: not a Countdown task ({error})", line=line) from error
    return tasks
