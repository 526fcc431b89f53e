"""Worker processes: who was last seen when, doing what. Liveness is contact with the database, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.db import now
from jobs.repositories.dialect import insert
from jobs.resources import Slot
from jobs.tables import Worker

WorkerState = Literal["idle", "busy", "draining", "unfit"]


def beat(
    session: Session,
    slot: Slot,
    *,
    pid: int,
    device: str,
    version: str,
    state: WorkerState = "idle",
    job_id: str | None = None,
    problem: str | None = None,
) -> None:
    """Record that a worker is alive and what it does; `problem` says why an unfit one takes no jobs."""
    changing = {
        "gpu_type": slot.gpu_type,
        "gpus": slot.gpus,
        "devices": [*slot.devices],
        "state": state,
        "job_id": job_id,
        "problem": problem,
        "last_seen": now(),
    }
    statement = insert(session, Worker).values(
        id=slot.worker_id, host=slot.host, pid=pid, device=device, version=version, started_at=now(), **changing
    )
    session.execute(statement.on_conflict_do_update(index_elements=["id"], set_=changing))


def seen(session: Session, host: str, *, within_s: float) -> bool:
    """Whether a worker of `host` was in touch lately."""
    recent = sa.exists().where(Worker.host == host, Worker.last_seen >= now() - within_s)
    return bool(session.scalar(sa.select(recent)))


def live(session: Session, within_s: float) -> Sequence[Worker]:
    """The workers seen in the last `within_s` seconds, by host and id."""
    recent = Worker.last_seen >= now() - within_s
    return _read(session, sa.select(Worker).where(recent))


def list(session: Session) -> Sequence[Worker]:
    """All workers that are remembered, by host and id; `last_seen` tells which are gone."""
    return _read(session, sa.select(Worker))


def forget(session: Session, *, unseen_for_s: float) -> int:
    """Drop workers not seen for a while; returns how many."""
    gone = sa.delete(Worker).where(Worker.last_seen < now() - unseen_for_s).returning(Worker.id)
    return len(session.scalars(gone).all())


def _read(session: Session, statement: sa.Select[Worker]) -> Sequence[Worker]:
    ordered = statement.order_by(Worker.host, Worker.started_at, Worker.id)
    return session.scalars(ordered.execution_options(populate_existing=True)).all()
