"""Runs one attempt of one job: claim, prepare, spawn the trainer, watch over it, write down how it ended.

The supervising thread talks to the trainer and the clock only. Whatever may block has a thread of its own (`lease`,
`recorder`, `uploader`), so that a database or store that hangs can delay neither a stop nor the self-fence. Once the
lease is lost nothing more is written: the trainer is killed, and the epoch guard would refuse it anyway.
"""

from __future__ import annotations

import os
import signal
import time

import structlog
from pydantic import ValidationError
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.orm import Session

from bgpo.errors import InvalidInput
from bgpo.records import CheckpointRecord, ErrorRecord, parse_record
from jobs.repositories import jobs
from jobs.repositories.jobs import Claim, JobError
from jobs.resources import Bell
from jobs.states import State
from worker.context import WorkerContext
from worker.lease import Lease
from worker.outcome import Ending, Outcome, judge
from worker.process import StopLadder, TrainerProcess, clean_environment
from worker.reconciler import ring
from worker.recorder import Recorder
from worker.uploader import Uploader
from worker.workdir import WorkDir

_TURN_S = 0.2
_TERM_GRACE_S = 30.0
_BACKOFF_S = (0.0, 10.0, 60.0)
_log = structlog.get_logger(__name__)


def run_job(context: WorkerContext, job_id: str) -> None:
    """Answer a doorbell: run the job if it is there to be taken, return when this attempt is over."""
    if context.draining.is_set():
        return  # the reconciler of another worker will ring again
    claimed_at = time.monotonic()
    with context.database.transaction() as session:
        settings = context.settings
        claim = jobs.claim_next(session, context.slot, settings.lease_s, max_running=settings.max_running_jobs)
    if claim is not None:
        Supervisor(context, claim, claimed_at).run()


