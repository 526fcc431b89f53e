"""What is promised of every job, whatever happened to it: checked from the database, the store and the journal.

`check_job` holds one job against the promise, `check_clean` holds the machine against it once no job runs. The journal
is the witness that no worker can embellish: trainers write it themselves, each line before the record it belongs to.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import sqlalchemy as sa

from jobs.tables import Checkpoint, Event, File, Job, Metric
from tests.faults import journal
from tests.faults.cluster import TERMINAL, Cluster
from tests.faults.processes import wait_empty, wait_for
from tests.faults.receiver import Receiver

_TERMINAL_WORDS = {
    "succeeded": "The job has successfully completed",
    "failed": "The job failed",
    "cancelled": "Fine-tuning job cancelled",
}


def check_job(
    cluster: Cluster,
    job_id: str,
    state: str = "succeeded",
    *,
    epochs: int | None = None,
    at_least: int = 0,
    stand_in: bool = True,
    damaged: Sequence[int] = (),
    suspended: bool = False,
) -> None:
    """Hold a job that is over against the promise.

    Args:
        state: the terminal state it must be in.
        epochs: how many attempts it must have taken; None = any number.
        at_least: the same as a lower bound: with a short lease, a busy machine may cost further attempts.
        stand_in: its trainers were `stand_in_trainer`, so that every value is known beforehand.
        damaged: steps of checkpoints that the scenario damaged.
        suspended: trainers were frozen together with all that could have killed them, so that two may have lived.
    """
    job = cluster.job(job_id)
    assert job.state == state, (job.state, job.error_code, job.error_message, job.error_log)
    with cluster.db.read() as session:
        events = list(session.scalars(sa.select(Event).where(Event.job_id == job_id).order_by(Event.seq)))
        metrics = list(session.scalars(sa.select(Metric).where(Metric.job_id == job_id)))
    lines = cluster.journal(job_id)
    seed, total = cluster.steps[job_id]
    known = journal.values(seed, total) if stand_in else None
    last = total if state == "succeeded" else None
    _check_events(job, events)
    _check_metrics(metrics, events, last, known)
    _check_attempts(cluster, job, epochs, at_least)
    _check_nothing_late(cluster, job_id, metrics)
    check_journal(lines, known, suspended=suspended)
    _check_resumed(lines, events, damaged)
    _check_checkpoints(cluster, job, total, known, damaged)
    if cluster.api is not None and cluster.api.running():
        assert cluster.shown(job_id)["status"] == state


def _check_events(job: Job, events: Sequence[Event]) -> None:
    assert [event.seq for event in events] == list(range(1, job.event_seq + 1)), "the events have gaps"
    ends = Counter(
        state for event in events for state, words in _TERMINAL_WORDS.items() if event.message.startswith(words)
    )
    assert ends == {job.state: 1}, f"the events tell of other ends than {job.state}, once: {ends}"


def _check_metrics(
    metrics: Sequence[Metric], events: Sequence[Event], last: int | None, known: list[str] | None
) -> None:
    """Rows and events of each split: every step once (the primary key holds that for rows), none left out."""
    steps = sorted({row.step for row in metrics if row.split == "train"})
    assert steps == list(range(1, (last or len(steps)) + 1)), f"metric rows of steps {steps}, expected 1 to {last}"
    names = {step: {row.name for row in metrics if (row.split, row.step) == ("train", step)} for step in steps}
    assert all(found == names[1] for found in names.values()), f"steps differ in their metrics: {names}"
    told = [
        ("train" if "train" in event.data else "validation", event.data["step"])
        for event in events
        if event.type == "metrics" and event.data is not None
    ]
    repeated = {key: count for key, count in Counter(told).items() if count > 1}
    assert not repeated, f"metrics events told more than once: {repeated}"
    rows = {(row.split, row.step) for row in metrics}
    assert set(told) == rows, f"rows and events differ: {rows ^ set(told)}"
    for split in ("train", "validation"):
        order = [step for name, step in told if name == split]
        assert order == sorted(order), f"metrics events of {split} out of order: {order}"
    for row in metrics if known is not None else ():
        assert row.value == journal.metrics_of(known[row.step])[row.name], f"step {row.step}: a wrong {row.name}"


def _check_attempts(cluster: Cluster, job: Job, epochs: int | None, at_least: int) -> None:
    attempts = cluster.attempts(job.id)
    assert [attempt.epoch for attempt in attempts] == list(range(1, job.epoch + 1))
    told = [(attempt.epoch, attempt.outcome, attempt.error_message) for attempt in attempts]
    assert epochs in (None, len(attempts)), told
    assert len(attempts) >= at_least, told
    is_open = [attempt.epoch for attempt in attempts if attempt.ended_at is None or attempt.outcome is None]
    assert not is_open, f"attempts never closed: {is_open}"
    assert [attempt.outcome for attempt in attempts if attempt.outcome in TERMINAL] in ([], [job.state])


def _check_nothing_late(cluster: Cluster, job_id: str, metrics: Sequence[Metric]) -> None:
    """No attempt wrote anything after the next one had begun, on the database's clock."""
    began = {attempt.epoch: attempt.started_at for attempt in cluster.attempts(job_id)}
    for row in (*metrics, *cluster.checkpoints(job_id)):
        late = row.created_at - began.get(row.epoch + 1, row.created_at)
        assert late <= 0, f"{row} of epoch {row.epoch} was written {late:.3f} s after the next one began"


