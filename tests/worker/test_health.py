"""The worker's health check, as a container runs it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
import sqlalchemy as sa

from jobs.db import Database, now
from jobs.repositories import workers
from jobs.resources import Slot
from jobs.tables import Worker


def check(database_url: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "worker.health"]
    env = os.environ | {"BGPO_DATABASE_URL": database_url}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)


def beat(database: Database, host: str, *, seconds_ago: float = 0) -> None:
    with database.transaction() as session:
        workers.beat(session, Slot("worker-1", host), pid=1, device="cpu", version="0")
        session.execute(sa.update(Worker).values(last_seen=now() - seconds_ago))


def test_a_worker_in_touch_is_healthy(db: Database, database_url: str) -> None:
    beat(db, socket.gethostname())
    result = check(database_url)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("how", ["never", "elsewhere", "long ago"])
def test_silence_is_not_healthy(db: Database, database_url: str, how: str) -> None:
    if how == "elsewhere":
        beat(db, "another-host")
    elif how == "long ago":
        beat(db, socket.gethostname(), seconds_ago=60)
    result = check(database_url)
    assert result.returncode == 1
    assert "no worker of" in result.stderr


def test_an_unreachable_database_is_not_healthy() -> None:
    result = check("postgresql+psycopg://bgpo@127.0.0.1:1/bgpo")
    assert result.returncode == 1
    assert "the database does not answer" in result.stderr
