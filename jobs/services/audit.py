"""The audit log: written by the API for every write and refused key, read by administrators."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import structlog
from sqlalchemy.exc import SQLAlchemyError

from jobs.context import Context
from jobs.repositories import audit
from jobs.repositories.audit import Act
from jobs.services.paging import Page, cut, require_start
from jobs.tenant_tables import AuditEntry

_log = structlog.get_logger(__name__)


def record(ctx: Context, act: Act) -> None:
    """Add an entry. What cannot be written goes to the log instead: the request it tells of has happened."""
    try:
        with ctx.db.transaction() as session:
            audit.append(session, act)
    except SQLAlchemyError as error:
        _log.error("audit.unwritten", **asdict(act), error=str(error))


def page(ctx: Context, *, after: str | None, limit: int, **filters: Any) -> Page[AuditEntry]:
    """Entries, newest first; for the filters see `audit.page`. Raises InvalidRequest for an unknown `after`."""
    with ctx.db.read() as session:
        start = audit.get(session, after) if after is not None else None
        require_start(after, start)
        return cut(audit.page(session, after=start, limit=limit + 1, **filters), limit)
