"""When a worker's disk has too little room."""

from __future__ import annotations

from pathlib import Path

from jobs.settings import Settings
from worker import disk


def test_below_its_limit_a_worker_says_how_much_is_free(tmp_path: Path) -> None:
    assert disk.problem(Settings(home=tmp_path / "new", min_free_bytes=0)) is None
    found = disk.problem(Settings(home=tmp_path, min_free_bytes=1 << 60))
    assert found is not None
    assert f"below {(1 << 60) / 1e9:.3f} GB" in found


def test_a_home_that_cannot_be_made_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = disk.problem(Settings(home=tmp_path / "file" / "home"))
    assert found == "its folder cannot be used: Not a directory"
