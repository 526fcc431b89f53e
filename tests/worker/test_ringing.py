"""A doorbell is noted before it is rung: who hears it finds the job free."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.orm import Session

from jobs.context import Context
from jobs.db import Database
from jobs.repositories import job_rows, jobs
from jobs.resources import Bell, Slot
from jobs.services.ringing import note, ring
from jobs.tables import Job
from worker import ringing
from worker.context import WorkerContext


class Hearer:
    """A doorbell whose worker answers before the ring returns."""

    def __init__(self, db: Database, rings: bool = True) -> None:
        self.db, self.rings = db, rings
        self.claimed: list[str] = []

    def ring(self, bell: Bell) -> bool:
        with self.db.transaction() as session:
            claim = jobs.claim_next(session, Slot("hearer"), 60) if self.rings else None
        if claim is not None:
            self.claimed.append(claim.job_id)
        return self.rings


def api(db: Database, hearer: Hearer) -> Context:
    return SimpleNamespace(db=db, doorbell=hearer)  # type: ignore[return-value]  # all that `ring` looks at


def test_the_service_notes_it_in_the_transaction_of_the_job(
    db: Database, make_job: Callable[..., str], get_job: Callable[[str], Job]
) -> None:
    job_id, hearer = make_job(), Hearer(db)
    with db.transaction() as session:
        note(session, found(session, job_id))
    assert get_job(job_id).rung_at is not None
    ring(api(db, hearer), get_job(job_id))
    job = get_job(job_id)
    assert (hearer.claimed, job.state, job.rung_at is not None) == ([job_id], "running", True)


def test_the_service_takes_a_note_back(
    db: Database, make_job: Callable[..., str], get_job: Callable[[str], Job]
) -> None:
    job_id = make_job()
    with db.transaction() as session:
        note(session, found(session, job_id))
    ring(api(db, Hearer(db, rings=False)), get_job(job_id))
    assert get_job(job_id).rung_at is None


def test_an_accepted_job_is_accepted_though_neither_broker_nor_database_answer(
    db: Database, make_job: Callable[..., str], get_job: Callable[[str], Job]
) -> None:
    job = get_job(make_job())
    away = Database("postgresql://bgpo@127.0.0.1:1/bgpo")
    ring(api(away, Hearer(db, rings=False)), job)


def test_the_worker_notes_it_before(
    context: WorkerContext,
    db: Database,
    make_job: Callable[..., str],
    get_job: Callable[[str], Job],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job_id, hearer = make_job(), Hearer(db)
    monkeypatch.setattr(context.doorbell, "ring", hearer.ring)
    ringing.ring(context, [Bell(job_id)])
    job = get_job(job_id)
    assert (hearer.claimed, job.state, job.rung_at is not None) == ([job_id], "running", True)


def test_the_worker_takes_a_note_back(
    context: WorkerContext,
    db: Database,
    make_job: Callable[..., str],
    get_job: Callable[[str], Job],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard, silent = make_job(), make_job()

    def only_one(bell: Bell) -> bool:
        return bell.job_id == heard

    monkeypatch.setattr(context.doorbell, "ring", only_one)
    ringing.ring(context, [Bell(heard), Bell(silent)])
    assert (get_job(heard).rung_at is not None, get_job(silent).rung_at is None) == (True, True)


def found(session: Session, job_id: str) -> Any:
    return job_rows.get(session, "proj_default", job_id)
