"""How much room an attempt needs, and when a worker has too little."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.settings import Settings
from worker import disk

GB = 10**9


def recipe(**method: Any) -> dict[str, Any]:
    return {"method": {"type": "supervised", **method}}


@pytest.mark.parametrize(
    ("dtype", "chosen", "checkpoint"),
    [
        ("float32", recipe(), 3 * GB),  # weights and two moments
        ("bfloat16", recipe(), 6 * GB),  # trained and stored in float32
        ("bfloat16", recipe() | {"precision": "bfloat16"}, 3 * GB),
        ("", recipe(optimizer={"optimizer_type": "adafactor"}), int(1.1 * GB)),
        ("float32", recipe(lora={"rank": 8, "checkpoints": "merged"}), int(1.3 * GB)),
        ("float32", recipe(lora={"rank": 8, "checkpoints": "adapter"}), int(0.3 * GB)),
    ],
)
def test_a_first_attempt_has_room_for_two_checkpoints(dtype: str, chosen: dict[str, Any], checkpoint: int) -> None:
    assert disk.needed(GB, dtype, chosen, 7, 0) == pytest.approx(7 + 2 * checkpoint, abs=4)


def test_a_resumed_attempt_knows_what_its_checkpoints_weigh() -> None:
    assert disk.needed(GB, "float32", recipe(), 7, 1000) == 7 + 3 * 1000


def test_the_size_of_a_model_is_that_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"torch_dtype": "bfloat16"}')
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "1").write_bytes(b"x" * 100)
    assert disk.model_size(tmp_path) == (127, "bfloat16")
    (tmp_path / "config.json").write_text("[")
    assert disk.model_size(tmp_path) == (101, "")


def test_below_its_limit_a_worker_says_how_much_is_free(tmp_path: Path) -> None:
    assert disk.problem(Settings(home=tmp_path / "new", min_free_bytes=0)) is None
    found = disk.problem(Settings(home=tmp_path, min_free_bytes=1 << 60))
    assert found is not None
    assert f"below {(1 << 60) / 1e9:.3f} GB" in found


def test_a_home_that_cannot_be_made_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = disk.problem(Settings(home=tmp_path / "file" / "home"))
    assert found == "its folder cannot be used: Not a directory"
