"""The worker process: `python -m worker` against real Redis and databases. Its jobs fail before a trainer is needed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from pydantic import SecretStr

from cli.part import Part
from cli.redis_server import find_binary, start_redis
from jobs.db import Database
from jobs.doorbell import Doorbell
from jobs.repositories import jobs, workers
from jobs.resources import Bell
from jobs.settings import Settings
from jobs.tables import Worker
from tests.worker.conftest import STAND_IN
from tests.worker.helpers import GetJob, MakeJob, RecipeOf, wait_for
from worker.app import create_app
from worker.context import WorkerContext
from worker.reconciler import reconcile

SETTINGS = (
    "home",
    "database_url",
    "model_root",
    "stop_grace_s",
    "beat_s",
    "self_fence_s",
    "lease_s",
    "reap_after_s",
    "reconcile_s",
    "min_free_bytes",
)


@contextmanager
def process(
    module: str, settings: Settings, log: Path, trainer: str | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A part of the service as a process; with `trainer` its trainer is the stand-in in that mode."""
    env = os.environ | {f"BGPO_{name.upper()}": str(getattr(settings, name)) for name in SETTINGS}
    env["BGPO_REDIS_URL"] = settings.redis_url.get_secret_value()
    if trainer is not None:
        env["BGPO_TRAINER_COMMAND"] = json.dumps([sys.executable, str(STAND_IN), trainer])
    with log.open("wb") as out, subprocess.Popen([sys.executable, "-m", module], env=env, stdout=out, stderr=out) as p:
        try:
            yield p
        finally:
            p.kill()


@contextmanager
def own_redis(settings: Settings, folder: Path) -> Iterator[tuple[Settings, Part]]:
    """Settings with a broker that may be mistreated."""
    part, url = start_redis(folder=folder, log_path=folder / "redis.log", env=os.environ)
    try:
        yield settings.model_copy(update={"redis_url": SecretStr(url)}), part
    finally:
        part.kill()


def registered(db: Database) -> list[Worker]:
    with db.read() as session:
        return list(workers.list(session))


def test_celery_is_set_up_as_a_doorbell(settings: Settings) -> None:
    conf = create_app(settings).conf
    wanted = {
        "task_acks_late": False,
        "worker_disable_prefetch": True,
        "worker_prefetch_multiplier": 1,
        "task_ignore_result": True,
        "task_serializer": "json",
        "accept_content": ["json"],
        "worker_pool": "threads",
        "worker_concurrency": 1,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "broker_connection_retry_on_startup": True,
        "worker_hijack_root_logger": False,
        "task_time_limit": None,
        "result_backend": None,
    }
    assert {name: conf[name] for name in wanted} == wanted


def test_a_worker_answers_the_doorbell_and_leaves_on_sigterm(
    settings: Settings, context: WorkerContext, db: Database, make_job: MakeJob, get_job: GetJob, tmp_path: Path
) -> None:
    job_id = make_job(model="unheard-of")
    log = tmp_path / "worker.log"
    with process("worker", settings, log) as worker:
        wait_for(lambda: get_job(job_id).state == "failed", "the job's end (rung by the worker's own reconciler)")
        second = make_job(model="unheard-of")
        assert context.doorbell.ring(Bell(second))
        wait_for(lambda: get_job(second).state == "failed", "the second job's end")
        assert [row.pid for row in registered(db)] == [worker.pid]
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 0, log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_frozen_broker_does_not_keep_it_from_leaving(
    settings: Settings, db: Database, make_job: MakeJob, get_job: GetJob, tmp_path: Path
) -> None:
    job_id = make_job(model="unheard-of")
    with (
        own_redis(settings, tmp_path) as (own, redis),
        process("worker", own, tmp_path / "worker.log") as worker,
    ):
        wait_for(lambda: get_job(job_id).state == "failed", "the job's end")
        psutil.Process(redis.pid).suspend()
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_without_a_broker_jobs_run_nevertheless(
    settings: Settings, make_job: MakeJob, get_job: GetJob, tmp_path: Path
) -> None:
    job_id = make_job()
    nowhere = settings.model_copy(update={"redis_url": SecretStr("redis://127.0.0.1:1/0")})
    with process("worker", nowhere, tmp_path / "worker.log", trainer="normal") as worker:
        wait_for(lambda: get_job(job_id).state == "succeeded", "the job's end")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_broker_that_was_killed_is_heard_again_once_it_is_back(
    settings: Settings, db: Database, make_job: MakeJob, get_job: GetJob, tmp_path: Path
) -> None:
    """The standby does not look in this test: only a doorbell can wake the worker."""
    first = make_job(model="unheard-of")
    (tmp_path / "again").mkdir()
    with own_redis(settings, tmp_path) as (own, redis):
        own = own.model_copy(update={"reconcile_s": 600})
        with process("worker", own, tmp_path / "worker.log") as worker:
            wait_for(lambda: get_job(first).state == "failed", "the first job's end")
            redis.kill()
            assert redis.wait(10)
            config = redis_config(own.redis_url.get_secret_value(), tmp_path / "again")
            again = Part(
                "redis", [find_binary(), "-"], env=os.environ, cwd=tmp_path, log_path=tmp_path / "2.log", stdin=config
            )
            try:
                second = make_job(model="unheard-of")
                doorbell = Doorbell(own.redis_url.get_secret_value())
                wait_for(lambda: doorbell.ring(Bell(second)), "the ring")
                doorbell.close()
                wait_for(lambda: get_job(second).state == "failed", "the second job's end")
                worker.send_signal(signal.SIGTERM)
                assert worker.wait(30) == 0
            finally:
                again.kill()


