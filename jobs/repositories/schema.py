"""Which schema the database has, as the migrations recorded it."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.tables import SCHEMA


def is_current(session: Session) -> bool:
    """Whether the database has the schema this code was written for."""
    if not sa.inspect(session.connection()).has_table("alembic_version"):
        return False
    return list(session.scalars(sa.text("SELECT version_num FROM alembic_version"))) == [SCHEMA]
