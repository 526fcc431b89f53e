"""What users wish of a job, at the moments when it is hardest: as it ends, before its first step, during a save."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.faults.conftest import MakeCluster
from tests.faults.oracle import check_job, check_webhook
from tests.faults.receiver import Receiver

BOTH = pytest.mark.parametrize("database", ["sqlite", "postgresql"])
ROUNDS = 16


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@BOTH
def test_cancel_races_completion(cluster: MakeCluster, receiver: Receiver, database: str) -> None:
    """First after the end, then before it, then at moments around it. Whoever wins, there is one end, and the answer to
    the cancel, the state, the events and the webhook all tell of the same one."""
    ends = set()
    with cluster(database, workers=2, **receiver.settings()) as c:
        takes = 0.0
        for turn in range(ROUNDS):
            plan = {"hold_at": 3, "step_s": 0.02}
            job = c.submit(steps=3, every=None, plan=plan, rl={"webhook_url": receiver.url})
            c.wait_line(job, "STEP", n=2)
            begin = time.monotonic()
            if turn == 0:  # the cancel comes last, and shows how long the end takes
                c.release(job)
                c.wait_over(job)
                takes = time.monotonic() - begin
            elif turn > 1:  # in between
                c.release(job)
                time.sleep(c.random.uniform(0, 1.2 * takes))
            answer = c.ask(job, "cancel")
            state = c.wait_over(job).state
            if answer.status_code == 200:
                assert answer.json()["status"] == "cancelled"
                assert state == "cancelled", "the user was told that it is cancelled"
            else:
                assert answer.status_code == 400, answer.text
                assert state == "succeeded"
            ends.add(state)
            check_job(c, job, state, epochs=1)
            check_webhook(receiver, job, state)
    assert ends == {"cancelled", "succeeded"}


def test_cancel_between_attempts_and_while_pausing(cluster: MakeCluster) -> None:
    with cluster("postgresql", workers=1) as c:
        running, waiting = c.submit_held(), c.submit()
        assert c.ask(waiting, "cancel").json()["status"] == "cancelled"
        assert c.job(waiting).state == "cancelled", "no worker had it: there is nothing to wait for"
        c.plan(running, hold_at=6, save_s=3.0)
        assert c.ask(running, "pause").status_code == 200
        assert c.ask(running, "cancel").json()["status"] == "cancelled"
        c.wait_over(running)
        check_job(c, running, "cancelled", epochs=1)
        check_job(c, waiting, "cancelled", epochs=0)


def test_a_cancelled_job_whose_worker_dies(cluster: MakeCluster) -> None:
    with cluster(short_lease=True) as c:
        job = c.submit_held(plan={"deaf": True})  # so that the worker is still at it when it dies
        assert c.ask(job, "cancel").json()["status"] == "cancelled"
        c.workers.pop().kill()
        c.start_worker()
        c.wait_over(job)
        check_job(c, job, "cancelled")


def test_pause_before_the_first_step(cluster: MakeCluster) -> None:
    with cluster("postgresql") as c:
        job = c.submit(plan={"load_s": 600.0})
        c.wait_line(job, "START")
        assert c.ask(job, "pause").status_code == 200
        c.wait_state(job, "paused")
        assert not c.strangers(), "its accelerators are free"
        c.plan(job)
        assert c.ask(job, "resume").status_code == 200
        c.wait_over(job)
        check_job(c, job, epochs=2)


def test_pause_after_loading_and_before_the_first_step(cluster: MakeCluster) -> None:
    with cluster() as c:
        job = c.submit(plan={"hold_at": 1})
        c.wait_phase(job, "training")
        assert c.ask(job, "pause").status_code == 200
        c.wait_state(job, "paused")
        assert [row.step for row in c.checkpoints(job)] == [0]
        c.release(job)
        assert c.ask(job, "resume").status_code == 200
        c.wait_over(job)
        check_job(c, job, epochs=2)


@pytest.mark.parametrize("killed", [False, True], ids=["saves", "is killed while it saves"])
def test_pause_during_a_save(cluster: MakeCluster, killed: bool) -> None:
    """The half-written checkpoint is finished, or it never existed."""
    with cluster() as c:
        job = c.submit(plan={"save_s": 3.0})
        c.wait_line(job, "SAVE", n=3)
        assert c.ask(job, "pause").status_code == 200
        if killed:
            c.kill_trainer(job)
        c.wait_state(job, "paused")
        steps = [row.step for row in c.checkpoints(job)]
        assert steps == [] if killed else steps[:1] == [3]
        c.plan(job)
        assert c.ask(job, "resume").status_code == 200
        c.wait_over(job)
        check_job(c, job, epochs=2)


def test_a_worker_dies_while_the_job_is_being_paused(cluster: MakeCluster) -> None:
    with cluster(short_lease=True) as c:
        job = c.submit_held(plan={"deaf": True})
        assert c.ask(job, "pause").status_code == 200
        c.workers.pop().kill()
        c.start_worker()
        c.wait_state(job, "paused")
        assert c.ask(job, "resume").status_code == 200
        c.release(job)
        c.wait_over(job)
        check_job(c, job, at_least=2)
