"""A worker that stands still for longer than its lease and comes back: the job is another's by then."""

from __future__ import annotations

import os
import signal

import psutil
import pytest

from tests.faults.conftest import MakeCluster
from tests.faults.oracle import check_job
from tests.faults.processes import marked, wait_for

BOTH = pytest.mark.parametrize("database", ["sqlite", "postgresql"])


@BOTH
def test_a_worker_frozen_for_longer_than_the_lease(cluster: MakeCluster, database: str) -> None:
    """Its warden, which is not frozen, kills the trainer before anybody else may have the job: see the journal's
    `alive`. What the worker still writes when it comes back is refused."""
    with cluster(database, workers=2, short_lease=True) as c:
        job = c.submit(steps=300, every=20, plan={"step_s": 0.02, "hold_at": 300})
        c.wait_checkpoint(job)
        frozen = c.freeze_worker_of(job)  # with records it has read and not yet written
        trainer = c.trainer_pid(job)
        c.wait_dead(trainer)
        c.wait_line(job, "START", epoch=2)
        frozen.signal(signal.SIGCONT)
        wait_for(lambda: "attempt abandoned" in frozen.log.read_text(), "the worker gives the job up")
        c.release(job)
        c.wait_over(job)
        check_job(c, job, at_least=2)
        c.another_than(frozen).kill()
        second = c.submit()  # the one that came back is as good as new
        c.wait_over(second)
        check_job(c, second, epochs=1)


@BOTH
def test_a_worker_frozen_within_a_transaction(cluster: MakeCluster, database: str) -> None:
    """It keeps its locks. PostgreSQL ends a session that only waits, and the job goes on without the worker; of SQLite
    the whole service waits until the worker is back."""
    with cluster(database, workers=2, short_lease=True) as c:
        job = c.submit(steps=900, every=150, plan={"step_s": 0.004, "hold_at": 900})  # there is always one under way
        c.wait_line(job, "STEP", n=50)
        frozen = c.freeze_worker_of(job, in_transaction=True)
        c.wait_dead(c.trainer_pid(job))
        c.release(job)
        if database == "postgresql":
            c.wait_line(job, "START", epoch=2)
        frozen.signal(signal.SIGCONT)
        c.wait_over(job)
        check_job(c, job, at_least=2)


def test_the_only_worker_frozen_and_back(cluster: MakeCluster) -> None:
    with cluster(short_lease=True) as c:
        c.reconciler = c.start("worker.reconciler")
        job = c.submit_held()
        c.freeze_worker_of(job)
        c.wait_state(job, "queued")
        c.workers[0].signal(signal.SIGCONT)
        c.release(job)
        c.wait_over(job)
        check_job(c, job, at_least=2)


def test_a_worker_frozen_for_less_than_the_fence_keeps_the_job(cluster: MakeCluster) -> None:
    with cluster() as c:
        job = c.submit_held()
        c.freeze_worker_of(job)
        c.release(job)
        c.wait_line(job, "STEP", n=12)  # nobody reads its records, and nothing is lost
        c.workers[0].signal(signal.SIGCONT)
        c.wait_over(job)
        check_job(c, job, epochs=1)


def test_everything_of_a_worker_frozen_at_once(cluster: MakeCluster) -> None:
    """As when its machine is suspended: neither worker nor warden can act before the trainer runs again, so that it
    may go on for a moment after it has come back. Nothing of that moment lasts."""
    with cluster(workers=2, short_lease=True) as c:
        job = c.submit_held(plan={"step_s": 0.3})
        worker = c.worker_of(job)
        below = [pid for pid in marked(c.mark) if _below(pid, worker.pid)]
        c.freeze(worker)
        for pid in below:
            os.kill(pid, signal.SIGSTOP)
        c.wait_line(job, "START", epoch=2)
        group = [worker.pid, *below]
        c.random.shuffle(group)
        for pid in group:
            os.kill(pid, signal.SIGCONT)
        first = next(line.pid for line in c.journal(job) if line.kind == "START")
        c.wait_dead(first)
        c.release(job)
        c.wait_over(job)
        check_job(c, job, at_least=2, suspended=True)


def _below(pid: int, ancestor: int) -> bool:
    try:
        return any(process.pid == ancestor for process in psutil.Process(pid).parents())
    except psutil.NoSuchProcess:
        return False
