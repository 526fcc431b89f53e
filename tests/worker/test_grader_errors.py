"""A job's grader on a worker: its settings and secrets reach the trainer, its errors the job."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from pydantic import SecretStr

from jobs.db import Database
from jobs.repositories import jobs, secrets
from jobs.services.grading import vault
from jobs.tables import DEFAULT_PROJECT
from tests.worker.conftest import RECIPE
from tests.worker.helpers import GetJob, MakeJob, WithTrainer, attempts_of, events_of
from worker.answering import run_next
from worker.context import WorkerContext
from worker.preparation import Preparation
from worker.workdir import WorkDir

ENDPOINT: dict[str, Any] = {
    "type": "endpoint",
    "name": "remote",
    "url": "https://example.com/grade",
    "headers": {"Authorization": "Bearer {{ secret.TOKEN }}"},
    "signing_secret": "SIGN",
}
VALUES = {"TOKEN": "tok-hunter2", "SIGN": "sign-hunter2", "OTHER": "other-hunter2"}
RECIPE_ENDPOINT = RECIPE | {"method": RECIPE["method"] | {"grader": ENDPOINT}}


@pytest.fixture
def worker(with_trainer: WithTrainer, db: Database) -> WorkerContext:
    """Its trainer fails in the grader; the project has secrets."""
    worker = with_trainer("ungradable", secrets_key=SecretStr(base64.b64encode(bytes(32)).decode()))
    with db.transaction() as session:
        for name, value in VALUES.items():
            secrets.put(session, DEFAULT_PROJECT, name, vault(worker.settings).seal(DEFAULT_PROJECT, name, value))
    return worker


def test_the_grader_gets_its_secrets_and_what_it_says_does_not_show_them(
    worker: WorkerContext, db: Database, make_job: MakeJob, get_job: GetJob
) -> None:
    job_id = make_job(recipe=RECIPE_ENDPOINT)
    run_next(worker)
    job, (attempt,) = get_job(job_id), attempts_of(db, job_id)
    shown = '{"SIGN": "<secret SIGN>", "TOKEN": "<secret TOKEN>"}'
    assert (job.state, job.error_code, job.error_phase, job.error_step) == ("failed", "grader_error", "grading", 2)
    assert str(job.error_message).startswith(
        f"9 of 9 failed with {shown} (step 2, grading). Run the grader on the rows"
    )
    assert job.error_log == f"about to fail\nTraceback ...\nKeyError: {shown}"
    assert attempt.error_code == "grader_error"
    (warning,) = [event for event in events_of(db, job_id) if event.level == "warn"]
    assert warning.message == f"with {shown}"
    assert warning.data == {
        "grader": "g",
        "kind": "other_error",
        "traceback": f"no\ufffdthing in <models>/tiny but {shown}",
    }
    everything = [str(vars(row)) for row in (job, attempt, *events_of(db, job_id))]
    assert not [row for row in everything if "hunter2" in row]


def test_a_secret_that_was_deleted_fails_the_job_before_its_trainer_starts(
    worker: WorkerContext, db: Database, make_job: MakeJob, get_job: GetJob
) -> None:
    job_id = make_job(recipe=RECIPE_ENDPOINT)
    with db.transaction() as session:
        assert secrets.delete(session, DEFAULT_PROJECT, "SIGN")
    run_next(worker)
    job, (attempt,) = get_job(job_id), attempts_of(db, job_id)
    assert (job.state, job.error_code) == ("failed", "grader_error")
    assert job.error_param == "method.reinforcement.grader.signing_secret"
    assert "There is no secret SIGN" in str(job.error_message)
    assert attempt.pid is None


def test_the_specification_has_the_operators_settings_and_no_secret(
    worker: WorkerContext, make_job: MakeJob, db: Database
) -> None:
    job_id = make_job(recipe=RECIPE_ENDPOINT)
    with db.transaction() as session:
        claim = jobs.claim(session, job_id, worker.worker_id, 60)
    assert claim is not None
    workdir = WorkDir(worker.settings, claim)
    preparation = Preparation(worker, claim, workdir)
    preparation.run()
    prepared = preparation.result()
    assert prepared.secrets == {"TOKEN": "tok-hunter2", "SIGN": "sign-hunter2"}
    assert "hunter2" not in repr(prepared)
    text = workdir.spec.read_text()
    assert '"max_memory_mb": 2048' in text
    assert "hunter2" not in text
    workdir.remove()
