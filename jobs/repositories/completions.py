"""Chat completions: queued by the API, claimed and written by generators, watched by the API.

Every write of a generator is guarded by the epoch of its claim; no row changed means that nobody wants its answer any
more. One whose generator was lost is queued again once; then it fails.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.db import now
from jobs.repositories.dialect import lock_project
from jobs.repositories.text import clean
from jobs.tables import Completion, CompletionBlock

QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"
OPEN = (QUEUED, RUNNING)
MAX_FAILURES = 2
_MAX_MESSAGE = 2048
_FORGET_ROWS_S = 93 * 86_400.0
"""Usage is computed from the rows, of up to 92 days at a time (`jobs.services.usage`)."""
_LATELY_S = 60.0
_TRIES = 5


@dataclass(frozen=True)
class Claimed:
    """A completion that a generator has to answer."""

    id: str
    epoch: int
    project_id: str
    base_model: str
    checkpoint_id: str | None
    request: dict[str, Any]
    written: tuple[str, ...] = ()
    """Blocks that an earlier claim has written, and somebody may have read."""


@dataclass(frozen=True)
class Progress:
    """How far a completion is."""

    state: str
    blocks: int


def insert(session: Session, completion: Completion, timeout_s: float) -> Completion:
    """Queue a completion; the database sets its times."""
    completion.created_at = session.scalars(sa.select(now())).one()
    completion.deadline = completion.created_at + timeout_s
    completion.state = QUEUED
    session.add(completion)
    session.flush()
    return completion


def count_waiting(session: Session, project_id: str) -> tuple[int, int]:
    """How many wait, of all projects and of this one, counted under a lock that lasts until the transaction ends."""
    lock_project(session, "completions", "")
    own = sa.func.count().filter(Completion.project_id == project_id)
    everybody, mine = session.execute(sa.select(sa.func.count(), own).where(Completion.state == QUEUED)).one()
    return int(everybody), int(mine)


def claim(session: Session, owner: str, lease_s: float, limit: int) -> list[Claimed]:
    """Take what is next, with up to `limit` in all that can be decoded together with it; nothing when none waits.

    Projects take turns: the one that was served longest ago is next. Within one, who came first.
    """
    for _ in range(_TRIES):
        wanted = _next(session, limit)
        if not wanted:
            return []
        taken = _take(session, wanted, owner, lease_s)
        if taken:
            return taken
    return []  # others are quicker each time: there are enough of them


def _next(session: Session, limit: int) -> list[str]:
    lately = sa.or_(Completion.state == RUNNING, Completion.finished_at > now() - _LATELY_S)
    served_at = sa.func.max(Completion.started_at).label("served_at")
    served = sa.select(Completion.project_id, served_at).where(lately).group_by(Completion.project_id).subquery()
    order = (Completion.created_at, Completion.id)
    waiting = sa.select(
        Completion.id,
        Completion.batch_key,
        Completion.failures,
        Completion.created_at,
        sa.func.row_number().over(partition_by=Completion.project_id, order_by=order).label("turn"),
        sa.func.coalesce(served.c.served_at, 0.0).label("served_at"),
    ).outerjoin(served, served.c.project_id == Completion.project_id)
    line = waiting.where(Completion.state == QUEUED, Completion.deadline > now()).subquery()
    rows = session.execute(sa.select(line).order_by(line.c.turn, line.c.served_at, line.c.created_at, line.c.id)).all()
    if not rows:
        return []
    head, *others = rows
    if head.batch_key is None or head.failures:  # what may have killed a process is tried alone
        return [head.id]
    mates = [row.id for row in others if row.batch_key == head.batch_key and not row.failures]
    return [head.id, *mates[: limit - 1]]


def _take(session: Session, ids: Sequence[str], owner: str, lease_s: float) -> list[Claimed]:
    values = {"state": RUNNING, "epoch": Completion.epoch + 1, "lease_owner": owner, "lease_until": now() + lease_s}
    statement = sa.update(Completion).where(Completion.id.in_(ids), Completion.state == QUEUED)
    statement = statement.values(started_at=sa.func.coalesce(Completion.started_at, now()), **values)
    returned = statement.returning(
        Completion.id,
        Completion.epoch,
        Completion.project_id,
        Completion.base_model,
        Completion.checkpoint_id,
        Completion.request,
    )
    rows = session.execute(returned.execution_options(synchronize_session=False)).all()
    written = blocks(session, {row.id: 0 for row in rows if row.epoch > 1})
    taken = {row.id: Claimed(**row._mapping, written=tuple(written.get(row.id, ()))) for row in rows}
    return [taken[id_] for id_ in ids if id_ in taken]


def renew(session: Session, owner: str, ids: Collection[str], lease_s: float) -> set[str]:
    """Extend leases; those of `ids` that are still this generator's."""
    where = (Completion.id.in_(ids), Completion.lease_owner == owner, Completion.state == RUNNING)
    statement = sa.update(Completion).where(*where).values(lease_until=now() + lease_s).returning(Completion.id)
    return set(session.scalars(statement.execution_options(synchronize_session=False)))