class Supervisor:
    """One attempt. Everything happens in the thread that calls `run`."""

    def __init__(self, context: WorkerContext, claim: Claim, claimed_at: float) -> None:
        self._context, self._claim = context, claim
        self._log = _log.bind(job_id=claim.job_id, epoch=claim.epoch)
        self._lease = Lease(context.database, context.settings, claim.job_id, claim.epoch, claimed_at)
        self._recorder = Recorder(
            context.database, claim.job_id, claim.epoch, claim.recipe.get("method", {}).get("grader")
        )
        self._uploader = Uploader(context.database, context.store, claim.job_id, claim.epoch)
        self._workdir = WorkDir(context.settings, claim)
        self._ladder: StopLadder | None = None
        self._error: ErrorRecord | None = None
        self._status: int | None = None

    def run(self) -> None:
        """Run the attempt to its end and record it."""
        self._log.info("attempt started", worker_id=self._context.worker_id)
        self._lease.start()
        try:
            outcome = self._attempt()
            if self._settle(outcome):
                self._log.info("attempt ended", outcome=str(outcome.state or "handed back"), status=self._status)
            else:
                self._log.warning("attempt abandoned: the lease is lost", status=self._status)
        finally:
            self._lease.stop()
            self._workdir.remove()

    def _attempt(self) -> Outcome:
        if self._claim.trained:  # it only did not live to say so, and a run that stopped early must not train on
            return Outcome(State.SUCCEEDED)
        try:
            self._workdir.create()
            self._workdir.prepare(self._context.database, self._context.store)
            if (early := self._stop_before_start()) is not None:
                return early
            return self._train()
        except InvalidInput as error:
            return Outcome(State.FAILED, JobError(error.code, error.message, error.param))
        except Exception as error:  # process boundary: whatever broke must not leave the job without an end
            self._log.exception("attempt broke")
            return Outcome(None, JobError("server_error", f"the worker failed: {error}"), spend_attempt=True)

    def _stop_before_start(self) -> Outcome | None:
        if self._lease.desired != "run":
            return Outcome(State.CANCELLED if self._lease.desired == "cancel" else State.PAUSED)
        if self._context.draining.is_set():
            return Outcome(None, JobError("worker_lost", "the worker was stopped"))
        return None

    def _train(self) -> Outcome:
        settings = self._context.settings
        trainer = TrainerProcess(
            [*self._context.trainer, str(self._workdir.spec)],
            cwd=self._workdir.path,
            env=clean_environment(os.environ, settings.trainer_threads),
            log_path=self._workdir.log,
            fence_s=settings.self_fence_s,
        )
        self._log.info("trainer started", pid=trainer.pid)
        self._recorder.start()
        self._uploader.start()
        try:
            while trainer.poll() is None and not self._fenced():
                self._turn(trainer)
            out_of_touch = trainer.poll() is None and self._lease.expired
            self._status = trainer.kill_tree()  # also what the trainer itself left running
            while not trainer.records_ended and not self._fenced():
                self._take_lines(trainer)
            self._finish_writing()
            if out_of_touch:  # a renewal under way may yet succeed; then the job need not wait to be reaped
                message = "the worker was out of touch with the database for too long"
                return Outcome(None, JobError("worker_lost", message), spend_attempt=True)
            return self._judge(trainer)
        finally:
            trainer.kill_tree()
            trainer.close()
            self._uploader.abandon()
            self._recorder.abandon()

    def _turn(self, trainer: TrainerProcess) -> None:
        """One turn of the loop: records in, wishes out."""
        trainer.keep_alive(self._lease.age)
        self._take_lines(trainer)
        desired = self._lease.desired
        command = "cancel" if desired == "cancel" else "pause"
        if desired != "run" or self._context.draining.is_set():
            if self._ladder is None or self._ladder.command != command:
                grace = self._context.settings.stop_grace_s
                self._log.info("stopping trainer", command=command, desired=desired)
                self._ladder = StopLadder(trainer, command, grace_s=grace, term_grace_s=_TERM_GRACE_S)
            self._ladder.tick()

    def _fenced(self) -> bool:
        return self._lease.expired or self._recorder.broken

    def _take_lines(self, trainer: TrainerProcess) -> None:
        if self._recorder.full:
            time.sleep(_TURN_S)
            return
        for line in trainer.read_lines(_TURN_S):
            try:
                record = parse_record(line)
            except ValidationError as error:
                self._log.warning("not a record", line=line[:200], error=str(error))
                continue
            if isinstance(record, CheckpointRecord):
                self._take_checkpoint(record)
            elif isinstance(record, ErrorRecord):
                self._error = record
            else:
                self._recorder.put(record)

    def _take_checkpoint(self, record: CheckpointRecord) -> None:
        try:
            directory = self._workdir.checkpoint(record.path)
        except ValueError as error:  # without the final one the job does not succeed
            self._log.warning("checkpoint not taken", step=record.step, error=str(error))
        else:
            self._uploader.put(record, directory)

    def _finish_writing(self) -> None:
        """Wait until records are written and checkpoints published, as long as that matters to anyone."""
        self._recorder.close()
        self._uploader.close()
        for thread in (self._recorder, self._uploader):
            while thread.is_alive() and not self._fenced() and self._lease.desired != "cancel":
                thread.join(_TURN_S)

    def _judge(self, trainer: TrainerProcess) -> Outcome:
        if self._recorder.failure is not None:
            message = f"the run's records could not be stored: {self._recorder.failure}"
            return Outcome(None, JobError("server_error", message), spend_attempt=True)
        return judge(
            Ending(
                status=self._status if self._status is not None else -signal.SIGKILL,
                desired=self._lease.desired,
                draining=self._context.draining.is_set(),
                final_published=self._uploader.final_published,
                upload_failure=self._uploader.failure,
                error=self._error,
                log_tail=trainer.log_tail(),
            )
        )

    def _settle(self, outcome: Outcome) -> bool:
        """Write the outcome, trying for as long as the lease holds; False when the job was not ours any more."""
        while not self._lease.expired and not self._recorder.fenced:
            try:
                with self._context.database.transaction() as session:
                    written = self._write(session, outcome)
            except (OperationalError, InterfaceError) as error:
                self._log.warning("outcome not written yet", error=str(error))
                time.sleep(1)
                continue
            if written and outcome.state is None and self._backoff() == 0:
                ring(self._context, [Bell(self._claim.job_id, self._claim.gpus, self._claim.gpu_type)])
            return written
        return False

    def _write(self, session: Session, outcome: Outcome) -> bool:
        status = self._status
        how = {
            "exit_code": status if status is not None and status >= 0 else None,
            "signal": -status if status is not None and status < 0 else None,
        }
        job, epoch, error = self._claim.job_id, self._claim.epoch, outcome.error
        if outcome.state is not None:
            return jobs.finish(session, job, epoch, outcome.state, error=error, **how)
        return jobs.hand_back(
            session,
            job,
            epoch,
            spend_attempt=outcome.spend_attempt,
            not_before_s=self._backoff() if outcome.spend_attempt else 0,
            error=error or JobError("server_error", "the attempt ended"),
            **how,
        )

    def _backoff(self) -> float:
        """Seconds before the next attempt: none after progress, more for each attempt that made none."""
        if self._uploader.published:
            return 0.0
        spent = self._context.settings.max_attempts - self._claim.attempts_left
        return _BACKOFF_S[min(max(spent, 0), len(_BACKOFF_S) - 1)]
