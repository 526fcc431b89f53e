"""Why jobs wait, in words for their users, and the registry of workers behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from jobs.db import Database, now
from jobs.failures import JobError
from jobs.repositories import job_rows, jobs, queue, workers
from jobs.repositories.queue import SlotClass
from jobs.resources import Slot
from jobs.states import State
from jobs.tables import DEFAULT_PROJECT, Job, Worker

Make = Callable[..., str]
MakeRunning = Callable[..., jobs.Claim]
Put = Callable[..., None]
Reason = Callable[..., str | None]


@pytest.fixture
def beat(db: Database) -> Callable[..., None]:
    """A worker reports itself."""

    def report(name: str, gpu_type: str = "cpu", gpus: int = 1, **values: Any) -> None:
        slot = Slot(name, f"host-{name}", gpu_type, tuple(str(i) for i in range(gpus)))
        with db.transaction() as session:
            workers.beat(session, slot, pid=1, device="cuda", version="1", **values)

    return report


@pytest.fixture
def reason(db: Database) -> Reason:
    def read(job_id: str, **limits: Any) -> str | None:
        with db.read() as session:
            return queue.wait_reason(session, session.get_one(Job, job_id), **limits)

    return read


class TestReasons:
    def test_no_worker_has_what_it_asks_for(self, make_job: Make, beat: Callable[..., None], reason: Reason) -> None:
        beat("a", "h200", 2)
        beat("b", "a100", 8)
        assert reason(make_job(gpus=4, gpu_type="h200")) == "No connected worker has 4 accelerators of type h200."
        assert reason(make_job(gpus=9)) == "No connected worker has 9 accelerators."
        assert reason(make_job(gpu_type="l4")) == "No connected worker has 1 accelerator of type l4."
        assert "ahead" in (reason(make_job(gpus=2, gpu_type="h200")) or "")

    def test_a_worker_not_seen_lately_is_no_worker(
        self, db: Database, make_job: Make, beat: Callable[..., None], reason: Reason
    ) -> None:
        job_id = make_job()
        beat("a")
        assert reason(job_id) == "Next; waits for a free worker."
        with db.transaction() as session:
            session.execute(sa.update(Worker).values(last_seen=now() - 40))
        assert reason(job_id) == "No worker is connected."
        assert reason(job_id, live_s=60) == "Next; waits for a free worker."

    def test_jobs_ahead(self, make_job: Make, beat: Callable[..., None], reason: Reason) -> None:
        beat("a", state="busy")
        made = [make_job() for _ in range(3)]
        assert [reason(job_id) for job_id in made] == [
            "Next; waits for a free worker.",
            "Waits for a free worker; 1 job ahead.",
            "Waits for a free worker; 2 jobs ahead.",
        ]

    def test_workers_that_take_no_jobs(self, make_job: Make, beat: Callable[..., None], reason: Reason) -> None:
        job_id = make_job(gpu_type="h200")
        beat("a", "h200", state="unfit", problem="0.2 GiB of disk are free, 1 GiB are needed")
        beat("b")
        full = "The workers that could run it take no jobs: 0.2 GiB of disk are free, 1 GiB are needed."
        assert reason(job_id) == full
        beat("c", "h200", state="draining")
        assert reason(job_id) == full
        beat("a", "h200", state="draining")
        assert reason(job_id) == "The workers that could run it are shutting down."
        beat("a", "h200", state="idle")
        assert reason(job_id) == "Next; waits for a free worker."

    def test_the_limit_of_the_project(
        self, make_running: MakeRunning, make_job: Make, reason: Reason, beat: Any
    ) -> None:
        beat("a")
        make_running()
        job_id = make_job()
        assert reason(job_id, max_running=1) == "The project runs 1 job, as many as it may at once."
        assert reason(job_id, max_running=2) == "Next; waits for a free worker."

    def test_backing_off(self, db: Database, make_running: MakeRunning, set_job: Put, reason: Reason) -> None:
        claim = make_running()
        error = JobError("trainer_crashed", "the trainer was killed by SIGSEGV")
        with db.transaction() as session:
            jobs.hand_back(session, claim.job_id, 1, error=error, spend_attempt=True, not_before_s=60)
        set_job(claim.job_id, not_before=4_102_444_800.0)
        after = "after a failed attempt: the trainer was killed by SIGSEGV"
        assert reason(claim.job_id) == f"Starts again at 2100-01-01 00:00:00 UTC, {after}."

    @pytest.mark.parametrize(
        ("values", "said"),
        [
            ({"state": "validating"}, "Its files are being checked."),
            ({"state": "pausing"}, "Pausing: waits for a checkpoint."),
            ({"state": "paused"}, "Paused; resume it to go on."),
            ({"state": "paused", "pause_code": "disk_full", "pause_message": "Full."}, "Paused by the service: Full."),
            *[({"state": state}, None) for state in ("running", "cancelling", "succeeded", "failed", "cancelled")],
        ],
    )
    def test_other_states(self, make_job: Make, reason: Reason, values: dict[str, str], said: str | None) -> None:
        assert reason(make_job(**values)) == said


class TestSnapshot:
    def test_shows_ones_own_jobs_and_everybodys_workers(
        self, db: Database, make_job: Make, make_running: MakeRunning, beat: Callable[..., None]
    ) -> None:
        beat("a", "h200", 2, state="busy", job_id="ftjob-1")
        beat("b", "h200", 2)
        beat("c", "h200", 2, state="unfit", problem="no disk")
        beat("d")
        paused, validating = make_job(state="paused"), make_job(state="validating")
        make_job(project_id="proj_other", priority=1)
        low, high = make_job(priority=-1), make_job(priority=1)
        running = make_running(project_id=DEFAULT_PROJECT)
        make_running(project_id="proj_other")
        make_job(state="failed")
        with db.read() as session:
            seen = queue.snapshot(session, DEFAULT_PROJECT)
        assert [(one.job.id, one.position) for one in seen.waiting] == [
            (high, 2),
            (low, 3),
            (paused, None),
            (validating, None),
        ]
        assert seen.waiting[1].reason == "Waits for a free worker; 2 jobs ahead."
        assert [job.id for job in seen.running] == [running.job_id]
        assert seen.queued_total == 3
        assert seen.slots == [SlotClass("cpu", 1, 1, 0, 0), SlotClass("h200", 2, 3, 1, 1)]

    def test_nothing_there(self, db: Database) -> None:
        with db.read() as session:
            seen = queue.snapshot(session, DEFAULT_PROJECT)
        assert (seen.waiting, seen.running, seen.queued_total, seen.slots) == ([], [], 0, [])


class TestRegistry:
    def test_a_beat_updates_what_changes(self, db: Database, beat: Callable[..., None]) -> None:
        beat("a", "h200", 2)
        with db.read() as session:
            [first] = workers.list(session)
        beat("a", "h200", 1, state="unfit", problem="one GPU is gone")
        beat("b", state="busy", job_id="ftjob-1")
        with db.read() as session:
            one, other = workers.live(session, 60)
        assert (one.id, one.host, one.gpu_type, one.gpus, one.devices) == ("a", "host-a", "h200", 1, ["0"])
        assert (one.state, one.problem, one.started_at) == ("unfit", "one GPU is gone", first.started_at)
        assert one.last_seen >= first.last_seen
        assert (other.state, other.job_id) == ("busy", "ftjob-1")
        beat("b")
        with db.read() as session:
            assert workers.list(session)[1].job_id is None

    def test_workers_gone_are_listed_until_forgotten(self, db: Database, beat: Callable[..., None]) -> None:
        beat("a")
        beat("b")
        with db.transaction() as session:
            session.execute(sa.update(Worker).where(Worker.id == "a").values(last_seen=now() - 100))
            assert [worker.id for worker in workers.live(session, 60)] == ["b"]
            assert [worker.id for worker in workers.list(session)] == ["a", "b"]
            assert workers.seen(session, "host-b", within_s=60)
            assert not workers.seen(session, "host-a", within_s=60)
            assert workers.forget(session, unseen_for_s=50) == 1
            assert [worker.id for worker in workers.list(session)] == ["b"]


def test_resume_queues_up_again_and_forgets_why_it_paused(
    db: Database, make_running: MakeRunning, make_job: Make, set_job: Put, beat: Callable[..., None]
) -> None:
    beat("a")
    claim = make_running()
    set_job(claim.job_id, queued_at=1.0)
    with db.transaction() as session:
        assert jobs.finish(session, claim.job_id, 1, State.PAUSED, error=JobError("disk_full", "the disk is full"))
    make_job()
    with db.transaction() as session:
        job = job_rows.resume(session, DEFAULT_PROJECT, claim.job_id)
        assert job is not None
        assert (job.state, job.desired, job.pause_code, job.pause_message) == ("queued", "run", None, None)
        assert queue.position_of(session, job) == 2