def write_block(session: Session, completion_id: str, epoch: int, seq: int, text: str) -> bool:
    """Add the next block; False when the completion is not ours any more."""
    if not _write(session, completion_id, epoch, blocks=seq + 1):
        return False
    session.add(CompletionBlock(completion_id=completion_id, seq=seq, text=clean(text)))
    session.flush()
    return True


def finish(
    session: Session, completion_id: str, epoch: int, finish_reason: str, prompt_tokens: int, completion_tokens: int
) -> bool:
    """The text is complete; False when the completion is not ours any more."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return _write(session, completion_id, epoch, finish_reason=finish_reason, **_over(DONE), **usage)


def fail(session: Session, completion_id: str, epoch: int, code: str, message: str, param: str | None = None) -> bool:
    """It cannot be answered; False when the completion is not ours any more."""
    return _write(session, completion_id, epoch, **_failed(code, message, param))


def hand_back(session: Session, completion_id: str, epoch: int, *, spend: bool) -> bool:
    """Give it to another generator; with `spend` because this one failed, which may happen once."""
    failures = session.scalar(sa.select(Completion.failures).where(Completion.id == completion_id)) or 0
    failures += spend
    if failures >= MAX_FAILURES:
        return fail(session, completion_id, epoch, *_LOST)
    again = {"state": QUEUED, "failures": failures, "lease_owner": None, "lease_until": None}
    return _write(session, completion_id, epoch, **again)


def reap(session: Session) -> list[str]:
    """Take completions from generators whose lease has ended; their ids."""
    expired = (Completion.state == RUNNING, Completion.lease_until < now())
    rows = session.execute(sa.select(Completion.id, Completion.epoch).where(*expired).order_by(Completion.id)).all()
    return [row.id for row in rows if hand_back(session, row.id, row.epoch, spend=True)]


def expire(session: Session) -> int:
    """Fail those whose time is over, waiting or not."""
    return _end(session, Completion.deadline < now(), **_failed("timeout", "The answer took too long.", None))


def cancel(session: Session, ids: Collection[str]) -> int:
    """Nobody waits for these any more."""
    return _end(session, Completion.id.in_(ids), **_over(CANCELLED))


def progress(session: Session, ids: Collection[str]) -> dict[str, Progress]:
    """How far these are."""
    columns = (Completion.id, Completion.state, Completion.blocks)
    rows = session.execute(sa.select(*columns).where(Completion.id.in_(ids)))
    return {row.id: Progress(row.state, row.blocks) for row in rows}


def get(session: Session, ids: Collection[str]) -> dict[str, Completion]:
    """Their rows."""
    return {row.id: row for row in session.scalars(sa.select(Completion).where(Completion.id.in_(ids)))}


def blocks(session: Session, begin: Mapping[str, int]) -> dict[str, list[str]]:
    """The texts of the blocks of each, from the given number on."""
    found: dict[str, list[str]] = {}
    if begin:
        order = (CompletionBlock.completion_id, CompletionBlock.seq)
        rows = session.scalars(
            sa.select(CompletionBlock).where(CompletionBlock.completion_id.in_(begin)).order_by(*order)
        )
        for row in rows:
            if row.seq >= begin[row.completion_id]:
                found.setdefault(row.completion_id, []).append(row.text)
    return found


def forget(session: Session, keep_s: float) -> int:
    """Forget what was asked and answered in completions that ended so long ago; the rows three months later."""
    quiet = {"synchronize_session": False}
    # The batch key of a row whose texts are gone is "".
    old = sa.and_(
        Completion.finished_at < now() - keep_s,
        Completion.state.not_in(OPEN),
        Completion.batch_key.is_distinct_from(""),
    )
    ids = list(session.scalars(sa.select(Completion.id).where(old).limit(500)))
    session.execute(sa.delete(CompletionBlock).where(CompletionBlock.completion_id.in_(ids)).execution_options(**quiet))
    emptied = sa.update(Completion).where(Completion.id.in_(ids)).values(request={}, batch_key="")
    session.execute(emptied.execution_options(**quiet))
    gone = sa.delete(Completion).where(Completion.finished_at < now() - _FORGET_ROWS_S, Completion.batch_key == "")
    session.execute(gone.execution_options(**quiet))
    return len(ids)


_LOST = ("generation_failed", "The process that answered was lost twice; the request may be what kills it.")


def _write(session: Session, completion_id: str, epoch: int, **values: Any) -> bool:
    where = (Completion.id == completion_id, Completion.epoch == epoch, Completion.state == RUNNING)
    statement = sa.update(Completion).where(*where).values(**values).returning(Completion.id)
    return session.scalar(statement.execution_options(synchronize_session=False)) is not None


def _end(session: Session, where: sa.ColumnElement[bool], **values: Any) -> int:
    statement = sa.update(Completion).where(where, Completion.state.in_(OPEN)).values(**values).returning(Completion.id)
    return len(session.scalars(statement.execution_options(synchronize_session=False)).all())


def _over(state: str) -> dict[str, Any]:
    return {"state": state, "finished_at": now(), "lease_owner": None, "lease_until": None}


def _failed(code: str, message: str, param: str | None) -> dict[str, Any]:
    error = {"error_code": code, "error_message": clean(message, _MAX_MESSAGE), "error_param": param}
    return _over(FAILED) | error
