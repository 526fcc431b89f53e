"""What a status poll reads: has this job changed since it was last shown? For many jobs in one statement.

Nearly every poll finds a job as the poll before it did, so a poll reads the columns that can change and no others. It
goes through the driver without SQLAlchemy in between, which costs five times what the statement itself does.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import sqlalchemy as sa

from jobs.db import Database
from jobs.tables import Job

Version = tuple[Any, ...]
"""A job's values in all columns but the frozen ones: equal versions, equal rows."""

FROZEN = frozenset(
    {
        "kind",
        "created_at",
        "idempotency_key",
        "request_hash",
        "model",
        "training_file",
        "validation_file",
        "suffix",
        "metadata",
    }
    | {"base_model", "start_checkpoint_id", "lineage"}
    | {"seed", "method", "recipe", "tuned_model", "total_steps", "request", "source_job_id", "max_attempts"}
    | {"deleted_at", "result_files", "budget"}
)
"""Columns nobody writes after the insert without counting up `revision`, or only together with the state
(`result_files`). A new column that is not named here is a part of the version by itself."""

_TABLE = sa.inspect(Job).local_table
_COLUMNS = [column.name for column in _TABLE.columns if column.name not in FROZEN]
_ID, _PROJECT, _STATE = (_COLUMNS.index(name) for name in ("id", "project_id", "state"))
_WHICH = {"sqlite": "IN (SELECT value FROM json_each(?))", "postgresql": "= ANY(%s)"}


class Versions:
    """Reads versions over a connection of its own, kept open between reads. For one thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Any = None
        self._cursor: Any = None
        kind = database.engine.dialect.name
        names = ", ".join(f'"{name}"' for name in _COLUMNS)
        self._statement = f"SELECT {names} FROM jobs WHERE id {_WHICH[kind]}"  # noqa: S608 - of constants only
        self._parameter = json.dumps if kind == "sqlite" else list
        self._options = {} if kind == "sqlite" else {"binary": True}  # numbers need no parsing

    def read(self, job_ids: Collection[str]) -> dict[str, Version]:
        """The versions of those of the jobs that exist, whatever their project; none when the database fails.

        After a failure the next read connects again.
        """
        try:
            if self._connection is None:
                self._connection = self._database.driver_connection()
                self._cursor = self._connection.cursor(**self._options)
            rows = self._cursor.execute(self._statement, (self._parameter([*job_ids]),)).fetchall()
        except (self._database.driver_error, sa.exc.SQLAlchemyError):  # the latter while connecting
            self.close()
            return {}
        return {row[_ID]: tuple(row) for row in rows}

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def project_of(version: Version) -> str:
    """Whose job it is."""
    return str(version[_PROJECT])


def state_of(version: Version) -> str:
    """The job's state."""
    return str(version[_STATE])