def redis_config(url: str, folder: Path) -> bytes:
    """What starts a Redis at the place another one had."""
    found = urlsplit(url)
    return f'bind 127.0.0.1\nport {found.port}\nrequirepass {found.password}\nsave ""\ndir "{folder}"\n'.encode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_signals_drain_however_many_there_are(
    settings: Settings,
    db: Database,
    make_job: MakeJob,
    get_job: GetJob,
    recipe_of: RecipeOf,
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    job_id = make_job(recipe=recipe_of(100_000))
    patient = settings.model_copy(update={"stop_grace_s": 60})
    with process("worker", patient, tmp_path / "worker.log", trainer="slow-save") as worker:
        wait_for(lambda: get_job(job_id).last_step > 2, "a step")
        trainers = psutil.Process(worker.pid).children(recursive=True)
        worker.send_signal(number)
        wait_for(lambda: "stopping trainer" in (tmp_path / "worker.log").read_text(), "the drain")
        worker.send_signal(number)
        assert worker.wait(40) == 0, (tmp_path / "worker.log").read_text()
    job = get_job(job_id)
    assert (job.state, job.attempts_left, job.resume_checkpoint_id is not None) == ("queued", 3, True)
    assert psutil.wait_procs(trainers, timeout=10)[1] == []
    assert get_job(job_id).epoch == 1


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_told_to_stop_while_it_starts_a_worker_leaves_nothing_behind(
    settings: Settings, db: Database, make_job: MakeJob, get_job: GetJob, recipe_of: RecipeOf, tmp_path: Path
) -> None:
    """Its standby claims a job long before Celery has its signal handlers; none here, for want of a broker."""
    job_id = make_job(recipe=recipe_of(100_000))
    nowhere = settings.model_copy(update={"redis_url": SecretStr("redis://127.0.0.1:1/0")})
    with process("worker", nowhere, tmp_path / "worker.log", trainer="loading") as worker:
        wait_for(lambda: get_job(job_id).epoch == 1, "the claim")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
    assert (get_job(job_id).state, get_job(job_id).attempts_left) == ("queued", 3)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_ten_doorbells_for_one_job_run_it_once(
    settings: Settings, context: WorkerContext, db: Database, make_job: MakeJob, get_job: GetJob, tmp_path: Path
) -> None:
    with process("worker", settings, tmp_path / "worker.log", trainer="normal") as worker:
        wait_for(lambda: registered(db) != [], "the worker")
        job_id, last = make_job(), make_job(model="unheard-of", priority=-1)
        for _ in range(10):
            assert context.doorbell.ring(Bell(job_id))
        wait_for(lambda: get_job(job_id).state == "succeeded", "the job's end")
        wait_for(lambda: get_job(last).state == "failed", "the next one's end")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
    assert (get_job(job_id).epoch, get_job(last).epoch) == (1, 1)
    assert "Traceback" not in (tmp_path / "worker.log").read_text()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_an_unfit_worker_takes_nothing_until_it_is_fit_again(
    settings: Settings, db: Database, make_job: MakeJob, get_job: GetJob, tmp_path: Path
) -> None:
    job_id = make_job(model="unheard-of")
    (settings.model_root / "tiny").rename(tmp_path / "away")
    with process("worker", settings, tmp_path / "worker.log") as worker:
        wait_for(lambda: [row.state for row in registered(db)] == ["unfit"], "the report")
        assert "no base model" in str(registered(db)[0].problem)
        assert get_job(job_id).state == "queued"
        (tmp_path / "away").rename(settings.model_root / "tiny")
        wait_for(lambda: get_job(job_id).state == "failed", "the job's end")
        wait_for(lambda: [row.state for row in registered(db)] == ["idle"], "the report")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
    log = (tmp_path / "worker.log").read_text()
    assert log.count("worker takes no jobs") == 1
    assert log.count("worker is fit again") == 1


def test_the_reconciler_alone_rings_and_reaps(
    settings: Settings, db: Database, make_job: MakeJob, get_job: GetJob, tmp_path: Path
) -> None:
    waiting, lost = make_job(), make_job()
    with db.transaction() as session:
        assert jobs.claim(session, lost, "a worker that died", 0.1) is not None
    with process("worker.reconciler", settings, tmp_path / "reconciler.log") as reconciler:
        wait_for(lambda: get_job(waiting).rung_at is not None, "the ring")
        wait_for(lambda: get_job(lost).state == "queued", "the reaping")
        assert get_job(lost).attempts_left == 2
        reconciler.send_signal(signal.SIGTERM)
        assert reconciler.wait(20) == 0


def test_a_broker_that_is_down_is_rung_again_later(
    settings: Settings, make_job: MakeJob, get_job: GetJob, context: WorkerContext
) -> None:
    job_id = make_job()
    nowhere = SecretStr("redis://127.0.0.1:1/0")
    without = WorkerContext.create(settings.model_copy(update={"redis_url": nowhere}))
    reconcile(without)
    assert get_job(job_id).rung_at is None
    without.close()
    reconcile(context)
    assert get_job(job_id).rung_at is not None


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_worker_never_loads_torch(database_url: str) -> None:
    code = "import sys, worker.__main__, worker.supervisor; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
