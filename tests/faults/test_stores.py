"""The servers the service leans on: Redis may forget everything at any time, the database may be away for a while."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator

import pytest

from tests.faults.cluster import FENCE_S, Cluster
from tests.faults.conftest import MakeCluster
from tests.faults.oracle import check_job
from tests.faults.processes import wait_for

BOTH = pytest.mark.parametrize("database", ["sqlite", "postgresql"])


def test_redis_is_killed_and_started_again_empty(cluster: MakeCluster) -> None:
    """One job runs, one waits: the first must not notice, the second must be found without its doorbell."""
    with cluster("postgresql") as c:
        running = c.submit_held()
        waiting = c.submit()
        c.redis.kill()
        without = c.submit()  # the doorbell cannot be rung, which is no reason to refuse the job
        c.release(running)
        c.wait_over(running)
        c.redis.start()
        for job in (waiting, without):
            c.wait_over(job)
        for job in (running, waiting, without):
            check_job(c, job, epochs=1)


def test_everything_in_redis_is_deleted(cluster: MakeCluster) -> None:
    with cluster(workers=2) as c:
        jobs = [c.submit(seed=seed) for seed in range(6)]
        deleting = c.redis.client()
        with deleting:
            while any(c.job(job).state not in ("succeeded", "failed") for job in jobs):
                deleting.flushall()
                time.sleep(0.2)
        for job in jobs:
            check_job(c, job, epochs=1)


def test_redis_stops_answering(cluster: MakeCluster) -> None:
    """Connections stand and nothing comes through them."""
    with cluster(redis_proxy=True) as c:
        assert c.redis_proxy is not None
        running = c.submit_held()
        c.redis_proxy.stall()
        waiting = c.submit()
        c.release(running)
        c.wait_over(running)
        c.wait_over(waiting)  # the worker finds it without a doorbell
        c.redis_proxy.flow()
        last = c.submit()
        c.wait_over(last)
        for job in (running, waiting, last):
            check_job(c, job, epochs=1)


def test_postgresql_is_restarted(cluster: MakeCluster) -> None:
    """Every connection breaks in the middle of what it did; the server is back before the lease is in danger."""
    with cluster("postgresql") as c:
        assert c.postgres is not None
        job = c.submit(steps=40, every=5)
        for step in (8, 16, 24):
            c.wait_line(job, "STEP", n=step)
            c.postgres.stop_immediately()
            c.postgres.start()
        c.wait_over(job)
        check_job(c, job, epochs=1)


def test_postgresql_is_killed_for_longer_than_the_fence(cluster: MakeCluster) -> None:
    """The worker cannot know whether it still has the job, so its trainer must be dead before others could have it."""
    with cluster("postgresql", workers=2, short_lease=True) as c:
        assert c.postgres is not None
        job = c.submit_held()
        trainer = c.trainer_pid(job)
        c.postgres.kill()
        c.wait_dead(trainer)
        c.postgres.start()
        c.release(job)
        c.wait_over(job)
        check_job(c, job, at_least=2)


def test_the_database_stops_answering_for_longer_than_the_fence(cluster: MakeCluster) -> None:
    """As the last one, but with connections that stand and nothing coming through them."""
    with cluster("postgresql", workers=2, short_lease=True, database_proxy=True) as c:
        assert c.database_proxy is not None
        job = c.submit_held()
        trainer = c.trainer_pid(job)
        c.database_proxy.stall()
        c.wait_dead(trainer)
        c.release(job)
        c.database_proxy.flow()
        c.wait_over(job)
        check_job(c, job, at_least=2)


def test_sqlite_is_locked_for_longer_than_the_fence(cluster: MakeCluster) -> None:
    """By a backup, say."""
    with cluster(workers=2, short_lease=True) as c:
        job = c.submit_held()
        trainer = c.trainer_pid(job)
        with contextlib.closing(sqlite3.connect(c.folder / "bgpo.db", timeout=60, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            c.wait_dead(trainer)
            other.execute("ROLLBACK")
        c.release(job)
        c.wait_over(job)
        check_job(c, job)


@contextlib.contextmanager
def cutting(c: Cluster) -> Iterator[None]:
    """Cut the connections through the proxies at random moments, and refuse new ones for some of the time."""
    stop = threading.Event()

    def cut() -> None:
        proxies = [proxy for proxy in (c.redis_proxy, c.database_proxy) if proxy is not None]
        while not stop.wait(c.random.uniform(0.05, 0.6)):
            proxy = c.random.choice(proxies)
            if c.random.random() < 0.2:
                proxy.refuse()
                stop.wait(c.random.uniform(0, FENCE_S / 4))
                proxy.refuse(False)
            else:
                proxy.cut()

    thread = threading.Thread(target=cut, name="cutting")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_connections_are_cut_at_random(cluster: MakeCluster) -> None:
    with cluster(
        "postgresql", workers=2, short_lease=True, redis_proxy=True, database_proxy=True, max_attempts=50
    ) as c:
        jobs = [c.submit(seed=seed, steps=20, every=4) for seed in range(6)]
        assert c.redis_proxy is not None
        assert c.database_proxy is not None
        with cutting(c):
            for job in jobs:
                c.wait_over(job)
        for proxy in (c.redis_proxy, c.database_proxy):
            assert proxy.cuts > 0
        for job in jobs:
            check_job(c, job)
        wait_for(lambda: c.shown(jobs[0])["status"] == "succeeded", "the API is well again")
