"""The benchmark on the public files' formats, with small files of our own in them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import public_sets
from bgpo.models.scratch import create_checkpoint
from bgpo.tasks import countdown, sudoku


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Files in the public formats, made from our own test splits."""
    folder = tmp_path / "data"
    folder.mkdir()
    for seed, name in enumerate(("4x4_test_sudoku.csv", "sudoku_test_by_solution.csv")):
        rows = sudoku.generate(6, seed, "test")
        lines = ["Puzzle,Solution", *(f"{row['puzzle']},{row['solution']}" for row in rows)]
        (folder / name).write_text("\n".join(lines) + "\n")
    tuples = [
        {"input": ",".join(map(str, row["numbers"])), "output": str(row["target"])}
        for row in countdown.generate(6, 0, "test")
    ]
    (folder / "countdown_cd3_test.jsonl").write_text("\n".join(map(json.dumps, tuples)) + "\n")
    return folder


def test_reports_each_model_beside_the_chance_line(data: Path, tmp_path: Path) -> None:
    create_checkpoint(tmp_path / "model", d_model=32, n_layers=1, n_heads=2, mlp_hidden_size=32)
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "benchmarks.public_sets", "--data", str(data), "--limit", "4", "--json", str(out)]
    subprocess.run([*command, "--model", f"tiny={tmp_path / 'model'}"], check=True, capture_output=True)
    rows = json.loads(out.read_bytes())["rows"]
    assert [(row["set"], row["model"], row["rows"]) for row in rows] == [
        (name, model, 4) for name in public_sets.SETS for model in ("chance", "tiny")
    ]
    for row in rows:
        assert 0 <= row["sampled_solved"] <= 1
        assert ("sampled_cell_accuracy" in row) == (row["set"] != "countdown")
    assert {row["sampled_cell_accuracy"] for row in rows if row["model"] == "chance" and row["set"] != "countdown"} == {
        0.25
    }


def test_stops_when_training_data_holds_a_test_grid(data: Path) -> None:
    tests = {name: task.read_public(data / file) for name, (file, task) in public_sets.SETS.items()}
    public_sets.assert_disjoint(tests)
    trained = sudoku.generate(1, 0, "train")[0]
    tests["sudoku_by_solution"].append(trained)
    with pytest.raises(SystemExit, match="overlaps"):
        public_sets.assert_disjoint(tests)


def test_chance_of_a_hand_counted_countdown() -> None:
    # 1, 1, 1 -> 3: only 1+1+1, in either grouping and all 6 orders: 12 of 6 * 16 * 2 expressions.
    row = {"numbers": [1, 1, 1], "target": 3}
    assert public_sets.chance("countdown", [row])["sampled_solved"] == pytest.approx(12 / 192)
