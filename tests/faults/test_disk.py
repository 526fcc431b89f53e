"""A disk that runs full: the job is paused with the reason, and goes on from where it was once there is room."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.cluster import Cluster
from tests.faults.conftest import MakeCluster
from tests.faults.oracle import check_job

WEIGHTS = 128 * 1024


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=700", "faults", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Use up all but half a checkpoint's room."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                continue
        except OSError:
            pass
        file.truncate(file.tell() - WEIGHTS // 2)
    return ballast


def wait_paused_for_the_disk(c: Cluster, job: str, said: str) -> None:
    row = c.wait_state(job, "paused")
    assert row.pause_code == "disk_full"
    assert said in (row.pause_message or ""), row.pause_message
    shown = c.shown(job)
    assert shown["status"] == "paused"
    assert shown["rl"]["pause_reason"]["code"] == "disk_full"
    assert not c.strangers(), "its accelerators are free"


def test_the_artifact_store_runs_full(cluster: MakeCluster, small_disk: Path) -> None:
    store = small_disk / "artifacts"
    with cluster("postgresql", artifacts_url=f"file://{store}") as c:
        job = c.submit_held(steps=40, plan={"weights_bytes": WEIGHTS, "step_s": 0.2})
        ballast = fill(small_disk)
        c.release(job)
        wait_paused_for_the_disk(c, job, "step")
        assert [row.step for row in c.checkpoints(job)] == [3]
        c.plan(job, weights_bytes=WEIGHTS, step_s=0.02)
        ballast.unlink()
        assert c.ask(job, "resume").status_code == 200
        c.wait_over(job)
        assert c.job(job).pause_code is None
        check_job(c, job, epochs=2)


def test_the_workers_disk_runs_full(cluster: MakeCluster, small_disk: Path, tmp_path: Path) -> None:
    with cluster(home=small_disk / "home", artifacts_url=f"file://{tmp_path / 'store'}") as c:
        job = c.submit_held(plan={"weights_bytes": WEIGHTS})
        ballast = fill(small_disk)
        c.release(job)
        wait_paused_for_the_disk(c, job, "")
        assert c.ask(job, "resume").status_code == 200  # while the disk is still full
        wait_paused_for_the_disk(c, job, "")
        ballast.unlink()
        assert c.ask(job, "resume").status_code == 200
        c.wait_over(job)
        check_job(c, job)
