"""What happens to a job when one of the processes around it dies, hangs or is told to leave."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from tests.faults.cluster import Cluster
from tests.faults.conftest import MakeCluster
from tests.faults.oracle import check_job
from tests.faults.processes import wait_for

BOTH = pytest.mark.parametrize("database", ["sqlite", "postgresql"])


@BOTH
def test_an_undisturbed_job(cluster: MakeCluster, database: str) -> None:
    with cluster(database) as c:
        job = c.submit(plan={"evaluate_every": 4})
        c.wait_over(job)
        check_job(c, job, epochs=1)


@BOTH
def test_the_trainer_is_killed(cluster: MakeCluster, database: str) -> None:
    with cluster(database) as c:
        job = c.submit_held(plan={"evaluate_every": 2})
        c.kill_trainer(job)
        c.release(job)
        c.wait_over(job)
        check_job(c, job, epochs=2)


@BOTH
def test_the_worker_is_killed(cluster: MakeCluster, database: str) -> None:
    with cluster(database, workers=2, short_lease=True) as c:
        job = c.submit_held()
        c.worker_of(job).kill()
        c.release(job)  # a trainer that lived on would go on
        c.wait_over(job)
        check_job(c, job, at_least=2)


def test_the_only_worker_is_killed_and_started_again(cluster: MakeCluster) -> None:
    with cluster(short_lease=True) as c:
        c.reconciler = c.start("worker.reconciler")
        job = c.submit_held()
        c.workers.pop().kill()
        c.wait_state(job, "queued")  # the reconciler alone sees to that
        c.release(job)
        c.start_worker()
        c.wait_over(job)
        check_job(c, job, at_least=2)


def wardens(c: Cluster, job: str) -> list[psutil.Process]:
    """The trainer's wardens, the inner one first."""
    above = psutil.Process(c.trainer_pid(job)).parents()
    return [process for process in above if any(Path(word).name == "warden.py" for word in process.cmdline())]


@pytest.mark.parametrize("which", ["inner", "outer", "both"])
def test_a_warden_is_killed(cluster: MakeCluster, which: str) -> None:
    with cluster() as c:
        job = c.submit_held()
        inner, outer = wardens(c, job)
        for victim in {"inner": [inner], "outer": [outer], "both": [outer, inner]}[which]:
            os.kill(victim.pid, signal.SIGKILL)
        c.release(job)
        c.wait_over(job)
        check_job(c, job, epochs=2)


def test_a_trainer_that_hangs_is_restarted(cluster: MakeCluster) -> None:
    with cluster(stall_s=4) as c:
        job = c.submit(plan={"stall_at": 5, "deaf": True})
        c.wait_over(job)
        check_job(c, job, epochs=2)
        assert [attempt.error_code for attempt in c.attempts(job)] == ["stalled", None]


def test_a_frozen_trainer_is_restarted(cluster: MakeCluster) -> None:
    with cluster(stall_s=4) as c:
        job = c.submit_held()
        os.kill(c.trainer_pid(job), signal.SIGSTOP)
        c.release(job)
        c.wait_over(job)
        check_job(c, job, epochs=2)


def test_a_trainer_that_froze_for_a_moment_goes_on(cluster: MakeCluster) -> None:
    with cluster() as c:
        job = c.submit_held()
        os.kill(c.trainer_pid(job), signal.SIGSTOP)
        c.release(job)
        renewed = c.job(job).lease_until or 0
        wait_for(lambda: (c.job(job).lease_until or 0) > renewed + 2, "the worker goes on renewing")
        os.kill(c.trainer_pid(job), signal.SIGCONT)
        c.wait_over(job)
        check_job(c, job, epochs=1)


def test_a_worker_told_to_leave_spends_no_attempt(cluster: MakeCluster) -> None:
    """With one attempt in all, one that is spent ends the job as failed."""
    with cluster("postgresql", workers=2, max_attempts=1) as c:
        job = c.submit_held(every=100)
        leaving = c.worker_of(job)
        assert leaving.terminate() == 0
        (checkpoint,) = c.checkpoints(job)
        assert checkpoint.step == 5, "it saved what it had"
        c.release(job)
        c.wait_over(job)
        check_job(c, job, epochs=2)


def test_a_worker_told_to_leave_while_the_model_loads(cluster: MakeCluster) -> None:
    with cluster(workers=2, max_attempts=1) as c:
        job = c.submit(plan={"load_s": 600.0})
        c.wait_line(job, "START")
        c.plan(job)
        assert c.worker_of(job).terminate() == 0
        c.wait_over(job)
        check_job(c, job, epochs=2)


def test_a_poison_job_ends(cluster: MakeCluster) -> None:
    """Each checkpoint refills the attempts, so they count from the last one: three reach step 5 and end there."""
    with cluster() as c:
        job = c.submit(plan={"crash_at": 5})
        row = c.wait_over(job)
        check_job(c, job, "failed", epochs=3)
        assert [a.resumed_step for a in c.attempts(job)] == [None, 3, 3]
        assert row.error_code == "trainer_crashed"
        assert "SIGKILL" in (row.error_message or "")
        assert "last words at step 5" in (row.error_log or "")
