"""Decontamination: fingerprints are those of the public files, and training data has nothing of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from bgpo.errors import DataError
from bgpo.rewards import Sample, compile_grader
from bgpo.rewards.grids import is_unique
from bgpo.tasks import countdown, held_out, sudoku
from bgpo.tasks.__main__ import main
from bgpo.tasks.held_out import countdown_key, fingerprint


def read_csv(path: Path) -> list[tuple[str, str]]:
    with path.open(newline="") as file:
        return [(row["Puzzle"], row["Solution"]) for row in csv.DictReader(file)]


def test_committed_fingerprints() -> None:
    prints = held_out.held_out()
    assert (len(prints.sudoku_grids), len(prints.sudoku_puzzles), len(prints.countdown)) == (88, 756, 256)
    stored = held_out.DATA_FILE.read_text()
    assert held_out.serialize(prints) == stored
    assert len(stored) < 16_384


def test_fingerprint_is_the_start_of_sha256() -> None:
    assert fingerprint("abc") == "ba7816bf"
    assert countdown_key([35, 4, 82], 58) == countdown_key([82, 35, 4], 58) == "4,35,82=58"


def test_training_puzzles_avoid_the_fingerprints() -> None:
    prints = held_out.held_out()
    rows = sudoku.generate(4000, 0, "train", (8, 8))
    assert not {fingerprint(row["puzzle"]) for row in rows} & prints.sudoku_puzzles
    assert not {fingerprint(row["solution"]) for row in rows} & prints.sudoku_grids


def test_command_makes_the_committed_file(public_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "held_out.json"
    main(["held-out", "--data", str(public_data), "--out", str(out)])
    assert out.read_bytes() == held_out.DATA_FILE.read_bytes()


def test_the_solution_disjoint_file_has_88_grids(public_data: Path) -> None:
    pairs = read_csv(public_data / held_out.SUDOKU_BY_SOLUTION)
    assert len(pairs) == 256
    assert {solution for _, solution in pairs} == set(sudoku.grids("test"))
    assert len(sudoku.grids("test")) == 88


def test_training_data_has_nothing_of_the_public_files(public_data: Path) -> None:
    by_solution = read_csv(public_data / held_out.SUDOKU_BY_SOLUTION)
    by_puzzle = read_csv(public_data / held_out.SUDOKU_BY_PUZZLE)
    rows = sudoku.generate(6000, 0, "train") + sudoku.generate(6000, 1, "train", (8, 8))
    assert not {row["puzzle"] for row in rows} & {puzzle for puzzle, _ in by_solution + by_puzzle}
    assert not {row["solution"] for row in rows} & {solution for _, solution in by_solution}

    lines = (public_data / held_out.COUNTDOWN).read_text().splitlines()
    public = {
        (tuple(sorted(map(int, task["input"].split(",")))), int(task["output"])) for task in map(json.loads, lines)
    }
    tasks = countdown.generate(4000, 0, "train")
    assert len(public) == 256
    assert not {(tuple(sorted(task["numbers"])), task["target"]) for task in tasks} & public


def test_public_tasks_are_dropped_not_missed_by_luck(public_data: Path) -> None:
    """Training would make many of them: puzzles on training grids, tuples outside the test bucket."""
    pairs = read_csv(public_data / held_out.SUDOKU_BY_PUZZLE)
    exposed = [puzzle for puzzle, solution in pairs if solution in sudoku.grids("train") and is_unique(puzzle)]
    assert len(exposed) > 100
    assert not any(sudoku.belongs(puzzle, "train") for puzzle in exposed)

    rows = countdown.read_public(public_data / held_out.COUNTDOWN)
    assert sum(countdown.split_of(row["numbers"], row["target"]) == "train" for row in rows) > 200
    assert not any(countdown.belongs(row["numbers"], row["target"], "train") for row in rows)


def test_read_public_sudoku(public_data: Path) -> None:
    for name, count, unique in [(held_out.SUDOKU_BY_SOLUTION, 256, 256), (held_out.SUDOKU_BY_PUZZLE, 500, 376)]:
        rows = sudoku.read_public(public_data / name)
        assert len(rows) == count
        assert sum(is_unique(row["puzzle"]) for row in rows) == unique
        grader = compile_grader(sudoku.grader_spec("mixed", reference=True))
        assert all(grader.grade(Sample(row["solution"]), row).score == 1.0 for row in rows)


def test_read_public_countdown(public_data: Path) -> None:
    rows = countdown.read_public(public_data / held_out.COUNTDOWN)
    assert rows[0]["messages"][0]["content"] == "30,100,93=23"
    grader = compile_grader(countdown.grader_spec())
    assert len(rows) == 256
    assert all(grader.grade(Sample(row["expression"]), row).solved for row in rows)


@pytest.mark.parametrize("row", ["3102200002100320,3142243142131323", "310220000210032,3142243142131324", "x", ""])
def test_bad_public_sudoku_names_the_line(tmp_path: Path, row: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(f"Puzzle,Solution\n3102200002100320,3142243142131324\n{row or ','}\n")
    with pytest.raises(DataError, match=r"bad\.csv line 3") as caught:
        sudoku.read_public(path)
    assert caught.value.line == 3


@pytest.mark.parametrize(
    "line", ["", "[]", '{"input": "1,2,3"}', '{"input": [1], "output": "2"}', '{"input": "1,1,1", "output": "99"}']
)
def test_bad_public_countdown_names_the_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(f'{{"input": "30,100,93", "output": "23"}}\n{line}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl line 2") as caught:
        countdown.read_public(path)
    assert caught.value.line == 2
