"""Schema migrations (alembic). `python -m migrations` brings the database of the settings to the newest schema.

An upgrade is one transaction on either database: it happens whole or not at all, whatever dies. One runs at a time; a
second one waits for it and then finds nothing to do. An upgrade that would have to wait long for a table gives up
instead, because everybody else would queue up behind it; it can be run again.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from jobs.db import create_engine

_LOCK = 0x6267706F  # "bgpo": one upgrade at a time, whoever starts it
_POSTGRESQL_BUSY = ("55P03", "40P01")  # lock_not_available, deadlock_detected


class MigrationError(RuntimeError):
    """The database could not be upgraded; it is as it was before."""


def config() -> Config:
    """The alembic configuration; there is no ini file."""
    settings = Config()
    settings.set_main_option("script_location", str(Path(__file__).parent))
    settings.set_main_option("path_separator", "os")
    return settings


def upgrade(
    database_url: str, revision: str = "head", *, wait_for_upgrade_s: float = 600, wait_for_table_s: float = 10
) -> None:
    """Upgrade under a lock, so that several services may start at once.

    Args:
        wait_for_upgrade_s: longest wait for another upgrade. On SQLite, for any writer.
        wait_for_table_s: longest wait for a table that others use, on PostgreSQL.

    Raises:
        MigrationError: a wait was too long, or the database is of a newer version than this code.
    """
    engine = create_engine(database_url)
    if engine.dialect.name == "sqlite":
        patience = f"PRAGMA busy_timeout={int(wait_for_upgrade_s * 1000)}"
        sa.event.listen(engine, "connect", lambda connection, _: connection.execute(patience))
    try:
        with engine.execution_options(bgpo_write=True).begin() as connection:
            if connection.dialect.name == "postgresql":
                _lock_postgresql(connection, wait_for_upgrade_s, wait_for_table_s)
            _refuse_newer(connection)
            settings = config()
            settings.attributes["connection"] = connection
            command.upgrade(settings, revision)
    except sa.exc.OperationalError as error:
        if not _is_busy(error):
            raise
        raise MigrationError(
            "The database was not upgraded: others kept it locked for too long. Nothing has changed. Wait for long "
            "queries, backups or another upgrade to end, or stop them, and run `python -m migrations` again. "
            f"({error.orig})"
        ) from error
    finally:
        engine.dispose()


def _lock_postgresql(connection: sa.Connection, wait_for_upgrade_s: float, wait_for_table_s: float) -> None:
    def limit(setting: str, seconds: float) -> None:
        connection.execute(sa.text(f"SET LOCAL {setting} = {int(seconds * 1000)}"))

    limit("statement_timeout", 0)  # whatever role and database say: a rewrite of a large table takes its time
    limit("idle_in_transaction_session_timeout", 0)
    limit("lock_timeout", wait_for_upgrade_s)
    connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    limit("lock_timeout", wait_for_table_s)


def _refuse_newer(connection: sa.Connection) -> None:
    known = {script.revision for script in ScriptDirectory.from_config(config()).walk_revisions()}
    unknown = set(MigrationContext.configure(connection).get_current_heads()) - known
    if unknown:
        raise MigrationError(
            f"The database has schema {', '.join(sorted(unknown))}, which this version does not know: a newer version "
            "has upgraded it. Run that version, or go back to a backup from before the upgrade. Nothing has changed."
        )


def _is_busy(error: sa.exc.OperationalError) -> bool:
    if getattr(error.orig, "sqlstate", None) in _POSTGRESQL_BUSY:
        return True
    return getattr(error.orig, "sqlite_errorname", "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
