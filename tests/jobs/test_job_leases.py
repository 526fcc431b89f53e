"""Claim, lease, fencing and the ends of a run, on both databases."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from jobs.artifacts import Manifest
from jobs.db import Database, now
from jobs.failures import JobError
from jobs.ids import EVENT, JOB, new_id
from jobs.repositories import checkpoints, events, job_rows, jobs, metrics, samples
from jobs.resources import Bell
from jobs.states import State
from jobs.tables import DEFAULT_PROJECT, Attempt, Checkpoint, Job

Make = Callable[..., str]
MakeRunning = Callable[..., jobs.Claim]
Get = Callable[[str], Job]
Put = Callable[..., None]


def messages(db: Database, job_id: str) -> list[str]:
    with db.read() as session:
        return [event.message for event in events.since(session, job_id, 0, 1000)]


class TestClaim:
    def test_gives_a_new_epoch_a_lease_and_an_attempt(self, db: Database, make_job: Make, get_job: Get) -> None:
        job_id = make_job()
        with db.transaction() as session:
            claim = jobs.claim(session, job_id, "worker-1", 60)
        assert claim is not None
        assert (claim.epoch, claim.recipe, claim.training_file) == (1, {"seed": 1}, "file-train")
        job = get_job(job_id)
        assert (job.state, job.lease_owner) == (State.RUNNING, "worker-1")
        with db.read() as session:
            assert session.get_one(Attempt, (job_id, 1)).worker_id == "worker-1"
            left = session.scalars(sa.select(Job.lease_until - now())).one()
        assert left is not None
        assert 50 < left <= 60

    def test_tells_which_request_made_the_job(self, db: Database, make_job: Make) -> None:
        known, unknown = make_job(), make_job()
        with db.transaction() as session:
            events.append(session, known, None, "info", "Created", data={"request_id": "req_1"})
            events.append(session, known, None, "info", "later", data={"request_id": "req_2"})
            found = [jobs.claim(session, job_id, "worker-1", 60) for job_id in (known, unknown)]
        assert [claim.origin for claim in found if claim is not None] == [{"request_id": "req_1"}, {}]

    @pytest.mark.parametrize(
        "values",
        [{"state": "running"}, {"state": "paused"}, {"state": "failed"}, {"desired": "pause"}, {"not_before": 4e9}],
    )
    def test_takes_only_a_queued_job_that_is_due(self, db: Database, make_job: Make, values: dict[str, object]) -> None:
        job_id = make_job(**values)
        with db.transaction() as session:
            assert jobs.claim(session, job_id, "worker-1", 60) is None

    def test_unknown_job(self, db: Database) -> None:
        with db.transaction() as session:
            assert jobs.claim(session, "ftjob-none", "worker-1", 60) is None

    def test_one_of_many_contenders_wins(self, db: Database, make_job: Make) -> None:
        job_id, winners, barrier = make_job(), [], threading.Barrier(8)

        def contend(name: str) -> None:
            barrier.wait(10)
            with db.transaction() as session:
                if jobs.claim(session, job_id, name, 60):
                    winners.append(name)

        threads = [threading.Thread(target=contend, args=(f"worker-{i}",)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(winners) == 1


class TestFencing:
    @pytest.fixture
    def old(self, make_running: MakeRunning, set_job: Put, db: Database) -> jobs.Claim:
        """A claim whose job another worker has by now."""
        old = make_running()
        set_job(old.job_id, lease_until=0.0)
        with db.transaction() as session:
            assert jobs.reap(session, 10) == [old.job_id]
        with db.transaction() as session:
            assert jobs.claim(session, old.job_id, "worker-2", 60)
        return old

    def test_every_write_of_the_old_worker_is_refused(
        self, db: Database, old: jobs.Claim, get_job: Get, manifest: Manifest
    ) -> None:
        before = get_job(old.job_id)
        with db.transaction() as session:
            key = (session, old.job_id, old.epoch)
            assert jobs.renew(*key, 60) is None
            assert not jobs.set_phase(*key, "training", 7)
            assert not jobs.finish(*key, State.FAILED, error=JobError("x", "y"))
            assert not jobs.hand_back(*key, spend_attempt=True, error=JobError("worker_lost", "x"))
            assert events.append(*key, "info", "late") is None
            assert not metrics.upsert(*key, 1, "train", {"loss": 1.0})
            assert not samples.upsert(
                *key, step=1, split="train", index=0, prompt="", completion="", reward=0.0, scores={}, error=None
            )
            assert checkpoints.insert(*key, 1, "key", manifest, True, {}) is None
        after = get_job(old.job_id)
        assert (after.epoch, after.state, after.event_seq) == (before.epoch, before.state, before.event_seq)

    def test_a_lease_in_its_grace_period_is_not_reaped(
        self, db: Database, make_running: MakeRunning, set_job: Put
    ) -> None:
        claim = make_running()
        set_job(claim.job_id, lease_until=now() - 5)
        with db.transaction() as session:
            assert jobs.reap(session, 10) == []
            assert jobs.renew(session, claim.job_id, claim.epoch, 60) == "run"


class TestEnds:
    def test_success_needs_a_final_checkpoint(
        self, db: Database, make_running: MakeRunning, get_job: Get, manifest: Manifest
    ) -> None:
        claim = make_running()
        with pytest.raises(ValueError, match="final checkpoint"), db.transaction() as session:
            jobs.finish(session, claim.job_id, claim.epoch, State.SUCCEEDED)
        assert get_job(claim.job_id).state == State.RUNNING
        with db.transaction() as session:
            made = checkpoints.insert(session, claim.job_id, claim.epoch, 20, "key", manifest, True, {})
            assert jobs.finish(session, claim.job_id, claim.epoch, State.SUCCEEDED, exit_code=0)
        job = get_job(claim.job_id)
        assert (job.state, job.final_checkpoint_id, job.lease_until) == (State.SUCCEEDED, made, None)
        assert messages(db, claim.job_id)[-1] == "The job has successfully completed"
        with db.read() as session:
            attempt = session.get_one(Attempt, (claim.job_id, 1))
        assert (attempt.outcome, attempt.exit_code) == ("succeeded", 0)

    def test_failure_keeps_its_reason(self, db: Database, make_running: MakeRunning, get_job: Get) -> None:
        claim = make_running()
        error = JobError("oom", "Out of memory\x00.", "method", detail="Traceback", phase="training", step=3)
        with db.transaction() as session:
            assert jobs.finish(session, claim.job_id, claim.epoch, "failed", error=error)
        job = get_job(claim.job_id)
        advice = "Lower batch_size, group_size, mc_samples or max_completion_length, or ask for more accelerators."
        assert job.error_message == f"Out of memory\ufffd (step 3, training). {advice}"
        assert (job.error_code, job.error_param, job.error_log) == ("oom", "method", "Traceback")
        assert (job.error_phase, job.error_step) == ("training", 3)
        with db.read() as session:
            [event] = events.page(session, claim.job_id, before_seq=None, limit=1)
            attempt = session.get_one(Attempt, (claim.job_id, 1))
        data = {"code": "oom", "phase": "training", "step": 3, "log_tail": "Traceback"}
        assert (event.level, event.message, event.data) == ("error", f"The job failed: {job.error_message}", data)
        assert (attempt.error_code, attempt.error_message) == ("oom", "Out of memory\ufffd.")
        assert (attempt.error_phase, attempt.error_step) == ("training", 3)

    @pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled", "hand_back", "reap"])
    def test_a_cancelled_job_ends_cancelled(
        self, db: Database, make_running: MakeRunning, get_job: Get, set_job: Put, end: str
    ) -> None:
        claim = make_running()
        with db.transaction() as session:
            job_rows.cancel(session, DEFAULT_PROJECT, claim.job_id)
        wished = get_job(claim.job_id)
        assert wished.state == State.CANCELLING
        set_job(claim.job_id, lease_until=0.0)
        with db.transaction() as session:
            if end == "reap":
                assert jobs.reap(session, 10) == [claim.job_id]
            elif end == "hand_back":
                assert jobs.hand_back(
                    session, claim.job_id, claim.epoch, spend_attempt=True, error=JobError("worker_lost", "x")
                )
            else:
                assert jobs.finish(session, claim.job_id, claim.epoch, end, error=JobError("a", "b"))
        job = get_job(claim.job_id)
        assert (job.state, job.finished_at) == (State.CANCELLED, wished.finished_at)
        assert job.error_code is None

    def test_nothing_of_a_cancelled_job_shows_up_later(
        self, db: Database, make_running: MakeRunning, manifest: Manifest
    ) -> None:
        claim = make_running()
        key = (claim.job_id, claim.epoch)
        with db.transaction() as session:
            job_rows.cancel(session, DEFAULT_PROJECT, claim.job_id)
        before = messages(db, claim.job_id)
        with db.transaction() as session:
            assert jobs.renew(session, *key, 60) == "cancel"
            assert events.append(session, *key, "info", "late") == 0
            assert metrics.upsert(session, *key, 1, "train", {"loss": 1.0})
            assert checkpoints.insert(session, *key, 1, "key", manifest, True, {}) is None
        assert messages(db, claim.job_id) == before
        with db.read() as session:
            assert metrics.series(session, claim.job_id) == []

    def test_crashes_spend_attempts_and_checkpoints_refill_them(
        self, db: Database, make_job: Make, get_job: Get, manifest: Manifest
    ) -> None:
        job_id = make_job()

        def crash(*, checkpoint: int | None = None) -> str:
            with db.transaction() as session:
                claim = jobs.claim(session, job_id, "worker-1", 60)
                assert claim is not None
                if checkpoint:
                    assert checkpoints.insert(session, job_id, claim.epoch, checkpoint, "k", manifest, False, {})
                assert jobs.hand_back(
                    session,
                    job_id,
                    claim.epoch,
                    spend_attempt=True,
                    error=JobError("worker_lost", "signal 9"),
                    signal=9,
                )
            return get_job(job_id).state

        assert [crash(), crash(), crash(checkpoint=5), crash(), crash()] == ["queued"] * 4 + ["failed"]
        job = get_job(job_id)
        assert (job.error_code, job.epoch) == ("worker_lost", 5)
        assert job.error_message is not None
        assert job.error_message.startswith("signal 9; no attempt is left. Nothing is wrong with the job")

    def test_a_drain_costs_no_attempt_and_rings_again(self, db: Database, make_running: MakeRunning) -> None:
        claim = make_running(attempts_left=1)
        with db.transaction() as session:
            jobs.mark_rung(session, [Bell(claim.job_id)])
            assert jobs.hand_back(
                session, claim.job_id, claim.epoch, spend_attempt=False, error=JobError("worker_lost", "drain")
            )
            assert jobs.to_ring(session) == [Bell(claim.job_id)]
            jobs.mark_rung(session, [Bell(claim.job_id)])
            assert jobs.to_ring(session) == []
            assert jobs.to_ring(session, older_than_s=-1) == [Bell(claim.job_id)]

    def test_back_off(self, db: Database, make_running: MakeRunning) -> None:
        claim = make_running()
        with db.transaction() as session:
            jobs.hand_back(
                session,
                claim.job_id,
                claim.epoch,
                spend_attempt=True,
                error=JobError("worker_lost", "x"),
                not_before_s=30,
            )
            assert jobs.to_ring(session) == []
            assert jobs.claim(session, claim.job_id, "worker-1", 60) is None

    def test_pause_and_resume(self, db: Database, make_running: MakeRunning, get_job: Get, manifest: Manifest) -> None:
        claim = make_running()
        with db.transaction() as session:
            job_rows.pause(session, DEFAULT_PROJECT, claim.job_id)
            assert jobs.renew(session, claim.job_id, claim.epoch, 60) == "pause"
            made = checkpoints.insert(session, claim.job_id, claim.epoch, 3, "key", manifest, False, {})
            assert jobs.finish(session, claim.job_id, claim.epoch, State.PAUSED)
            assert jobs.claim(session, claim.job_id, "worker-2", 60) is None
            job_rows.resume(session, DEFAULT_PROJECT, claim.job_id)
        with db.transaction() as session:
            again = jobs.claim(session, claim.job_id, "worker-2", 60)
        assert again is not None
        assert (again.epoch, again.resume_checkpoint_id) == (2, made)


class TestWrites:
    def test_events_have_no_gaps_under_concurrent_writers(self, db: Database, make_running: MakeRunning) -> None:
        claim = make_running()

        def write(name: str) -> None:
            for i in range(10):
                with db.transaction() as session:
                    events.append(session, claim.job_id, claim.epoch, "info", f"{name}.{i}")

        threads = [threading.Thread(target=write, args=(str(i),)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        with db.read() as session:
            assert [event.seq for event in events.since(session, claim.job_id, 0, 1000)] == list(range(1, 42))

    def test_replayed_steps_replace_values(
        self, db: Database, make_running: MakeRunning, set_job: Put, manifest: Manifest
    ) -> None:
        first = make_running()
        with db.transaction() as session:
            metrics.upsert(session, first.job_id, 1, 1, "train", {"loss": 1.0, "entropy": float("nan")})
            jobs.hand_back(session, first.job_id, 1, spend_attempt=True, error=JobError("worker_lost", "x"))
        with db.transaction() as session:
            assert jobs.claim(session, first.job_id, "w", 60)
            assert metrics.upsert(session, first.job_id, 2, 1, "train", {"loss": 2.0})
            assert checkpoints.insert(session, first.job_id, 2, 1, "a", manifest, False, {"loss": 2.0})
            one = checkpoints.page(session, first.job_id, after=None, limit=9)
            assert checkpoints.insert(session, first.job_id, 2, 1, "b", manifest, False, {}) == one[0].id
        with db.read() as session:
            assert [(m.name, m.value, m.epoch) for m in metrics.series(session, first.job_id)] == [("loss", 2.0, 2)]
            assert [c.key for c in checkpoints.page(session, first.job_id, after=None, limit=9)] == ["b"]

    def test_samples_survive_what_models_write(self, db: Database, make_running: MakeRunning) -> None:
        claim = make_running()
        bad = "a\x00b\ud800" + "c" * 100_000
        with db.transaction() as session:
            for _ in range(2):
                assert samples.upsert(
                    session, claim.job_id, 1, step=1, split="train", index=0,
                    prompt=bad, completion=bad, reward=0.5, scores={"g": 0.5}, error=bad,
                )  # fmt: skip
        with db.read() as session:
            [row] = samples.page(session, claim.job_id, after=None, limit=10)
        assert row.completion.startswith("a\ufffdb?ccc")
        assert len(row.completion) == samples.MAX_TEXT


class TestReplays:
    """An attempt that starts again before the place where the last one ended tells nothing twice."""

    def record(self, db: Database, job_id: str, epoch: int, step: int, split: str = "train") -> bool:
        with db.transaction() as session:
            values, data = {"loss": float(epoch)}, {"step": step}
            return metrics.record_step(
                session, job_id, epoch, step=step, split=split, values=values, message=f"{split} {step}", data=data
            )

    def test_a_step_has_one_event_and_the_newest_values(self, db: Database, make_running: MakeRunning) -> None:
        first = make_running()
        assert all(self.record(db, first.job_id, 1, step) for step in (1, 2))
        assert self.record(db, first.job_id, 1, 2, "validation")
        with db.transaction() as session:
            jobs.hand_back(session, first.job_id, 1, spend_attempt=True, error=JobError("worker_lost", "x"))
            assert jobs.claim(session, first.job_id, "w", 60)
        assert not self.record(db, first.job_id, 1, 3)
        assert all(self.record(db, first.job_id, 2, step) for step in (1, 2, 3))
        with db.read() as session:
            told = [one for one in events.since(session, first.job_id, 0, 100) if one.type == "metrics"]
            values = [(row.step, row.split, row.value) for row in metrics.series(session, first.job_id)]
        assert [(one.message, one.epoch) for one in told] == [
            ("train 1", 1), ("train 2", 1), ("validation 2", 1), ("train 3", 2),
        ]  # fmt: skip
        assert values == [(1, "train", 2.0), (2, "train", 2.0), (2, "validation", 1.0), (3, "train", 2.0)]

    def test_a_cancelled_job_records_nothing_and_its_worker_goes_on(
        self, db: Database, make_running: MakeRunning
    ) -> None:
        claim = make_running()
        with db.transaction() as session:
            job_rows.cancel(session, DEFAULT_PROJECT, claim.job_id)
        before = messages(db, claim.job_id)
        assert self.record(db, claim.job_id, 1, 1)
        assert messages(db, claim.job_id) == before

    def test_a_checkpoint_is_told_once(self, db: Database, make_running: MakeRunning, manifest: Manifest) -> None:
        claim = make_running()
        with db.transaction() as session:
            for key, step in (("a", 5), ("b", 10), ("c", 5)):
                assert checkpoints.insert(session, claim.job_id, 1, step, key, manifest, False, {})
        assert messages(db, claim.job_id)[1:] == ["Checkpoint created at step 5", "Checkpoint created at step 10"]

    def test_an_event_with_an_id_is_added_once(self, db: Database, make_running: MakeRunning) -> None:
        """Also when the first try is still at its commit: then the second one waits for it."""
        claim, event_id = make_running(), new_id(EVENT)
        seqs: list[int | None] = []

        def add() -> None:
            with db.transaction() as session:
                seqs.append(events.append(session, claim.job_id, 1, "info", "once", event_id=event_id))

        with db.transaction() as session:
            seqs.append(events.append(session, claim.job_id, 1, "info", "once", event_id=event_id))
            second = threading.Thread(target=add)
            second.start()
        second.join(30)
        add()
        assert seqs == [2, 2, 2]
        assert messages(db, claim.job_id)[1:] == ["once"]


class TestAgain:
    def test_a_retry_is_asked_the_same_and_begins_at_the_last_good_checkpoint(
        self, db: Database, make_running: MakeRunning, get_job: Get, manifest: Manifest
    ) -> None:
        claim = make_running(priority=1, gpus=2, gpu_type="cpu", tags={"a": "b"}, seed=7, webhook_url="https://x.org")
        with db.transaction() as session:
            for step in (5, 10, 15, 20):
                checkpoints.insert(session, claim.job_id, 1, step, f"k{step}", manifest, step == 20, {})
            session.execute(sa.update(Checkpoint).where(Checkpoint.step == 15).values(damaged=True))
            jobs.finish(session, claim.job_id, 1, "failed", error=JobError("nan", "NaN"))
        source = get_job(claim.job_id)
        with db.transaction() as session:
            resume = job_rows.resume_point(session, source)
            assert resume is not None
            assert resume.step == 10
            new = job_rows.again(source, id=new_id(JOB), tuned_model="ft:x", max_attempts=5, resume=resume)
            job_rows.insert(session, new)
            job_rows.queue(session, new.id)
        with db.transaction() as session:
            again = jobs.claim(session, new.id, "w", 60)
        assert again is not None
        assert (again.resume_checkpoint_id, again.last_step, again.epoch, again.attempts_left) == (resume.id, 10, 1, 5)
        assert not again.trained
        job = get_job(new.id)
        for name in ("recipe", "seed", "tags", "priority", "gpus", "gpu_type", "webhook_url", "training_file"):
            assert getattr(job, name) == getattr(source, name)
        assert (job.source_job_id, job.error_code, job.idempotency_key) == (source.id, None, None)
        with db.transaction() as session:  # the new job fails before its first checkpoint, and is retried itself
            jobs.finish(session, new.id, 1, "failed", error=JobError("nan", "NaN"))
            onward = job_rows.resume_point(session, job)
            assert onward is not None
            assert onward.id == resume.id

    def test_without_a_checkpoint_it_begins_at_the_base_model(self, db: Database, make_job: Make, get_job: Get) -> None:
        source = get_job(make_job(state="failed"))
        with db.transaction() as session:
            assert job_rows.resume_point(session, source) is None
        new = job_rows.again(source, id="ftjob-1", tuned_model="ft:x", max_attempts=5, resume=None)
        assert (new.resume_checkpoint_id, new.last_step) == (None, 0)
