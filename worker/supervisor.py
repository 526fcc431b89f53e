"""Runs one attempt of one claimed job: prepare, start the trainer, watch over it, write down how it ended.

The supervising thread never waits for the database or the store: preparation, lease, records and uploads have a thread
each, so that one that hangs can delay neither a stop nor the self-fence. Only the last write is its own. Once the lease
is lost nothing more is written: the trainer is dead by then, and the epoch guard would refuse it anyway.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import structlog
from sqlalchemy.orm import Session

from bgpo.errors import BgpoError
from jobs.failures import JobError
from jobs.repositories import jobs
from jobs.repositories.claims import Claim
from jobs.resources import Bell
from jobs.states import State
from worker.context import WorkerContext
from worker.gpus import CPU, visible
from worker.lease import Lease
from worker.outages import DATABASE_OUTAGE
from worker.outcome import DRAINED, Outcome, judge, of_exception
from worker.paths import hidden, places, secret_names
from worker.preparation import Preparation, Prepared
from worker.process import TrainerProcess, clean_environment
from worker.recorder import Recorder, Started
from worker.ringing import ring
from worker.uploader import Uploader
from worker.warden import now
from worker.watch import TURN_S, Watch
from worker.workdir import WorkDir

_BACKOFF_S = (0.0, 10.0, 60.0)
_STORE_BACKOFF_S = 60.0  # a store that is out for minutes must not use up all attempts in one
_SETTLE_RETRY_S = 1.0
_log = structlog.get_logger(__name__)


class Supervisor:
    """One attempt. Everything happens in the thread that calls `run`."""

    def __init__(self, context: WorkerContext, claim: Claim, claimed_at: float, lock_fds: Sequence[int] = ()) -> None:
        """Supervise the attempt of `claim`.

        Args:
            claimed_at: time (`worker.warden.now`) just before the claim.
            lock_fds: held locks of the accelerators, which the trainer inherits.
        """
        self._context, self._claim, self._lock_fds = context, claim, lock_fds
        self._log = _log.bind(job_id=claim.job_id, epoch=claim.epoch, **claim.origin)
        self._lease = Lease(context.database, context.settings, claim.job_id, claim.epoch, claimed_at)
        grader = claim.recipe.get("method", {}).get("grader")
        self._recorder = Recorder(context.database, claim.job_id, claim.epoch, grader)
        self._uploader = Uploader(context.database, context.store, claim.job_id, claim.epoch)
        self._workdir = WorkDir(context.settings, claim)
        self._places = places(context.settings, self._workdir.path)
        left = claim.runtime_left_s
        self._deadline = None if left is None else claimed_at + left
        self._status: int | None = None

    def run(self) -> str:
        """Run the attempt to its end and record it; what became of it, in words."""
        self._log.info("attempt started", worker_id=self._context.worker_id)
        self._lease.start()
        try:
            outcome = self._attempt()
            if self._settle(outcome):
                told = str(outcome.state or "handed back")
                self._log.info("attempt ended", outcome=told, status=self._status)
                return told
            self._log.warning("attempt abandoned: the job is not ours any more", status=self._status)
            return "abandoned"
        finally:
            self._lease.stop()
            self._workdir.remove()

    def _attempt(self) -> Outcome:
        if self._claim.trained:  # it only did not live to say so, and a run that stopped early must not train on
            return Outcome(State.SUCCEEDED)
        preparation = Preparation(self._context, self._claim, self._workdir)
        preparation.start()
        try:
            while preparation.is_alive():
                if (early := self._stop_before_start()) is not None:
                    return early
                preparation.join(TURN_S)
            prepared = preparation.result()
            return self._stop_before_start() or self._train(prepared)
        except Exception as error:  # process boundary: whatever broke must not leave the job without an end
            self._log.warning("attempt broke", error=str(error), exc_info=not isinstance(error, BgpoError))
            return of_exception(error)
        finally:
            preparation.abandon()

    def _stop_before_start(self) -> Outcome | None:
        if self._lease.expired:
            return self._out_of_touch()
        if self._lease.desired != "run":
            return Outcome(State.CANCELLED if self._lease.desired == "cancel" else State.PAUSED)
        if self._context.draining.is_set():
            return Outcome(None, DRAINED)
        if self._deadline is not None and now() > self._deadline:
            return Outcome(State.FAILED, JobError("deadline", "the job's time was over before its trainer started"))
        return None

    def _out_of_touch(self) -> Outcome:
        message = "the worker was out of touch with the database for too long"
        return Outcome(None, JobError("worker_lost", message), spend_attempt=True)

    def _train(self, prepared: Prepared) -> Outcome:
        settings, claim = self._context.settings, self._claim
        devices, resumed_step = self._context.slot.devices[: claim.gpus], prepared.resumed_step
        self._places = secret_names(prepared.secrets) | self._places
        trainer = TrainerProcess(
            [*self._context.trainer, str(self._workdir.spec)],
            cwd=self._workdir.path,
            env=self._environment(devices),
            log_path=self._workdir.log,
            fence_s=settings.self_fence_s,
            age=self._lease.age,
            lock_fds=self._lock_fds,
            processes=claim.gpus,
            graders_secrets=prepared.secrets,
        )
        try:
            self._log.info("trainer started", pid=trainer.pid, resumed_step=resumed_step)
            self._recorder.put(Started(trainer.pid, devices, resumed_step))
            self._recorder.start()
            self._uploader.start()
            watch = Watch(
                self._context,
                trainer,
                self._workdir,
                self._lease,
                self._recorder,
                self._uploader,
                first_step=resumed_step or 0,
                deadline=self._deadline,
                places=self._places,
            )
            seen = watch.run()
            self._status = seen.status
            if self._lease.expired and not seen.final_published:
                return self._out_of_touch()  # a renewal under way may yet succeed: then it need not wait to be reaped
            if self._recorder.failure is not None:
                message = f"the run's records could not be stored: {self._recorder.failure}"
                return Outcome(None, JobError("server_error", message), spend_attempt=True)
            return judge(seen)
        finally:
            trainer.kill_tree()
            trainer.close()
            self._uploader.abandon()
            self._recorder.abandon()

    def _environment(self, devices: Sequence[str]) -> dict[str, str]:
        settings = self._context.settings
        env = clean_environment(os.environ, settings.trainer_threads)
        if settings.worker_gpus == "auto" and self._context.slot.gpu_type == CPU:
            return env  # GPUs that could not be found, for want of nvidia-ml-py, are not to be hidden either
        return env | {"CUDA_VISIBLE_DEVICES": visible(devices, len(devices))}

    def _settle(self, outcome: Outcome) -> bool:
        """Write the outcome, trying until the database answers; False when the job was not ours any more.

        Also after the lease has ended: the trainer is dead, and the epoch tells whether somebody else has the job.
        """
        while not self._lease.lost and not self._recorder.fenced:
            try:
                with self._context.database.transaction() as session:
                    written = self._write(session, outcome)
            except DATABASE_OUTAGE as error:
                self._log.warning("outcome not written yet", error=str(error))
                if self._lease.expired and self._context.draining.is_set():
                    return False
                time.sleep(_SETTLE_RETRY_S)
                continue
            if written and outcome.state is None and self._backoff(outcome) == 0:
                ring(self._context, [Bell(self._claim.job_id, self._claim.gpus, self._claim.gpu_type)])
            return written
        return False

    def _write(self, session: Session, outcome: Outcome) -> bool:
        status = self._status
        exit_code = status if status is not None and status >= 0 else None
        signal = -status if status is not None and status < 0 else None
        job, epoch = self._claim.job_id, self._claim.epoch
        error = hidden(outcome.error, self._places) if outcome.error else None
        if outcome.state is not None:
            return jobs.finish(session, job, epoch, outcome.state, error=error, exit_code=exit_code, signal=signal)
        return jobs.hand_back(
            session,
            job,
            epoch,
            error=error or JobError("server_error", "the attempt ended"),
            spend_attempt=outcome.spend_attempt,
            not_before_s=self._backoff(outcome),
            exit_code=exit_code,
            signal=signal,
        )

    def _backoff(self, outcome: Outcome) -> float:
        """Seconds before the next attempt: none after progress, more for each attempt that made none."""
        if not outcome.spend_attempt or self._uploader.published:
            return 0.0
        if outcome.error is not None and outcome.error.code == "storage_unavailable":
            return _STORE_BACKOFF_S
        spent = self._context.settings.max_attempts - self._claim.attempts_left
        return _BACKOFF_S[min(max(spent, 0), len(_BACKOFF_S) - 1)]
