"""Tasks among the jobs of a project: unseen where jobs are meant, counted where work is, deleted with their job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest

from jobs.artifacts import Manifest
from jobs.db import Database
from jobs.ids import ENDPOINT, new_id
from jobs.kinds import PREFIXES, Kind, is_job_id
from jobs.repositories import checkpoints, job_rows, jobs, queue, samples, usage, webhook_endpoints, webhooks
from jobs.repositories.jobs import Claim
from jobs.tables import DEFAULT_PROJECT, Job
from jobs.vault import Sealed
from jobs.webhooks import EventType

TASKS = (Kind.EVALUATE, Kind.EXPORT)
MakeJob = Callable[..., str]
MakeTask = Callable[..., str]


@pytest.fixture
def make_task(make_job: MakeJob) -> MakeTask:
    """Stores a queued task."""

    def make(kind: Kind, **values: Any) -> str:
        task_id = new_id(PREFIXES[kind])
        make_job(**({"id": task_id, "kind": kind, "tuned_model": task_id, "training_file": ""} | values))
        return task_id

    return make


@pytest.fixture
def finished(db: Database, make_task: MakeTask, manifest: Manifest) -> Callable[..., str]:
    """Stores a task that has succeeded."""

    def make(kind: Kind, **values: Any) -> str:
        task_id = make_task(kind, **values)
        with db.transaction() as session:
            claim = jobs.claim(session, task_id, "w", 60)
        assert claim is not None
        publish(db, claim, manifest)
        return task_id

    return make


def publish(db: Database, claim: Claim, manifest: Manifest) -> str:
    """The final checkpoint of a run, and its success."""
    with db.transaction() as session:
        key = f"checkpoints/{claim.job_id}/{claim.epoch}/step-000000"
        made = checkpoints.insert(session, claim.job_id, claim.epoch, 0, key, manifest, True, {"sampled_graded": 3.0})
        assert jobs.finish(session, claim.job_id, claim.epoch, "succeeded")
    assert made is not None
    return made


@pytest.mark.parametrize("kind", TASKS)
def test_a_task_is_no_job_to_users(db: Database, make_job: MakeJob, finished: Callable[..., str], kind: Kind) -> None:
    with db.transaction() as session:
        of_all = {"name": "all", "url": "https://example.com", "event_types": list(get_args(EventType)), "active": True}
        webhook_endpoints.insert(session, DEFAULT_PROJECT, new_id(ENDPOINT), Sealed("c", "k"), secret_hint="", **of_all)
    job_id, task_id = make_job(), finished(kind, webhook_url="https://example.com")
    with db.read() as session:
        assert [job.id for job in job_rows.page(session, DEFAULT_PROJECT, after=None, limit=9)] == [job_id]
        assert [job.id for job in job_rows.page(session, DEFAULT_PROJECT, after=None, limit=9, kind=kind)] == [task_id]
        assert job_rows.get(session, DEFAULT_PROJECT, task_id) is None
        assert job_rows.get(session, DEFAULT_PROJECT, job_id, kind) is None
        assert job_rows.get(session, "proj_other", task_id, kind) is None
        task = job_rows.get(session, DEFAULT_PROJECT, task_id, kind)
        assert task is not None
        assert task.result_files is None
        assert job_rows.succeeded(session, DEFAULT_PROJECT) == []
        assert job_rows.by_tuned_model(session, DEFAULT_PROJECT, task_id) is None
        assert webhooks.of_job(session, task_id) == []
    assert is_job_id(task_id)
    assert not is_job_id("ftjob-1")


@pytest.mark.parametrize("kind", TASKS)
def test_its_result_is_no_checkpoint_to_users(db: Database, finished: Callable[..., str], kind: Kind) -> None:
    task_id = finished(kind)
    with db.read() as session:
        final = session.get_one(Job, task_id).final_checkpoint_id
        assert final is not None
        result = checkpoints.by_id(session, final)
        assert result is not None
        for name in (final, result.name):
            assert checkpoints.readable(session, DEFAULT_PROJECT, name) is None
            assert checkpoints.find(session, None, name) is None
            assert checkpoints.find(session, DEFAULT_PROJECT, name) is None
        assert checkpoints.get(session, DEFAULT_PROJECT, final) is None
        assert checkpoints.by_name(session, DEFAULT_PROJECT, result.name) is None
        assert checkpoints.known_keys(session, [result.key]) == {result.key}, "the sweeper leaves its files"


def test_tasks_wait_and_run_and_are_paid_for_as_jobs(
    db: Database, make_job: MakeJob, make_task: MakeTask, manifest: Manifest
) -> None:
    make_job()
    ids = [make_task(kind, gpus=2) for kind in TASKS]
    with db.transaction() as session:
        assert job_rows.count_queued(session, DEFAULT_PROJECT) == 3
        assert sorted(queue.positions(session, DEFAULT_PROJECT).values()) == [1, 2, 3]
        claim = jobs.claim(session, ids[0], "w", 60)
    assert claim is not None
    assert (claim.kind, claim.trained) == (Kind.EVALUATE, False)
    with db.read() as session:
        assert queue.running(session, DEFAULT_PROJECT) == 1
        assert usage.jobs(session, DEFAULT_PROJECT) == (2, 1)
        month = usage.month_of(usage.clock(session))
        assert [used.job_id for used in usage.by_job(session, DEFAULT_PROJECT, month)] == [ids[0]]
    publish(db, claim, manifest)


def test_a_worker_that_died_after_publishing_need_not_do_it_again(
    db: Database, make_task: MakeTask, manifest: Manifest
) -> None:
    task_id = make_task(Kind.EXPORT)
    with db.transaction() as session:
        first = jobs.claim(session, task_id, "w", 60)
    assert first is not None
    with db.transaction() as session:
        key = f"checkpoints/{task_id}/1/step-000000"
        assert checkpoints.insert(session, task_id, 1, 0, key, manifest, True, {})
        lost = jobs.JobError("worker_lost", "gone")
        assert jobs.hand_back(session, task_id, 1, error=lost, spend_attempt=True)
    with db.transaction() as session:
        again = jobs.claim(session, task_id, "w", 60)
    assert again is not None
    assert again.trained


def test_an_unfinished_task_holds_its_checkpoint(
    db: Database, make_running: Callable[..., Claim], make_task: MakeTask, manifest: Manifest
) -> None:
    source = publish(db, make_running(), manifest)
    task_id = make_task(Kind.EXPORT, start_checkpoint_id=source)
    with db.read() as session:
        assert checkpoints.started_from(session, [source]) == {source}
    with db.transaction() as session:
        assert job_rows.cancel(session, DEFAULT_PROJECT, task_id) is None, "it is no job"
        job_rows.cancel(session, DEFAULT_PROJECT, task_id, Kind.EXPORT)
    with db.read() as session:
        assert checkpoints.started_from(session, [source]) == set()


def test_answers_come_in_order_and_by_decoding(db: Database, make_task: MakeTask) -> None:
    task_id, each = make_task(Kind.EVALUATE), 3
    with db.transaction() as session:
        assert jobs.claim(session, task_id, "w", 60)
        for index in reversed(range(12)):
            assert samples.upsert(
                session,
                task_id,
                1,
                step=0,
                split="validation",
                index=index,
                prompt="p",
                completion="c",
                reward=None,
                scores={},
                error=None,
            )

    def indices(**options: Any) -> list[int]:
        with db.read() as session:
            given = {"after": None, "limit": 100} | options
            return [row.index for row in samples.in_order(session, task_id, each=each, **given)]

    assert indices() == list(range(12))
    assert indices(after=4, limit=3) == [5, 6, 7]
    assert indices(last=True) == [2, 5, 8, 11]
    assert indices(last=False, after=2, limit=3) == [3, 4, 6]
