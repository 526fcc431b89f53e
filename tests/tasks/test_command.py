"""`python -m bgpo.tasks`: files, determinism, and usage errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bgpo.tasks.__main__ import main


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("task", ["sudoku", "countdown"])
def test_writes_the_same_bytes_in_another_process(task: str, tmp_path: Path) -> None:
    arguments = [task, "--split", "train", "--rows", "40", "--seed", "3", "--demonstrations", "--noise", "0.5", "--out"]
    main([*arguments, str(tmp_path / "here.jsonl")])
    command = [sys.executable, "-m", "bgpo.tasks", *arguments, str(tmp_path / "there.jsonl")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == f"wrote {tmp_path / 'there.jsonl'}\n"
    assert (tmp_path / "here.jsonl").read_bytes() == (tmp_path / "there.jsonl").read_bytes()
    assert len(rows(tmp_path / "here.jsonl")) == 40


@pytest.mark.parametrize("task", ["sudoku", "countdown"])
def test_demonstrations_keep_the_tasks_of_the_seed(task: str, tmp_path: Path) -> None:
    plain, shown = tmp_path / "plain.jsonl", tmp_path / "shown.jsonl"
    main([task, "--split", "test", "--rows", "30", "--out", str(plain)])
    main([task, "--split", "test", "--rows", "30", "--out", str(shown), "--demonstrations"])
    for a, b in zip(rows(plain), rows(shown), strict=True):
        assert b.pop("messages")[:-1] == a.pop("messages")  # type: ignore[index]
        assert a == b


def test_givens(tmp_path: Path) -> None:
    out = tmp_path / "f.jsonl"
    main(["sudoku", "--split", "train", "--rows", "20", "--givens", "6", "--out", str(out)])
    assert {str(row["puzzle"]).count("0") for row in rows(out)} == {10}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sudoku", "--split", "train", "--rows", "0"], "--rows"),
        (["sudoku", "--split", "valid", "--rows", "1"], "--split"),
        (["sudoku", "--split", "train", "--rows", "1", "--givens", "2-9"], "givens must be a range within 4-15"),
        (["sudoku", "--split", "train", "--rows", "1", "--givens", "a"], "--givens"),
        (["countdown", "--split", "train", "--rows", "1", "--noise", "0.5"], "--noise needs --demonstrations"),
        (["countdown", "--split", "train", "--rows", "1", "--demonstrations", "--noise", "1.5"], "--noise"),
        (["sudoku", "--split", "test", "--rows", "2000", "--givens", "15"], "only 1408 distinct test puzzles"),
        (["held-out", "--data", "/nowhere"], "No such file"),
    ],
)
def test_usage_errors(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*arguments, "--out", str(tmp_path / "f.jsonl")])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "f.jsonl").exists()
