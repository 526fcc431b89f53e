"""Databases that no migration has touched, the first release's, and the running API."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from jobs.artifacts import ArtifactStore
from jobs.db import create_engine
from tests.migrations import first_release
from tests.migrations.first_release import FirstRelease
from tests.service import service, start_service

__all__ = ["service", "start_service"]


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'db' / 'bgpo.db'}"
    else:
        yield from _new_postgresql(request.getfixturevalue("postgres_server"))


@pytest.fixture
def postgresql_url(postgres_server: sa.URL) -> Iterator[str]:
    """An empty PostgreSQL database."""
    yield from _new_postgresql(postgres_server)


def _new_postgresql(server: sa.URL) -> Iterator[str]:
    name = f"bgpo_empty_{uuid.uuid4().hex[:12]}"
    admin = create_engine(server.render_as_string(hide_password=False))
    with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
        yield server.set(database=name).render_as_string(hide_password=False)
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    admin.dispose()


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """Where the default settings of `home` put artifacts."""
    return ArtifactStore(f"file://{tmp_path / 'home' / 'artifacts'}")


@pytest.fixture
def make_first_release(store: ArtifactStore, tmp_path: Path) -> Callable[[str], FirstRelease]:
    """Fills an empty database as the first release would have."""
    return lambda url: first_release.make(url, store, tmp_path / "first")


@pytest.fixture
def old(make_first_release: Callable[[str], FirstRelease], empty_url: str) -> FirstRelease:
    """The first release's database, of each kind."""
    return make_first_release(empty_url)
