"""The few statements the two databases spell differently."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from jobs.tables import Base


def is_postgresql(session: Session) -> bool:
    """Whether the session talks to PostgreSQL."""
    return session.get_bind().dialect.name == "postgresql"


def insert(session: Session, table: type[Base]) -> postgresql.Insert | sqlite.Insert:
    """An INSERT with `on_conflict_do_update`; both dialects offer the same methods."""
    return postgresql.insert(table) if is_postgresql(session) else sqlite.insert(table)


def has_pair(session: Session, column: Any, key: str, value: str) -> sa.ColumnElement[bool]:
    """Whether the JSON object in `column` has `key` with the string `value`."""
    if is_postgresql(session):
        return sa.type_coerce(column, postgresql.JSONB).contains({key: value})
    pairs = sa.func.json_each(column).table_valued("key", "value")
    return sa.exists().select_from(pairs).where(pairs.c.key == key, pairs.c.value == value)


def lock_project(session: Session, purpose: str, project_id: str) -> None:
    """Let one transaction at a time count something of a project and act on it; until the end of the transaction.

    SQLite has one writing transaction at a time anyway.
    """
    if is_postgresql(session):
        keys = sa.func.hashtext(f"bgpo.{purpose}"), sa.func.hashtext(project_id)
        session.execute(sa.select(sa.func.pg_advisory_xact_lock(*keys)))
