"""The audit log cannot be changed, whoever tries. On both databases."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from jobs.db import Database
from jobs.repositories import audit
from jobs.repositories.audit import Act
from jobs.tables import DEFAULT_PROJECT
from jobs.tenant_tables import AuditEntry


def test_entries_are_there_for_good(db: Database) -> None:
    for number in range(3):
        act = Act("job.created", "/v1/x\x00" + "y" * 1000, f"req_{number}", 200, project_id=DEFAULT_PROJECT)
        with db.transaction() as session:
            audit.append(session, act)
    for statement in (sa.update(AuditEntry).values(actor="nobody"), sa.delete(AuditEntry)):
        with pytest.raises(sa.exc.DBAPIError, match="append-only"), db.transaction() as session:
            session.execute(statement)
    with db.read() as session:
        rows = audit.page(session, after=None, limit=10)
        assert [row.request_id for row in rows] == ["req_2", "req_1", "req_0"]
        assert {row.actor for row in rows} == {None}
        assert len(rows[0].path) == audit.MAX_PATH
        assert audit.page(session, after=rows[0], limit=1, project_ids=[DEFAULT_PROJECT]) == rows[1:2]
        assert audit.page(session, after=None, limit=1, project_ids=["proj_x"]) == []
