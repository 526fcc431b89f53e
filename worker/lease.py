"""The worker's hold on one job: renewed in a thread of its own, and measured without the database.

The supervising thread must notice a lost lease even while the database does not answer, so it never calls the database
itself: it reads `age`, counted from *before* the last renewal that succeeded on a clock that goes on while the machine
sleeps, and kills the trainer when that passes `self_fence_s`, which is before anybody else may claim the job.
"""

from __future__ import annotations

import threading

import structlog

from jobs.db import Database
from jobs.repositories import jobs
from jobs.settings import Settings
from worker.outages import DATABASE_OUTAGE
from worker.warden import now

_LOOK_S = 1.0
_JOIN_S = 5.0  # then it hangs in the database; a daemon thread with nothing to write may stay there
_log = structlog.get_logger(__name__)


class Lease(threading.Thread):
    """Renews the lease each `beat_s` and looks each second at what the user wants of the job."""

    def __init__(self, database: Database, settings: Settings, job_id: str, epoch: int, claimed_at: float) -> None:
        """`claimed_at`: the time (`worker.warden.now`) just before the claim."""
        super().__init__(name=f"lease-{job_id}", daemon=True)
        self.desired = "run"
        self.lost = False
        """Somebody else holds the job, or it was ended without us: nothing of ours may be written any more."""
        self._database, self._settings = database, settings
        self._job_id, self._epoch = job_id, epoch
        self._renewed_at = claimed_at
        self._was_late = False
        self._stopped = threading.Event()

    @property
    def age(self) -> float:
        """Seconds since the lease was surely ours."""
        return now() - self._renewed_at

    @property
    def expired(self) -> bool:
        """The trainer must end: the lease is lost or could not be renewed in time.

        It stays so when a late renewal succeeds after all: the trainer's wardens keep the same time and have killed it.
        """
        return self.lost or self._was_late or self.age > self._settings.self_fence_s

    def stop(self) -> None:
        """End the renewals."""
        self._stopped.set()
        self.join(_JOIN_S)

    def run(self) -> None:
        while not self._stopped.wait(min(_LOOK_S, self._settings.beat_s)) and not self.lost:
            try:
                self._look()
            except DATABASE_OUTAGE as error:
                _log.warning("lease not renewed", job_id=self._job_id, age_s=round(self.age, 1), error=str(error))

    def _look(self) -> None:
        begin = now()
        if self.age < self._settings.beat_s:
            with self._database.read() as session:
                desired = jobs.desired(session, self._job_id, self._epoch)
        else:
            with self._database.transaction() as session:
                desired = jobs.renew(session, self._job_id, self._epoch, self._settings.lease_s)
            self._was_late |= self.age > self._settings.self_fence_s
            self._renewed_at = begin
        if desired is None:
            self.lost = True
        else:
            self.desired = desired
