"""The power is cut: everything dies at the same moment, and all that is started again is what an operator starts."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import pytest

from tests.faults.conftest import MakeCluster
from tests.faults.oracle import check_job
from tests.faults.processes import marked, wait_for


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_the_power_is_cut(cluster: MakeCluster, database: str) -> None:
    """One job is between two checkpoints, one saves, one waits, one is being cancelled and one being paused."""
    with cluster(database, workers=4, short_lease=True) as c:
        running = c.submit_held()
        saving = c.submit(plan={"save_s": 600.0})
        c.wait_line(saving, "SAVE")
        cancelling, pausing = (c.submit_held(plan={"deaf": True}) for _ in range(2))
        waiting = c.submit()
        assert c.ask(cancelling, "cancel").status_code == 200
        assert c.ask(pausing, "pause").status_code == 200

        for pid in marked(c.mark):  # the trainers with the rest: nobody is left who could tidy up
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if c.postgres is not None:
            c.postgres.kill()
        c.kill_services()
        c.check_dead()

        c.plan(saving)
        c.release(running)
        if c.postgres is not None:
            c.postgres.start()
        c.redis.start()
        c.workers.clear()
        c.start_api()
        c.start_workers(2)
        c.wait_state(pausing, "paused")
        c.release(pausing)
        assert c.ask(pausing, "resume").status_code == 200
        for job in (running, saving, waiting, pausing, cancelling):
            c.wait_over(job)
        check_job(c, running, at_least=2)
        check_job(c, saving, at_least=2)
        check_job(c, waiting)
        check_job(c, pausing, at_least=2)
        check_job(c, cancelling, "cancelled")
        wait_for(lambda: not c.strangers(), "nothing but the services lives")
