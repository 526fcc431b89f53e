"""The worker process: `python -m worker` against real Redis and databases. Its jobs fail before a trainer is needed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from pydantic import SecretStr

from cli.redis_server import start_redis
from jobs.db import Database
from jobs.repositories import jobs
from jobs.resources import Bell
from jobs.settings import Settings
from jobs.tables import Job, Worker
from worker.app import create_app
from worker.context import WorkerContext
from worker.reconciler import reconcile

MakeJob = Callable[..., str]
GetJob = Callable[[str], Job]


def wait_for(check: Callable[[], bool], what: str, timeout: float = 40) -> None:
    deadline = time.monotonic() + timeout
    while not check():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.05)


@contextmanager
def process(module: str, settings: Settings, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    names = ("home", "database_url", "model_root", "stop_grace_s", "beat_s", "self_fence_s", "lease_s", "reap_after_s")
    env = os.environ | {f"BGPO_{name.upper()}": str(getattr(settings, name)) for name in (*names, "reconcile_s")}
    env["BGPO_REDIS_URL"] = settings.redis_url.get_secret_value()
    with log.open("wb") as out, subprocess.Popen([sys.executable, "-m", module], env=env, stdout=out, stderr=out) as p:
        try:
            yield p
        finally:
            p.kill()


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
        with db.read() as session:
            assert [row.pid for row in session.query(Worker)] == [worker.pid]
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 0, log.read_text()
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_frozen_broker_does_not_keep_it_from_leaving(
    settings: Settings, db: Database, make_job: MakeJob, get_job: GetJob, tmp_path: Path
) -> None:
    part, url = start_redis(folder=tmp_path, log_path=tmp_path / "redis.log", env=os.environ)
    redis = psutil.Process(part.pid)
    own_broker = settings.model_copy(update={"redis_url": SecretStr(url)})
    job_id = make_job(model="unheard-of")
    try:
        with process("worker", own_broker, tmp_path / "worker.log") as worker:
            wait_for(lambda: get_job(job_id).state == "failed", "the job's end")
            redis.suspend()
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(30) == 0
    finally:
        part.kill()


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
