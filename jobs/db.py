"""Engine, transactions and the database clock, the same for SQLite and PostgreSQL.

`Database.transaction()` is the only place that commits. On SQLite it takes the write lock at once (BEGIN IMMEDIATE): a
deferred transaction that upgrades later can fail without waiting. Time is always the database's, so that leases do not
depend on the clocks of the machines that hold them.

Nothing here waits for ever. A worker that hears nothing from the database must know it well before its lease ends, and
an API thread must not be lost to a server that is frozen or gone: a statement without an answer fails after
`ANSWER_S`, on either side. What was committed stays: PostgreSQL as its administrator has set it up (`fsync` and
`synchronous_commit` are on by default), SQLite by an fsync in each commit, which WAL mode leaves out by default and
which a job that a client was told of needs to outlive a power cut.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import sqlalchemy as sa
from psycopg.abc import PQGen
from psycopg.pq import TransactionStatus
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

ANSWER_S = 15
"""Longest wait for the answer to a statement, locks included. A worker renews its lease each 15 s and must have done so
after 45 s: this leaves time for one renewal that fails, a new connection and another renewal."""
_CONNECT_S = 5
_WAL_PAUSE_S = 0.01
_POOL = {"pool_size": 10, "max_overflow": 20, "pool_timeout": ANSWER_S}
# Notice a peer that went away without a word: by probes when nothing is sent, by a limit when data is not acknowledged.
_TCP = {"keepalives_idle": 10, "keepalives_interval": 3, "keepalives_count": 3, "tcp_user_timeout": ANSWER_S * 1000}
# The server's own limits, so that a client it no longer hears of keeps no locks.
_SERVER_LIMITS = f"-c statement_timeout={ANSWER_S * 1000} -c idle_in_transaction_session_timeout={2 * ANSWER_S * 1000}"
_RV = TypeVar("_RV")


class now(FunctionElement[float]):
    """Unix seconds (UTC) on the database's clock, at the statement and not at the start of the transaction."""

    type = sa.Double()
    inherit_cache = True


@compiles(now, "sqlite")
def _now_sqlite(element: now, compiler: SQLCompiler, **kw: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _now_postgresql(element: now, compiler: SQLCompiler, **kw: Any) -> str:
    return "(extract(epoch from clock_timestamp())::double precision)"


class _Connection(psycopg.Connection[Any]):
    """Fails when the server does not answer, for which libpq would wait for ever as long as the connection stands."""

    def wait(self, gen: PQGen[_RV], interval: float = 0.1, timeout: float | None = None) -> _RV:
        try:
            return super().wait(gen, interval, ANSWER_S if timeout is None else timeout)
        except psycopg.OperationalError:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                self.pgconn.finish()  # else a late answer would be taken for that of the next statement
            raise


def create_engine(url: str, *, limits: bool = False) -> sa.Engine:
    """An engine for `url`; `postgresql://` means psycopg 3. The folder of a SQLite file is made.

    Args:
        limits: give up on a statement after `ANSWER_S`. Migrations may take longer.
    """
    parsed = sa.make_url(url)
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() == "postgresql":
        engine = sa.create_engine(parsed, pool_pre_ping=True, **_POOL)
        sa.event.listen(engine, "do_connect", _connect_limited if limits else _connect)
        return engine
    if parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database == ":memory:":
        raise ValueError(f"database_url must be postgresql:// or a sqlite:/// file, got {parsed.render_as_string()}")
    Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(parsed, **_POOL)
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _connect(dialect: Any, record: Any, arguments: list[Any], options: dict[str, Any]) -> None:
    """Add our options to what the URL says, which goes first."""
    for name, value in ({"connect_timeout": _CONNECT_S} | _TCP).items():
        options.setdefault(name, value)


def _connect_limited(dialect: Any, record: Any, arguments: list[Any], options: dict[str, Any]) -> _Connection:
    _connect(dialect, record, arguments, options)
    options["options"] = f"{_SERVER_LIMITS} {options.get('options', '')}".strip()
    return _Connection.connect(*arguments, **options)


def _prepare_sqlite(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin transactions of its own
    cursor = connection.cursor()
    for pragma in (f"busy_timeout={ANSWER_S * 1000}", "foreign_keys=ON", "synchronous=FULL"):
        cursor.execute(f"PRAGMA {pragma}")
    _use_wal(cursor)
    cursor.close()


def _use_wal(cursor: sqlite3.Cursor) -> None:
    """Of several who open a new file at once, SQLite refuses all but one at once, whatever the busy timeout."""
    deadline = time.monotonic() + ANSWER_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(_WAL_PAUSE_S)


def _begin_sqlite(connection: sa.Connection) -> None:
    write = connection.get_execution_options().get("bgpo_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


class Database:
    """Hands out sessions; one per process."""

    def __init__(self, url: str) -> None:
        self.engine = create_engine(url, limits=True)
        self.driver_error: type[Exception] = self.engine.dialect.loaded_dbapi.Error
        """What `driver_connection` raises."""
        self._write = self.engine.execution_options(bgpo_write=True)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session that commits at the end of the block, or rolls back when it raises."""
        with Session(self._write, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that is never committed. Objects stay readable after the block."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    def driver_connection(self) -> Any:
        """A connection of the driver's own kind (sqlite3, psycopg) outside the pool, each statement a transaction.

        For reads repeated so often that SQLAlchemy's part in them counts. Whoever asks for it closes it.
        """
        pooled = self.engine.raw_connection()
        pooled.detach()
        connection: Any = pooled.dbapi_connection
        if self.engine.dialect.name == "postgresql":
            connection.autocommit = True
        return connection

    def dispose(self) -> None:
        """Close all connections."""
        self.engine.dispose()
