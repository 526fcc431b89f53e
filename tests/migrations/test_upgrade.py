"""Upgrading from the first released schema with data in it, and what goes wrong on the way."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from jobs.db import Database, create_engine
from jobs.repositories.schema import is_current
from jobs.tables import DEFAULT_PROJECT, SCHEMA, Base, Delivery, Job, JudgeUsage, WebhookEndpoint
from jobs.tenant_tables import AdminKey, ApiKey, Organization, Project
from migrations import MigrationError, upgrade
from tests.migrations.first_release import STATES, FirstRelease, job_id, read

MakeFirstRelease = Callable[[str], FirstRelease]
ENDED = ("succeeded", "failed", "cancelled")
ADDED = {
    "jobs": {
        "request": None,
        "source_job_id": None,
        "webhook_url": None,
        "priority": 0,
        "gpus": 1,
        "gpu_type": None,
        "max_runtime_s": None,
        "error_phase": None,
        "error_step": None,
        "error_log": None,
        "pause_code": None,
        "pause_message": None,
        "base_model": None,
        "start_checkpoint_id": None,
        "lineage": None,
        "tuned_model_deleted_at": None,
        "revision": 0,
        "deleted_at": None,
        "result_files": None,
        "budget": None,
        "kind": "train",
    },
    "files": {"expires_at": None, "problem": None, "job_id": None},
    "job_attempts": {
        "host": None,
        "devices": None,
        "pid": None,
        "resumed_step": None,
        "error_code": None,
        "error_message": None,
        "error_phase": None,
        "error_step": None,
    },
    "checkpoints": {"best": False, "pinned": False, "damaged": False},
    "workers": {"gpu_type": "cpu", "gpus": 1, "devices": None, "state": "idle", "job_id": None, "problem": None},
}


def schema_of(url: str) -> str:
    engine = create_engine(url)
    with engine.connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    engine.dispose()
    return str(found)


def test_every_row_comes_through(old: FirstRelease) -> None:
    before = read(old.url)
    assert {name: len(rows) for name, rows in before.items()} == {name: len(rows) for name, rows in old.rows.items()}
    upgrade(old.url)
    after = read(old.url)
    for name, rows in before.items():
        added = ADDED.get(name, {})
        assert len(after[name]) == len(rows)
        for row, now in zip(rows, after[name], strict=True):
            extra = {"queued_at": row["created_at"]} if name == "jobs" else {}
            assert now == row | added | extra
    database = Database(old.url)
    with database.read() as session:
        assert is_current(session)
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    database.dispose()


def test_judge_tokens_of_old_metrics_are_usage(old: FirstRelease) -> None:
    names = {"judge_tokens/a/b/prompt": 7.0, "judge_tokens/c/completion": 2.0, "loss": 9.0}
    names |= {"sampled_judge_tokens/c/prompt": 30.0, "grader_tokens/g/prompt": 7.0}
    engine = create_engine(old.url)
    with engine.begin() as connection:
        for step in (901, 902):
            for name, value in names.items():
                row = {"job_id": job_id("queued"), "step": step, "split": "train", "name": name, "value": value}
                statement = "INSERT INTO job_metrics (job_id, step, split, name, value, epoch, created_at)"
                values = "VALUES (:job_id, :step, :split, :name, :value, 1, 50)"
                connection.execute(sa.text(f"{statement} {values}"), row)
    engine.dispose()
    upgrade(old.url)
    database = Database(old.url)
    with database.read() as session:
        rows = session.scalars(sa.select(JudgeUsage).order_by(JudgeUsage.id)).all()
        first = (f"{job_id('queued')}.1.901.train", job_id("queued"), 50.0)
        assert [(row.prompt_tokens, row.completion_tokens) for row in rows] == [(37, 2)] * 2
        assert (rows[0].id, rows[0].job_id, rows[0].created_at) == first
    database.dispose()


def test_ended_jobs_are_still_frozen_and_others_are_not(old: FirstRelease) -> None:
    upgrade(old.url)
    database = Database(old.url)
    frozen = {"state": "queued", "error_code": "x", "error_phase": "x", "error_step": 9, "error_log": "x"}
    for state in STATES:
        for column, value in frozen.items():
            change = sa.update(Job).where(Job.id == job_id(state)).values(**{column: value})
            if state in ENDED:
                with (
                    pytest.raises(sa.exc.DBAPIError, match="a finished job never changes"),
                    database.transaction() as s,
                ):
                    s.execute(change)
            else:
                with database.transaction() as session:
                    session.execute(change)
                    session.rollback()
        with database.transaction() as session:  # what retention does to an ended job
            session.execute(sa.update(Job).where(Job.id == job_id(state)).values(resume_checkpoint_id=None))
    database.dispose()


def test_two_upgrades_at_once(old: FirstRelease) -> None:
    command = [sys.executable, "-c", f"from migrations import upgrade; upgrade({old.url!r})"]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    assert [(process.communicate()[1], process.returncode) for process in running] == [(b"", 0)] * 3
    assert schema_of(old.url) == SCHEMA


DIES = """
import os, signal
from alembic import op
import migrations
create = op.create_table
def die(name, *columns):
    create(name, *columns)
    os.kill(os.getpid(), signal.SIGKILL)
