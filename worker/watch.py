"""Watches over one running trainer until it has ended: records in, wishes out, and an end to what hangs.

The loop talks to the trainer and the clock only: whatever may block has a thread of its own. What stops a trainer, each
its own way:

    the user cancels or pauses, the worker drains   command, SIGTERM, SIGKILL, with time between (`StopLadder`)
    its deadline                                    the same, so that a retry with more time goes on from there
    it reports nothing for too long                 SIGKILL: nothing it would do can be relied on
    checkpoints no longer fit the artifact store    SIGKILL: no further step could be kept
    the lease cannot be renewed                     SIGKILL, before anybody else may claim the job

While it loads the model there is nothing to save, and every stop is a SIGKILL.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import structlog
from pydantic import BaseModel, ValidationError

from bgpo.errors import PeerLost
from bgpo.records import (
    CheckpointRecord,
    EndRecord,
    ErrorRecord,
    LogRecord,
    PhaseRecord,
    Record,
    SampleRecord,
    parse_record,
)
from jobs.failures import JobError
from worker.context import WorkerContext
from worker.lease import Lease
from worker.outcome import Ending
from worker.paths import hide, hide_in
from worker.printed import LogReader
from worker.process import StopLadder, TrainerProcess
from worker.recorder import Recorder
from worker.uploader import Uploader
from worker.warden import now
from worker.workdir import WorkDir

TURN_S = 0.2
TERM_GRACE_S = 30.0
_LOADING = "loading_model"
_R = TypeVar("_R", bound=BaseModel)
_log = structlog.get_logger(__name__)


class Watch:
    """Watches from the thread that started the trainer."""

    def __init__(
        self,
        context: WorkerContext,
        trainer: TrainerProcess,
        workdir: WorkDir,
        lease: Lease,
        recorder: Recorder,
        uploader: Uploader,
        *,
        first_step: int,
        deadline: float | None,
        places: Mapping[str, str],
    ) -> None:
        """Watch a trainer that has just started.

        Args:
            first_step: the step it goes on from.
            deadline: time (`worker.warden.now`) after which it has to stop.
            places: what stands for which folder in its messages (`worker.paths`).
        """
        self._context, self._trainer, self._workdir = context, trainer, workdir
        self._lease, self._recorder, self._uploader = lease, recorder, uploader
        self._deadline, self._places = deadline, places
        self._log_reader = LogReader(trainer.log_path, places)
        self._phase, self._step = _LOADING, first_step
        self._heard_at = time.monotonic()
        self._kernel_kills = _kernel_kills()
        self._ladder: StopLadder | None = None
        self._ended_for: JobError | None = None
        self._killed = False
        self._error: ErrorRecord | None = None
        self._end: EndRecord | None = None

    @property
    def fenced(self) -> bool:
        """Nothing of this attempt may go on."""
        return self._lease.expired or self._recorder.broken

    def run(self) -> Ending:
        """Watch until the trainer and all it started are gone, and what it left to write is written."""
        while self._trainer.poll() is None and not self.fenced and not self._killed:
            self._turn()
        self._killed |= self._trainer.poll() is None
        status = self._trainer.kill_tree()  # also what the trainer itself left running
        while not self._trainer.records_ended and not self.fenced:
            self._take_lines()
        self._take_printed(to_end=True)
        self._finish_writing()
        if self._end is not None and status >= 0:
            status = self._end.status  # a launcher has statuses of its own
        return Ending(
            status=status,
            desired=self._lease.desired,
            draining=self._context.draining.is_set(),
            ended_for=self._ended_for,
            killed_by_us=self._killed or self._ladder is not None,
            out_of_host_memory=_kernel_kills() > self._kernel_kills,
            final_published=self._uploader.final_published,
            upload_failure=self._uploader.failure,
            error=self._error,
            phase=self._phase,
            step=self._step,
            log_tail=self._log_tail(),
        )

    def _turn(self) -> None:
        self._trainer.keep_alive(self._lease.age)
        self._take_lines()
        if not self._recorder.full:
            self._take_printed()
        command = self._wish()
        if command is None:
            self._end_what_hangs()
        elif self._phase == _LOADING:
            self._kill()
        else:
            self._stop(command)

    def _wish(self) -> str | None:
        """The command the trainer should have had by now."""
        if self._lease.desired == "cancel":
            return "cancel"
        if self._deadline is not None and now() > self._deadline and self._ended_for is None:
            message = "the job ran for as long as rl.resources.max_runtime_s allows"
            self._ended_for = JobError("deadline", message)
        return "pause" if self._lease.desired == "pause" or self._context.draining.is_set() or self._ended_for else None

    def _stop(self, command: str) -> None:
        if self._ladder is None or self._ladder.command != command:
            _log.info("stopping trainer", pid=self._trainer.pid, command=command, desired=self._lease.desired)
            grace = self._context.settings.stop_grace_s
            self._ladder = StopLadder(self._trainer, command, grace_s=grace, term_grace_s=TERM_GRACE_S)
        self._ladder.tick()

    def _end_what_hangs(self) -> None:
        settings = self._context.settings
        limit = settings.stall_loading_s if self._phase == _LOADING else settings.stall_s
        failure = self._uploader.failure
        full = self._uploader.given_up and failure is not None and failure.code == "disk_full"
        if time.monotonic() - self._heard_at > limit:
            self._ended_for = JobError("stalled", f"the trainer reported nothing for {limit:g} seconds")
        elif full:
            self._ended_for = failure
        else:
            return
        self._kill()

    def _kill(self) -> None:
        _log.warning("killing trainer", pid=self._trainer.pid, phase=self._phase, step=self._step)
        self._killed = True

    def _take_lines(self) -> None:
        if self._recorder.full:  # it is we who do not listen
            time.sleep(TURN_S)
            self._heard_at = time.monotonic()
            return
        for line in self._trainer.read_lines(TURN_S):
            self._heard_at = time.monotonic()
            try:
                self._take(parse_record(line))
            except ValidationError as error:
                _log.warning("not a record", line=line[:200], error=str(error))

    def _take_printed(self, *, to_end: bool = False) -> None:
        printed = self._log_reader.read(to_end=to_end)
        if printed is not None:
            self._recorder.put(printed)

    def _take(self, record: Record) -> None:
        match record:
            case CheckpointRecord():
                self._take_checkpoint(record)
            case ErrorRecord():
                if self._error is None or self._error.code == PeerLost.code or self._says_more(record, self._error):
                    self._error = _hidden(record, self._places, "message", "details")
            case EndRecord():
                self._end = record
            case LogRecord():
                self._recorder.put(_hidden(record, self._places, "message", "data"))
            case SampleRecord(error=str()):
                self._recorder.put(_hidden(record, self._places, "error"))
            case _:
                if isinstance(record, PhaseRecord):
                    self._phase, self._step = record.phase, record.step
                self._recorder.put(record)

    @staticmethod
    def _says_more(record: ErrorRecord, known: ErrorRecord) -> bool:
        """Processes that fail together say the same, and all but the main one in few words."""
        return record.code == known.code and record.details is not None and known.details is None

    def _take_checkpoint(self, record: CheckpointRecord) -> None:
        try:
            directory = self._workdir.checkpoint(record.path)
        except ValueError as error:  # without the final one the job does not succeed
            _log.warning("checkpoint not taken", step=record.step, error=str(error))
        else:
            self._uploader.put(record, directory, self._recorder.mark())

    def _finish_writing(self) -> None:
        """Wait until records are written and checkpoints published, as long as that matters to anyone."""
        self._recorder.close()
        self._uploader.close()
        drained_at: float | None = None
        for thread in (self._recorder, self._uploader):
            while thread.is_alive() and not self.fenced and self._lease.desired != "cancel":
                thread.join(TURN_S)
                if self._context.draining.is_set():  # a store that hangs must not keep the worker from leaving
                    drained_at = drained_at or time.monotonic()
                    if time.monotonic() - drained_at > self._context.settings.stop_grace_s:
                        return

    def _log_tail(self) -> str:
        try:
            return hide(self._trainer.log_tail(), self._places)
        except OSError:  # the folder of an attempt that was taken from us is tidied up
            return ""


def _hidden(record: _R, places: Mapping[str, str], *fields: str) -> _R:
    """The record without the folders of `places` in these fields."""
    return record.model_copy(update={name: hide_in(getattr(record, name), places) for name in fields})


def _kernel_kills() -> int:
    """How many processes the kernel has killed for memory since the machine started; 0 where it does not say."""
    try:
        found = re.search(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text("ascii"), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0
