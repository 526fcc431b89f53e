"""Lines of logs on both databases: written once, by whoever has the job, and no more than are kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from jobs.db import Database
from jobs.failures import JobError
from jobs.repositories import job_rows, jobs, logs
from jobs.repositories.events import Level
from jobs.repositories.jobs import Claim
from jobs.tables import DEFAULT_PROJECT

MakeRunning = Callable[..., Claim]


def append(db: Database, claim: Claim, first: int, *texts: str, level: Level = "info") -> bool:
    with db.transaction() as session:
        return logs.append(session, claim.job_id, claim.epoch, first, [(level, text) for text in texts])


def stored(db: Database, job_id: str) -> list[str]:
    with db.read() as session:
        return [row.text for row in logs.page(session, job_id, limit=10_000)]


def test_a_batch_that_is_written_again_changes_nothing(db: Database, make_running: MakeRunning) -> None:
    claim = make_running()
    for _ in range(2):
        assert append(db, claim, 1, "a", "b\x00")
    assert append(db, claim, 3, "c", "x" * 9999)
    assert stored(db, claim.job_id) == ["a", "b\ufffd", "c", "x" * logs.MAX_TEXT]


def test_lines_of_a_later_attempt_come_later(db: Database, make_running: MakeRunning) -> None:
    claim = make_running()
    append(db, claim, 1, "first", "second")
    with db.transaction() as session:
        error = JobError("worker_lost", "gone")
        assert jobs.hand_back(session, claim.job_id, claim.epoch, error=error, spend_attempt=False)
        again = jobs.claim(session, claim.job_id, "w2", 60)
    assert again is not None
    assert not append(db, claim, 3, "late")
    assert append(db, again, 1, "third")
    assert stored(db, claim.job_id) == ["first", "second", "third"]


def test_of_a_cancelled_job_nothing_more(db: Database, make_running: MakeRunning) -> None:
    claim = make_running()
    with db.transaction() as session:
        job_rows.cancel(session, DEFAULT_PROJECT, claim.job_id)
    assert append(db, claim, 1, "late")
    assert stored(db, claim.job_id) == []


def test_the_last_ones_are_kept(db: Database, make_running: MakeRunning, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "KEPT", 5)
    claim, other = make_running(), make_running()
    append(db, other, 1, *"abcde")
    for first in range(1, 12, 3):
        append(db, claim, first, *(str(number) for number in range(first, first + 3)))
    assert stored(db, claim.job_id) == ["8", "9", "10", "11", "12"]
    assert stored(db, other.job_id) == [*"abcde"]
