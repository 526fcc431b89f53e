"""The same with `bgpo.run` training a tiny model: a run that was interrupted comes to the very same weights."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil

from tests.faults.cluster import Cluster
from tests.faults.conftest import MakeCluster
from tests.faults.oracle import check_job, row_weights
from tests.faults.processes import wait_for

SEED = 11
# Loading PyTorch takes seconds, more of them on a busy machine, and nothing is to be lost by the way.
LOADING = {"stop_grace_s": 60}


def final_weights(c: Cluster, job: str) -> bytes:
    (final,) = [row for row in c.checkpoints(job) if row.final]
    return row_weights(c, final)


def check_same(c: Cluster, undisturbed: str, disturbed: str) -> None:
    """Bit for bit the same weights, and the same measurements at each step."""
    kept = [row_weights(c, row) for row in c.checkpoints(undisturbed)]
    assert len(set(kept)) == len(kept) > 1, "nothing was learned, so that any run would come to the same"
    assert final_weights(c, undisturbed) == final_weights(c, disturbed)
    measured = [
        {line.n: line.value for line in c.journal(job) if line.kind == "STEP"} for job in (undisturbed, disturbed)
    ]
    assert measured[0] == measured[1]


def test_an_interrupted_run_is_bit_identical(cluster: MakeCluster) -> None:
    """Killed without warning, then drained, then to its end."""
    with cluster("postgresql", workers=2, real=True, **LOADING) as c:
        undisturbed = c.submit(steps=8, every=2, seed=SEED)
        c.wait_over(undisturbed)
        check_job(c, undisturbed, epochs=1, stand_in=False)
        job = c.submit_held(at=4, steps=8, every=2, seed=SEED)
        c.plan(job, hold_at=6)
        c.kill_trainer(job)
        c.wait_line(job, "STEP", n=5, epoch=2)
        c.plan(job)
        draining = c.worker_of(job)
        draining.signal(signal.SIGTERM)
        c.release(job)
        wait_for(lambda: not draining.running(), "the worker has left")
        c.wait_over(job)
        check_job(c, job, epochs=3, stand_in=False)
        check_same(c, undisturbed, job)


def ranks(c: Cluster) -> dict[str, psutil.Process]:
    """The processes of the run that goes on: the launcher, and those it started by their rank."""
    found = {}
    for pid in c.strangers():
        process = psutil.Process(pid)
        words = process.cmdline()
        if "accelerate.commands.launch" in words:
            found["launcher"] = process
        elif any(Path(word).name == "real_trainer.py" for word in words) and "RANK" in process.environ():
            found[process.environ()["RANK"]] = process
    return found


def test_a_run_of_two_processes_is_bit_identical(cluster: MakeCluster) -> None:
    """A rank is killed, then the launcher: each time the whole group ends, and a new one goes on."""
    resources = {"resources": {"gpus": 2}}
    with cluster(real=True, worker_gpus="cpu:2", **LOADING) as c:
        undisturbed = c.submit(steps=6, every=2, seed=SEED, rl=resources)
        c.wait_over(undisturbed)
        check_job(c, undisturbed, epochs=1, stand_in=False)
        job = c.submit_held(at=4, steps=6, every=2, seed=SEED, rl=resources)
        group = ranks(c)
        assert group.keys() == {"launcher", "0", "1"}
        c.plan(job, hold_at=6)
        os.kill(group["1"].pid, signal.SIGKILL)
        c.wait_line(job, "STEP", n=5, epoch=2)
        c.wait_checkpoint(job, 4)
        assert not any(process.is_running() for process in group.values()), "the group of before is dead"
        os.kill(ranks(c)["launcher"].pid, signal.SIGKILL)
        c.plan(job)
        c.release(job)
        c.wait_over(job)
        check_job(c, job, epochs=3, stand_in=False)
        check_same(c, undisturbed, job)
