"""Readiness through real outages: it names the part that is away and recovers by itself; liveness is never in doubt."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from cli.redis_server import start_redis
from jobs.db import create_engine
from tests.running import wait_until

OK = {"database": "ok", "broker": "ok", "artifacts": "ok"}


def checks(service: Any) -> dict[str, str]:
    """What /readyz says; the status must agree with it, and the process be alive whatever it says."""
    with service.http() as http:
        assert http.get("/healthz").status_code == 200
        response = http.get("/readyz")
    found: dict[str, str] = response.json()["checks"]
    ready = found == OK
    assert (response.status_code, response.json()["status"]) == ((200, "ok") if ready else (503, "unavailable"))
    return found


def test_redis_stops(start_service: Callable[..., Any], tmp_path: Path) -> None:
    part, url = start_redis(folder=tmp_path, log_path=tmp_path / "redis.log", env=os.environ)
    try:
        service = start_service(redis_url=url)
        assert checks(service) == OK
    finally:
        part.kill()
    assert checks(service) == OK | {"broker": "failed"}
    with service.http() as http:  # jobs are taken all the same: workers look for themselves
        assert http.get("/v1/fine_tuning/jobs").status_code == 200


def test_the_store_cannot_be_written(start_service: Callable[..., Any], redis_url: str) -> None:
    service = start_service(redis_url=redis_url)
    folder = service.ctx.settings.home / "artifacts"
    assert checks(service) == OK
    away = folder.rename(folder.with_name("away"))
    folder.write_bytes(b"not a folder")
    assert checks(service) == OK | {"artifacts": "failed"}
    folder.unlink()
    away.rename(folder)
    assert checks(service) == OK


def test_the_database_goes_away(
    start_service: Callable[..., Any], redis_url: str, new_postgres_database: Callable[[], str], postgres_server: sa.URL
) -> None:
    url = sa.make_url(new_postgres_database())
    service = start_service(redis_url=redis_url, database_url=url.render_as_string(hide_password=False))
    assert checks(service) == OK
    admin = create_engine(postgres_server.render_as_string(hide_password=False))
    with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"ALTER DATABASE {url.database} ALLOW_CONNECTIONS false")
        end = sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name")
        connection.execute(end, {"name": url.database})
        assert checks(service) == OK | {"database": "failed"}
        with service.http() as http:
            response = http.get("/v1/fine_tuning/jobs")
        assert response.status_code in (500, 503)
        assert str(url.database) not in response.text
        connection.exec_driver_sql(f"ALTER DATABASE {url.database} ALLOW_CONNECTIONS true")
    admin.dispose()
    wait_until(lambda: checks(service) == OK, seconds=30)
