"""Writes a trainer's records to the database, in a thread of its own, in batches of at most a second.

One transaction a batch, every statement guarded by the epoch. While the database does not answer the batch is tried
again and the queue fills up; `full` then tells the supervising thread to read no more, which in the end blocks the
trainer's pipe: nothing is lost and memory stays bounded. A batch whose commit was not confirmed is written again, to no
further effect: values replace themselves, and an event has its id before it is first written.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import structlog
from sqlalchemy.orm import Session

from bgpo.records import LogRecord, MetricRecord, PhaseRecord, Record, SampleRecord
from jobs.db import Database
from jobs.ids import EVENT, new_id
from jobs.repositories import events, jobs, logs, metrics, samples
from jobs.services.messages import metrics_event
from worker.outages import DATABASE_OUTAGE
from worker.printed import Printed

_BATCH_S = 1.0
_JOIN_S = 5.0  # then it hangs in the database, and the epoch guard refuses what it may still write
_MAX_QUEUED = 5000
_MAX_BATCH = 500
# SQLite has one writer at a time, and who waits only looks now and then whether the lock is free: the renewal of a
# lease must find it free in time, also while a backlog is written.
_MAX_HOLD_S = 0.5
_GAP_S = 0.1
_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Started:
    """The trainer runs: the first thing there is to record of an attempt."""

    pid: int
    devices: tuple[str, ...]
    resumed_step: int | None
    """Step of the checkpoint it goes on from; None = from the base model."""


class Recorder(threading.Thread):
    """Takes records from the supervising thread; checkpoints and errors are not its business."""

    def __init__(self, database: Database, job_id: str, epoch: int, grader: Mapping[str, Any] | None = None) -> None:
        """`grader`: its specification in the recipe, named in metrics events."""
        super().__init__(name=f"recorder-{job_id}", daemon=True)
        self.fenced = False
        """The epoch no longer holds the job; records are dropped from then on."""
        self.failure: Exception | None = None
        """Why the thread ended early."""
        self._database, self._job_id, self._epoch = database, job_id, epoch
        self._grader = grader
        self._queue: deque[tuple[str, Record | Started | Printed]] = deque()
        self._put = self._written = 0
        self._closing = threading.Event()
        self._abandoned = threading.Event()

    @property
    def full(self) -> bool:
        """Whether the supervising thread should stop reading for now."""
        return len(self._queue) >= _MAX_QUEUED

    @property
    def broken(self) -> bool:
        """It writes no more."""
        return self.fenced or self.failure is not None

    def put(self, record: Record | Started | Printed) -> None:
        """Queue a record."""
        if not self.broken:
            self._queue.append((new_id(EVENT), record))
            self._put += 1

    def mark(self) -> Callable[[], bool]:
        """Tells whether all records queued so far are in the database. Never, if the recorder breaks before."""
        put = self._put
        return lambda: self._written >= put

    def close(self) -> None:
        """Write what is queued and end; `is_alive` turns false when that is done."""
        self._closing.set()

    def abandon(self) -> None:
        """End without writing the rest."""
        self._abandoned.set()
        self._closing.set()
        self.join(_JOIN_S)

    def run(self) -> None:
        try:
            while not self._closing.wait(_BATCH_S):
                self._flush()
            self._flush()
        except Exception as error:  # thread boundary: the supervisor reads `failure` and stops the trainer
            _log.exception("records cannot be written", job_id=self._job_id)
            self.failure = error

    def _flush(self) -> None:
        while self._queue and not self.fenced and not self._abandoned.is_set():
            try:
                with self._database.transaction() as session:
                    written = self._write_batch(session)
            except DATABASE_OUTAGE as error:
                _log.warning("records not written yet", job_id=self._job_id, error=str(error))
                self._abandoned.wait(_BATCH_S)
                continue
            for _ in range(written):
                self._queue.popleft()
            if not self.fenced:
                self._written += written
            if self._queue:
                self._abandoned.wait(_GAP_S)

    def _write_batch(self, session: Session) -> int:
        """Write some of what is queued; how many that were."""
        begin, written = time.monotonic(), 0
        for event_id, record in islice(self._queue.copy(), _MAX_BATCH):
            if not self._write(session, event_id, record):
                self.fenced = True
            written += 1
            if self.fenced or time.monotonic() - begin > _MAX_HOLD_S:
                break
        return written

    def _write(self, session: Session, event_id: str, record: Record | Started | Printed) -> bool:
        """Write one record, to no further effect if it is there already; False when fenced."""
        job, epoch = self._job_id, self._epoch
        match record:
            case Started():
                devices, step = list(record.devices), record.resumed_step
                return jobs.start_attempt(session, job, epoch, pid=record.pid, devices=devices, resumed_step=step)
            case Printed():
                return logs.append(session, job, epoch, record.first, record.lines)
            case PhaseRecord():
                return jobs.set_phase(session, job, epoch, record.phase, record.step)
            case MetricRecord():
                step, split, values = record.step, record.split, record.values
                message, data = metrics_event(step, record.total_steps, split, values, self._grader)
                return metrics.record_step(
                    session, job, epoch, step=step, split=split, values=values, message=message, data=data
                )
            case SampleRecord():
                fields = record.model_dump(exclude={"type", "seq", "time"})
                return samples.upsert(session, job, epoch, **fields)
            case LogRecord():
                level, text, more = record.level, record.message, record.data
                seq = events.append(session, job, epoch, level, text, data=more, event_id=event_id)
                return seq is not None
            case _:
                return True
