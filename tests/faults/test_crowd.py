"""Many workers: each job is one worker's at a time, also while workers and trainers are killed and frozen."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from jobs.doorbell import Doorbell
from jobs.resources import Bell
from tests.faults.cluster import DEAD_FOR_SURE_S, Cluster
from tests.faults.conftest import MakeCluster
from tests.faults.oracle import check_job, check_webhook
from tests.faults.processes import wait_for
from tests.faults.receiver import Receiver

BOTH = pytest.mark.parametrize("database", ["sqlite", "postgresql"])


def ring(c: Cluster, job: str, times: int) -> None:
    """Send doorbells as the API does."""
    with contextlib.closing(Doorbell(c.redis.url())) as doorbell:
        for _ in range(times):
            assert doorbell.ring(Bell(job))


@BOTH
def test_four_workers_one_job_and_ten_doorbells(cluster: MakeCluster, database: str) -> None:
    """Rung while it waits, while it runs and when it is over."""
    with cluster(database, workers=0) as c:
        job = c.submit(plan={"hold_at": 6})
        ring(c, job, 10)
        c.start_workers(4)
        c.wait_line(job, "STEP", n=5)
        c.wait_registered(4)
        ring(c, job, 10)
        c.release(job)
        c.wait_over(job)
        ring(c, job, 10)
        last = c.submit()
        c.wait_over(last)
        wait_for(lambda: c.doorbells() == 0, "all doorbells are answered")
        check_job(c, job, epochs=1)
        check_job(c, last, epochs=1)


class Chaos:
    """Kills and freezes workers and trainers at random, one thing every second or so, in a thread."""

    def __init__(self, c: Cluster) -> None:
        self.done: dict[str, int] = {}
        self._c, self._random = c, c.random
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chaos")
        self._failure: BaseException | None = None

    def __enter__(self) -> Chaos:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            while not self._stopped.wait(self._random.uniform(0.3, 1.2)):
                fault = self._random.choice([self._kill_worker, self._freeze_worker, *[self._hit_trainer] * 3])
                fault()
                self.done[fault.__name__] = self.done.get(fault.__name__, 0) + 1
        except BaseException as error:  # shown by the test, which would wait for ever
            self._failure = error

    def _kill_worker(self) -> None:
        victim = self._random.choice(self._c.workers)
        victim.kill()
        self._c.workers.remove(victim)
        self._c.start_worker()

    def _freeze_worker(self) -> None:
        victim = self._random.choice(self._c.workers)
        self._c.freeze(victim)
        self._stopped.wait(self._random.uniform(0.5, DEAD_FOR_SURE_S + 1))
        victim.signal(signal.SIGCONT)

    def _hit_trainer(self) -> None:
        trainers = self._c.trainer_pids()
        if not trainers:
            return
        victim = self._random.choice(trainers)
        with contextlib.suppress(ProcessLookupError):
            if self._random.random() < 0.7:
                os.kill(victim, signal.SIGKILL)
                return
            os.kill(victim, signal.SIGSTOP)
            self._stopped.wait(self._random.uniform(0.1, 1))
            os.kill(victim, signal.SIGCONT)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@BOTH
def test_sixty_jobs_under_kills_and_freezes(cluster: MakeCluster, receiver: Receiver, database: str) -> None:
    settings = {"max_attempts": 100, "stall_s": 10} | receiver.settings()
    with cluster(database, workers=4, short_lease=True, **settings) as c:
        rl = {"webhook_url": receiver.url}
        with Chaos(c) as chaos:
            jobs = [c.submit(steps=6, every=2, rl=rl) for _ in range(60)]
            for job in jobs:
                c.wait_over(job, timeout=400)
        print(f"seed {c.seed}: {chaos.done}, {sum(len(c.attempts(job)) for job in jobs)} attempts")
        assert len(chaos.done) == 3, "not every fault was tried"
        for job in jobs:
            check_job(c, job)
            check_webhook(receiver, job, "succeeded")
        assert len(receiver.received) >= 60
