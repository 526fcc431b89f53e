"""Migrations against tables, transactions, the clock, and the small parts that stand beside the tables."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic import ValidationError

from jobs.db import Database, create_engine, now
from jobs.doorbell import RUN_JOB, Doorbell
from jobs.ids import EVENT, FILE, JOB, is_id, new_id
from jobs.repositories import job_rows, workers
from jobs.repositories.schema import is_current
from jobs.resources import Bell, Slot
from jobs.services.messages import checkpoint_metrics, metrics_event
from jobs.settings import Settings
from jobs.tables import SCHEMA, Base, Job, Worker
from migrations import config, upgrade


def test_migrations_make_exactly_the_tables(db: Database) -> None:
    with db.read() as session:
        assert is_current(session)
    assert ScriptDirectory.from_config(config()).get_current_head() == SCHEMA
    with db.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_upgrading_again_and_at_once_is_fine(database_url: str) -> None:
    failures: list[Exception] = []

    def run() -> None:
        try:
            upgrade(database_url)
        except sa.exc.SQLAlchemyError as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


def test_several_services_may_make_a_new_database_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new' / 'bgpo.db'}"
    threads = [threading.Thread(target=upgrade, args=(url,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    database = Database(url)
    with database.read() as session:
        assert is_current(session)
    database.dispose()


def test_many_may_open_a_new_file_at_once(tmp_path: Path) -> None:
    """Without patience of ours one round in twenty fails."""
    for number in range(100):
        engines = [create_engine(f"sqlite:///{tmp_path / f'{number}.db'}") for _ in range(8)]
        barrier = threading.Barrier(len(engines))

        def connect(engine: sa.Engine, barrier: threading.Barrier = barrier) -> str:
            barrier.wait()
            with engine.connect() as connection:
                mode: str = connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()
            engine.dispose()
            return mode

        with ThreadPoolExecutor(len(engines)) as threads:
            assert set(threads.map(connect, engines)) == {"wal"}


def test_a_database_without_schema_is_not_current(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'bgpo.db'}")
    with database.read() as session:
        assert not is_current(session)
    database.dispose()


def test_the_clock_is_unix_time(db: Database) -> None:
    with db.read() as session:
        assert abs(session.scalars(sa.select(now())).one() - time.time()) < 2


def test_a_transaction_commits_or_does_not(db: Database, make_job: Callable[..., str]) -> None:
    job_id = make_job()

    def break_off() -> None:
        with db.transaction() as session:
            session.execute(sa.update(Job).values(phase="x"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        break_off()
    with db.read() as session:
        session.execute(sa.update(Job).values(phase="y"))
    with db.read() as session:
        assert session.get_one(Job, job_id).phase is None


def test_jobs_made_at_the_same_time_have_an_order(db: Database, make_job: Callable[..., str]) -> None:
    made = [make_job() for _ in range(20)]
    with db.transaction() as session:
        session.execute(sa.update(Job).values(created_at=1.5))
    seen: list[str] = []
    with db.read() as session:
        last = None
        while page := job_rows.page(session, "proj_default", after=last, limit=3):
            seen += [job.id for job in page]
            last = page[-1]
        assert job_rows.page(session, "proj_other", after=None, limit=3) == []
        assert job_rows.get(session, "proj_other", made[0]) is None
    assert seen == made[::-1]


def test_workers_are_known_while_they_beat(db: Database) -> None:
    for worker_id in ("a", "a", "b"):
        with db.transaction() as session:
            workers.beat(session, Slot(worker_id), pid=1, device="cpu", version="1")
    with db.transaction() as session:
        session.execute(sa.update(Worker).where(Worker.id == "a").values(last_seen=now() - 100))
        assert workers.forget(session, unseen_for_s=50) == 1
        assert list(session.scalars(sa.select(Worker.id))) == ["b"]


@pytest.mark.parametrize("url", ["mysql://x/y", "sqlite://", "sqlite:///:memory:"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="database_url must be"):
        create_engine(url)


def test_ids() -> None:
    made = [new_id(JOB) for _ in range(1000)]
    assert made == sorted(set(made))
    assert all(is_id(JOB, job_id) for job_id in made)
    for wrong in ("", JOB, made[0] + "0", made[0].upper(), made[0][:-1] + "\n", new_id(FILE), new_id(EVENT)):
        assert not is_id(JOB, wrong)


class TestSettings:
    def test_everything_derives_from_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("BGPO_HOME", str(tmp_path))
        settings = Settings()
        assert settings.database_url == f"sqlite:///{tmp_path}/bgpo.db"
        assert settings.artifacts_url == f"file://{tmp_path}/artifacts"
        assert settings.loopback_only

    def test_secrets_do_not_show(self) -> None:
        settings = Settings(api_key="sk-secret", redis_url="redis://:sk-secret@h/0")
        assert "sk-secret" not in repr(settings)

    def test_leases_must_outlive_the_self_fence(self) -> None:
        with pytest.raises(ValidationError, match="self_fence_s"):
            Settings(lease_s=10)


def test_the_doorbell_reaches_the_broker(redis_url: str) -> None:
    import redis

    doorbell = Doorbell(redis_url)
    doorbell.check()
    broker = redis.Redis.from_url(redis_url)
    before = broker.llen("bgpo.any.1")
    assert doorbell.ring(Bell("ftjob-1"))
    assert broker.llen("bgpo.any.1") == before + 1
    message = json.loads(broker.lpop("bgpo.any.1"))
    assert message["headers"]["task"] == RUN_JOB
    assert json.loads(base64.b64decode(message["body"]))[0] == ["ftjob-1"]
    broker.close()
    doorbell.close()


def test_a_broker_that_is_away_is_no_error() -> None:
    doorbell = Doorbell("redis://127.0.0.1:1/0")
    began = time.monotonic()
    assert not doorbell.ring(Bell("ftjob-1"))
    assert time.monotonic() - began < 10
    with pytest.raises(ConnectionError):
        doorbell.check()
    doorbell.close()


class TestMessages:
    def test_training_step(self) -> None:
        values = {"reward_mean": 0.421, "solved_rate": 0.2, "loss": -3.0, "seconds_step": 1.5, "cell_accuracy": 0.7}
        message, data = metrics_event(10, 20, "train", values, {"name": "g", "type": "sudoku", "input": "x"})
        assert message == "Step 10/20 , train mean reward=0.42, train solved rate=0.20"
        assert (data["step"], data["total_steps"], data["train_mean_reward"]) == (10, 20, 0.421)
        assert data["scores"]["graders"] == [{"name": "g", "type": "sudoku", "train_reward_mean": 0.421}]
        assert data["timing"]["step"] == {"full_iteration": 1.5}
        assert data["train"] == values
        assert not data.get("error")

    def test_validation_and_supervised_steps(self) -> None:
        message, data = metrics_event(0, 20, "validation", {"sampled_reward_mean": 0.68})
        assert (message, data["full_valid_mean_reward"]) == ("Step 0/20 , full validation mean reward=0.68", 0.68)
        assert metrics_event(3, 9, "train", {"loss": 2.5})[0] == "Step 3/9 , train loss=2.50"
        assert metrics_event(3, 9, "train", {})[0] == "Step 3/9"

    def test_checkpoint(self) -> None:
        assert checkpoint_metrics(5, {"sampled_reward_mean": 0.5, "greedy_solved_rate": 1.0}) == {
            "step": 5, "valid_reward_mean": 0.5, "sampled_reward_mean": 0.5, "greedy_solved_rate": 1.0,
        }  # fmt: skip