def check_journal(
    lines: Sequence[journal.Line], known: Sequence[str] | None = None, *, suspended: bool = False
) -> None:
    """Attempts follow each other, never overlap, leave out no step, and repeat steps with the same result."""
    starts = [line for line in lines if line.kind == "START"]
    assert [line.epoch for line in starts] == sorted({line.epoch for line in starts}), f"epochs out of order: {starts}"
    values: dict[int, str] = {} if known is None else dict(enumerate(known))
    for position, start in enumerate(starts):
        assert suspended or not start.alive, f"epoch {start.epoch} began while {start.alive} lived"
        mine = [line for line in lines if line.epoch == start.epoch]
        assert {line.pid for line in mine} == {start.pid}, f"several trainers in epoch {start.epoch}: {mine}"
        for after in starts[position + 1 :]:
            late = [line for line in mine if line.at >= after.at]
            assert not late or (suspended and len(late) <= 2), (
                f"epoch {start.epoch} went on after epoch {after.epoch} began: {late}"
            )
        resumed = start.resumed or 0
        steps = [line.n for line in mine if line.kind == "STEP"]
        assert steps == list(range(resumed + 1, resumed + 1 + len(steps))), f"epoch {start.epoch} trained {steps}"
        for line in mine:
            if line.kind == "STEP" and line.n is not None and line.value is not None:
                first = values.setdefault(line.n, line.value)
                assert line.value == first, f"step {line.n} of epoch {line.epoch} came out differently"
        assert sum(line.kind == "END" for line in mine) <= 1


def _check_resumed(lines: Sequence[journal.Line], events: Sequence[Event], damaged: Sequence[int]) -> None:
    """Each attempt went on from the newest checkpoint there was when it was claimed: events are in commit order."""
    newest: dict[int, int] = {}
    epoch, steps = 0, [0]
    for event in events:
        if event.message.startswith("Checkpoint created") and event.data is not None:
            steps.append(event.data["step"])
        elif event.message.startswith(("Fine-tuning job started", "Fine-tuning job continues")):
            epoch += 1
            newest[epoch] = max(step for step in steps if step not in damaged)
    for line in lines:
        if line.kind == "START":
            assert line.resumed == newest[line.epoch], (
                f"epoch {line.epoch} went on from step {line.resumed}, the newest checkpoint was {newest[line.epoch]}"
            )


def _check_checkpoints(
    cluster: Cluster, job: Job, total: int, known: Sequence[str] | None, damaged: Sequence[int]
) -> None:
    """Each row's files are complete; a model that succeeded is that of an undisturbed run."""
    rows = cluster.checkpoints(job.id)
    for row in rows:
        if row.damaged:
            assert row.step in damaged, f"{row.key} is marked as damaged"
        else:
            _check_files(cluster.store, row)
            assert known is None or row_weights(cluster, row) == journal.weights_of(known[row.step], _size(row))
    final = [row for row in rows if row.final]
    if job.state == "succeeded":
        assert [row.id for row in final] == [job.final_checkpoint_id]
        assert final[0].step == total


def row_weights(cluster: Cluster, row: Checkpoint) -> bytes:
    """The weights file of a checkpoint, from the store."""
    return (cluster.store / row.key / "model.safetensors").read_bytes()


def _size(row: Checkpoint) -> int:
    return int(next(file["bytes"] for file in row.manifest if file["path"] == "model.safetensors"))


def _check_files(store: Path, row: Checkpoint) -> None:
    for file in row.manifest:
        data = (store / row.key / file["path"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == file["sha256"], f"{row.key}/{file['path']} is damaged"


def check_webhook(receiver: Receiver, job_id: str, state: str) -> None:
    """One webhook was sent about a job, and it tells of its end."""
    told = wait_for(lambda: receiver.of_job(job_id), f"the webhook of {job_id}")
    assert [type for _, type in told] == [f"fine_tuning.job.{state}"], told


def check_clean(cluster: Cluster) -> None:
    """Once no job runs: no process, no lock, no work folder, nothing half-written."""
    wait_empty(cluster.strangers, "processes left beside the services")
    work = cluster.home / "work"
    wait_empty(lambda: list(work.iterdir()) if work.exists() else [], "work folders left")
    for lock in cluster.locks.glob("*"):
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    cluster.sweep()
    with cluster.db.read() as session:
        keys = {row.key for table in (Checkpoint, File) for row in session.scalars(sa.select(table))}
    files = [path.relative_to(cluster.store) for path in cluster.store.rglob("*") if path.is_file()]
    depth = {"checkpoints": 4, "files": 2}
    found = {"/".join(path.parts[: depth[path.parts[0]]]) for path in files if path.parts[0] in depth}
    assert found == keys, f"stored without a row, or rows without what they name: {found ^ keys}"
    unfinished = list(cluster.store.rglob("*.tmp*"))
    assert not unfinished, f"half-written: {unfinished}"
