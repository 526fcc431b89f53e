"""What happens to a job when one of the processes around it dies, hangs or is told to leave."""

from __future__ import annotations

import pytest

from tests.faults.conftest import MakeCluster
from tests.faults.oracle import check_job

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
        job = c.submit()
        c.wait_checkpoint(job, 3)
        c.wait_line(job, "STEP", n=5)
        c.kill_trainer(job)
        c.wait_over(job)
        check_job(c, job, epochs=2)


@BOTH
def test_the_worker_is_killed(cluster: MakeCluster, database: str) -> None:
    with cluster(database, workers=2) as c:
        job = c.submit(plan={"step_s": 0.2})
        c.wait_checkpoint(job, 3)
        c.worker_of(job).kill()
        c.wait_over(job)
        check_job(c, job, epochs=2)
