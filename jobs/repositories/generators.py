"""Generator processes: who was last seen when, with which models in memory."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.db import now
from jobs.repositories.dialect import insert
from jobs.tables import Generator

LIVE_S = 15.0
"""One not seen for so long takes no requests."""


def beat(
    session: Session, generator_id: str, *, host: str, pid: int, device: str, version: str, models: Sequence[str]
) -> None:
    """Record that a generator is alive."""
    changing = {"models": [*models], "last_seen": now()}
    statement = insert(session, Generator).values(
        id=generator_id, host=host, pid=pid, device=device, version=version, started_at=now(), **changing
    )
    session.execute(statement.on_conflict_do_update(index_elements=["id"], set_=changing))


def any_live(session: Session, host: str | None = None) -> bool:
    """Whether somebody, on this host if it is given, answers completions."""
    recent = sa.exists().where(Generator.last_seen >= now() - LIVE_S)
    if host is not None:
        recent = recent.where(Generator.host == host)
    return bool(session.scalar(sa.select(recent)))


def remove(session: Session, generator_id: str) -> None:
    """It has ended."""
    session.execute(sa.delete(Generator).where(Generator.id == generator_id))


def forget(session: Session, *, unseen_for_s: float) -> None:
    """Drop generators not seen for a while."""
    session.execute(sa.delete(Generator).where(Generator.last_seen < now() - unseen_for_s))
