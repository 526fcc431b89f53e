"""Nothing waits for ever for a database, and what SQLite has committed is on the disk."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

import jobs.db
from jobs.db import ANSWER_S, Database, create_engine
from jobs.repositories.polls import Versions
from jobs.settings import Settings

PATIENCE_S = 1


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.db, "ANSWER_S", PATIENCE_S)


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """A server process that lives, holds its connection and does nothing."""
    if not psutil.pid_exists(pid) or "postgres" not in psutil.Process(pid).name():
        pytest.skip("the PostgreSQL server is not on this machine")
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def backend(session: Session) -> int:
    return int(session.scalars(sa.text("SELECT pg_backend_pid()")).one())


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.usefixtures("impatient")
class TestAFrozenServer:
    def test_a_statement_fails_and_the_next_one_has_another_connection(self, db: Database) -> None:
        with db.transaction() as session:
            first = backend(session)
            with frozen(first), pytest.raises(OperationalError, match="wait timeout"):
                session.scalar(sa.text("SELECT 1"))
            session.rollback()
        with db.read() as session:
            assert backend(session) != first

    def test_a_pooled_connection_is_not_handed_out(self, db: Database) -> None:
        with db.read() as session:
            first = backend(session)
        began = time.monotonic()
        with frozen(first), db.read() as session:
            assert backend(session) != first
        assert time.monotonic() - began >= PATIENCE_S  # it was asked

    def test_polls_find_nothing_and_then_connect_again(self, db: Database) -> None:
        versions = Versions(db)
        assert versions.read({"ftjob-0"}) == {}
        connection = versions._connection
        with frozen(connection.info.backend_pid):
            assert versions.read({"ftjob-0"}) == {}
        assert connection.closed
        versions.read({"ftjob-0"})
        assert versions._connection is not connection
        versions.close()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_the_server_has_limits_of_its_own(database_url: str, db: Database) -> None:
    names = ("statement_timeout", "idle_in_transaction_session_timeout")
    with db.read() as session:
        shown = [session.scalars(sa.text(f"SHOW {name}")).one() for name in names]
    assert shown == [f"{ANSWER_S}s", f"{2 * ANSWER_S}s"]
    engine = create_engine(database_url)  # as migrations do
    with engine.connect() as connection:
        assert [connection.execute(sa.text(f"SHOW {name}")).scalar_one() for name in names] == ["0", "0"]
    engine.dispose()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_options_of_the_url_come_last(database_url: str) -> None:
    url = sa.make_url(database_url).update_query_dict({"options": "-c statement_timeout=77s"})
    database = Database(url.render_as_string(hide_password=False))
    with database.read() as session:
        assert session.scalars(sa.text("SHOW statement_timeout")).one() == "77s"
    database.dispose()


def test_a_lease_survives_one_statement_without_an_answer() -> None:
    """A renewal is due after `beat_s`, fails, and one second later another one goes through."""
    settings = Settings()
    assert settings.beat_s + ANSWER_S + 1 + jobs.db._CONNECT_S < settings.self_fence_s


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_sqlite_syncs_each_commit(db: Database) -> None:
    with db.transaction() as session:
        assert session.scalars(sa.text("PRAGMA synchronous")).one() == 2  # FULL
        assert session.scalars(sa.text("PRAGMA journal_mode")).one() == "wal"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_readers_do_not_wait_for_a_writer(db: Database) -> None:
    read: list[str] = []

    def look() -> None:
        with db.read() as session:
            read.append(session.scalars(sa.text("SELECT version_num FROM alembic_version")).one())

    with db.transaction():
        reader = threading.Thread(target=look)
        reader.start()
        reader.join(10)
        assert len(read) == 1
