"""Worker processes: who was last seen when. Liveness is contact with the database, nothing else."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.db import now
from jobs.repositories.dialect import insert
from jobs.tables import Worker


def beat(session: Session, worker_id: str, *, host: str, pid: int, device: str, version: str) -> None:
    """Record that a worker is alive."""
    statement = insert(session, Worker).values(
        id=worker_id, host=host, pid=pid, device=device, version=version, started_at=now(), last_seen=now()
    )
    session.execute(statement.on_conflict_do_update(index_elements=["id"], set_={"last_seen": now()}))


def seen(session: Session, host: str, *, within_s: float) -> bool:
    """Whether a worker of `host` was in touch lately."""
    recent = sa.exists().where(Worker.host == host, Worker.last_seen >= now() - within_s)
    return bool(session.scalar(sa.select(recent)))


def forget(session: Session, *, unseen_for_s: float) -> int:
    """Drop workers not seen for a while; returns how many."""
    gone = sa.delete(Worker).where(Worker.last_seen < now() - unseen_for_s).returning(Worker.id)
    return len(list(session.scalars(gone)))