op.create_table = die
migrations.upgrade({url!r})
"""


def test_a_killed_upgrade_changes_nothing(old: FirstRelease) -> None:
    before = read(old.url)
    killed = subprocess.run([sys.executable, "-c", DIES.format(url=old.url)], capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr.decode()
    assert schema_of(old.url) == "0001"
    assert read(old.url) == before
    upgrade(old.url)
    assert schema_of(old.url) == SCHEMA


def test_a_table_in_use_is_not_waited_for_long(postgresql_url: str, make_first_release: MakeFirstRelease) -> None:
    old = make_first_release(postgresql_url)
    engine = create_engine(old.url)
    with engine.connect() as reader:
        reader.execute(sa.text("SELECT count(*) FROM jobs"))  # a transaction that stays open, as of a backup
        with pytest.raises(MigrationError, match="Nothing has changed"):
            upgrade(old.url, wait_for_table_s=0.2)
        reader.rollback()
        assert schema_of(old.url) == "0001"
        reader.execute(sa.text("SELECT count(*) FROM jobs"))  # the table is not blocked by what gave up
    upgrade(old.url)
    assert schema_of(old.url) == SCHEMA
    engine.dispose()


def test_another_upgrade_is_waited_for(postgresql_url: str, make_first_release: MakeFirstRelease) -> None:
    old = make_first_release(postgresql_url)
    engine = create_engine(old.url)
    with engine.connect() as other:
        other.execute(sa.text("SELECT pg_advisory_lock(:key)"), {"key": 0x6267706F})
        with pytest.raises(MigrationError, match="another upgrade"):
            upgrade(old.url, wait_for_upgrade_s=0.2)
        waiting = threading.Thread(target=upgrade, args=(old.url,))
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
        other.execute(sa.text("SELECT pg_advisory_unlock(:key)"), {"key": 0x6267706F})
        other.commit()
        waiting.join(60)
    assert schema_of(old.url) == SCHEMA
    engine.dispose()


def test_a_busy_sqlite_file_is_not_waited_for_long(tmp_path: Path, make_first_release: MakeFirstRelease) -> None:
    old = make_first_release(f"sqlite:///{tmp_path / 'bgpo.db'}")
    engine = create_engine(old.url)
    with engine.execution_options(bgpo_write=True).connect() as writer:
        writer.execute(sa.text("UPDATE workers SET pid = 1"))
        with pytest.raises(MigrationError, match="Nothing has changed"):
            upgrade(old.url, wait_for_upgrade_s=0.2)
    engine.dispose()
    upgrade(old.url)
    assert schema_of(old.url) == SCHEMA


def test_a_newer_database_is_refused(old: FirstRelease) -> None:
    engine = create_engine(old.url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(MigrationError, match="schema 9999, which this version does not know"):
        upgrade(old.url)
    ran = subprocess.run(
        [sys.executable, "-m", "migrations"],
        env={"BGPO_DATABASE_URL": old.url, "PATH": "/usr/bin", "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert ran.stderr.startswith("The database has schema 9999")
    assert "Traceback" not in ran.stderr


def test_rows_of_the_second_schema_come_through(old: FirstRelease) -> None:
    upgrade(old.url, "0002")
    delivery = {
        "id": "evt_1",
        "project_id": "proj_default",
        "job_id": job_id("succeeded"),
        "type": "fine_tuning.job.succeeded",
        "url": "https://example.com",
        "created_at": 1.5,
        "state": "dead",
        "attempts": 3,
        "next_at": 2.5,
        "last_status": 500,
        "last_error": "ü",
        "delivered_at": None,
    }
    engine = create_engine(old.url)
    deliveries = sa.Table("webhook_deliveries", sa.MetaData(), autoload_with=engine)
    with engine.execution_options(bgpo_write=True).begin() as connection:
        connection.execute(sa.insert(deliveries), delivery)
    before = read(old.url)
    upgrade(old.url)
    for name, now in read(old.url).items():  # the old columns: new ones have tests of their own
        assert [{key: row[key] for key in was} for row, was in zip(now, before[name], strict=True)] == before[name]
    metadata = sa.MetaData()
    with engine.connect() as connection:
        assert dict(connection.execute(sa.select(deliveries)).mappings().one()) == delivery
        metadata.reflect(connection)
        for name in ("secrets", "graders", "grader_versions"):
            assert connection.execute(sa.select(metadata.tables[name])).all() == []
    engine.dispose()
    assert schema_of(old.url) == SCHEMA


def test_what_there_was_belongs_to_the_first_project(old: FirstRelease) -> None:
    """Without any key set nothing changes for its user: the default project, and limits nobody set."""
    upgrade(old.url)
    database = Database(old.url)
    with database.read() as session:
        (organization,) = session.scalars(sa.select(Organization))
        (project,) = session.scalars(sa.select(Project))
        assert (project.id, project.organization_id) == (DEFAULT_PROJECT, organization.id)
        assert (project.archived_at, project.limits) == (None, {})
        assert set(session.scalars(sa.select(Job.project_id))) == {DEFAULT_PROJECT}
        assert session.scalars(sa.select(ApiKey)).all() == session.scalars(sa.select(AdminKey)).all() == []
    database.dispose()


def test_deliveries_of_jobs_stay_one_of_each_type_and_those_of_endpoints_come_beside_them(old: FirstRelease) -> None:
    upgrade(old.url, "0007")
    engine = create_engine(old.url)
    of_job = {
        "id": "evt_1",
        "project_id": DEFAULT_PROJECT,
        "job_id": job_id("failed"),
        "type": "fine_tuning.job.failed",
        "url": "https://example.com",
        "created_at": 1.5,
        "state": "pending",
        "attempts": 1,
        "next_at": 2.5,
        "last_status": None,
        "last_error": None,
        "delivered_at": None,
    }
    before = sa.Table("webhook_deliveries", sa.MetaData(), autoload_with=engine)
    with engine.execution_options(bgpo_write=True).begin() as connection:
        connection.execute(sa.insert(before), of_job)
    upgrade(old.url)
    endpoint = {name: name for name in ("id", "name", "url", "ciphertext", "key_id", "secret_hint")}
    endpoint |= {"project_id": DEFAULT_PROJECT, "created_at": 1.0, "updated_at": 1.0, "event_types": [], "active": True}
    to_endpoint = of_job | {"id": "evt_2", "endpoint_id": "id", "url": None}
    with engine.execution_options(bgpo_write=True).begin() as connection:
        assert connection.execute(sa.select(Delivery.__table__)).mappings().all() == [of_job | {"endpoint_id": None}]
        connection.execute(sa.insert(WebhookEndpoint).values(endpoint))
        connection.execute(sa.insert(Delivery).values(to_endpoint))
    for again in (of_job, to_endpoint, to_endpoint | {"endpoint_id": "of nobody"}):
        with pytest.raises(sa.exc.IntegrityError), engine.execution_options(bgpo_write=True).begin() as connection:
            connection.execute(sa.insert(Delivery).values(again | {"id": "evt_3"}))
    with engine.execution_options(bgpo_write=True).begin() as connection:
        connection.execute(sa.delete(WebhookEndpoint))
        assert connection.scalars(sa.select(Delivery.id)).all() == ["evt_1"]
    engine.dispose()
