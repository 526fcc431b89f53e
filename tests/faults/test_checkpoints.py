"""Checkpoints that were damaged after they were stored, or never came whole: nothing is ever trained on from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.cluster import Cluster
from tests.faults.conftest import MakeCluster
from tests.faults.oracle import check_job


def truncate(path: Path) -> None:
    """Half of it is gone, as after a power cut on a disk that lied."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """One bit is wrong."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def damage(c: Cluster, job: str, step: int, name: str, how: Callable[[Path], None]) -> None:
    """Damage a file of a stored checkpoint."""
    (row,) = [row for row in c.checkpoints(job) if row.step == step]
    how(c.store / row.key / name)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("manifest.json", truncate),
        ("model.safetensors", truncate),
        ("model.safetensors", flip),
        ("trainer_state/state.json", Path.unlink),
    ],
    ids=["truncated manifest", "truncated weights", "flipped bit", "missing state"],
)
def test_a_damaged_checkpoint_is_not_resumed_from(cluster: MakeCluster, name: str, how: Callable[[Path], None]) -> None:
    """The attempt goes on from the one before, and what it replays comes out as it did the first time."""
    with cluster() as c:
        job = c.submit_held(at=8)
        damage(c, job, 6, name, how)
        c.kill_trainer(job)
        c.release(job)
        c.wait_over(job)
        check_job(c, job, epochs=2, damaged=[6])


def test_without_a_good_checkpoint_it_begins_again(cluster: MakeCluster) -> None:
    with cluster() as c:
        job = c.submit_held(at=8)
        for step in (3, 6):
            damage(c, job, step, "model.safetensors", flip)
        c.kill_trainer(job)
        c.release(job)
        c.wait_over(job)
        check_job(c, job, epochs=2, damaged=[3, 6])


def test_a_manifest_truncated_by_the_trainer_makes_no_checkpoint(cluster: MakeCluster) -> None:
    with cluster() as c:
        job = c.submit_held(at=8, plan={"truncate_manifest_at": 3})
        assert "checkpoint not published" in c.workers[0].log.read_text()
        assert [row.step for row in c.checkpoints(job)] == [6]
        c.kill_trainer(job)
        c.release(job)
        c.wait_over(job)
        check_job(c, job, epochs=2)
