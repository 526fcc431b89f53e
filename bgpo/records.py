"""The record protocol between the trainer and whoever started it, and the trainer's exit codes.

Each record is one JSON object on a line with `type`, `seq` (1, 2, ... of the process that wrote it) and `time` (unix
seconds). The trainer writes them to a file descriptor; the supervisor parses them with `parse_record`. Of several
processes only the main one writes, and the others when they fail. Nothing here imports torch.
"""

from __future__ import annotations

import json
import os
import select
import threading
import time
from collections.abc import Mapping
from enum import IntEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from bgpo.errors import (
    BgpoError,
    DataError,
    DiskFullError,
    GraderError,
    ModelError,
    NonFiniteError,
    OutOfMemory,
    SpecError,
    ZeroGradientError,
)

Phase = Literal["loading_model", "evaluating", "rollout", "grading", "training", "checkpointing", "exporting"]
Split = Literal["train", "validation"]
COMMANDS = ("checkpoint", "pause", "cancel")
_LAST_WRITE_S = 1.0


class ExitCode(IntEnum):
    """Exit status of `python -m bgpo.run`."""

    FINISHED = 0
    BAD_SPEC = 2
    BAD_MODEL = 3
    BAD_DATA = 4
    GRADER = 5
    NON_FINITE = 6
    OUT_OF_MEMORY = 7
    ZERO_GRADIENT = 8
    DISK_FULL = 9
    UNEXPECTED = 70
    STOPPED = 75
    """Stopped on request (pause, SIGTERM, or the parent is gone) with a checkpoint to resume from."""
    CANCELLED = 76
    """Stopped on `cancel`, nothing saved."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore")
    seq: int
    time: float


class PhaseRecord(_Record):
    """The run entered a phase."""

    type: Literal["phase"]
    phase: Phase
    step: int


class MetricRecord(_Record):
    """Values of one step; validation values come from an evaluation at that step."""

    type: Literal["metric"]
    step: int
    total_steps: int
    split: Split
    values: dict[str, float]


class SampleRecord(_Record):
    """One rollout with its reward."""

    type: Literal["sample"]
    step: int
    split: Split
    index: int
    prompt: str
    completion: str
    reward: float | None
    scores: dict[str, float]
    error: str | None


class CheckpointRecord(_Record):
    """A complete checkpoint directory exists at `path`."""

    type: Literal["checkpoint"]
    step: int
    path: str
    final: bool
    metrics: dict[str, float]
    best: bool = False
    """Its evaluation was the best of the run so far."""
    seconds: float = 0.0
    """It took to write."""


class LogRecord(_Record):
    """A message for people."""

    type: Literal["log"]
    level: Literal["info", "warn", "error"]
    message: str
    data: dict[str, Any] | None = None
    """The same for programs, and what is too long for a message."""


class ErrorRecord(_Record):
    """Why a process of the run failed; it exits after this. The code `peer_lost` is never the first cause: another
    process failed before, and may have said why in a record of its own, which can come earlier or later."""

    type: Literal["error"]
    code: str
    phase: str
    step: int
    message: str
    param: str | None = None
    details: str | None = None
    """A traceback of the user's own code."""


class EndRecord(_Record):
    """The main process is about to exit: its last record. A launcher hides the status of what it started."""

    type: Literal["end"]
    status: int
    """The exit status, see `ExitCode`."""


_EXIT_CODES: tuple[tuple[type[BgpoError], ExitCode], ...] = (
    (SpecError, ExitCode.BAD_SPEC),
    (ModelError, ExitCode.BAD_MODEL),
    (DataError, ExitCode.BAD_DATA),
    (GraderError, ExitCode.GRADER),
    (NonFiniteError, ExitCode.NON_FINITE),
    (OutOfMemory, ExitCode.OUT_OF_MEMORY),
    (ZeroGradientError, ExitCode.ZERO_GRADIENT),
    (DiskFullError, ExitCode.DISK_FULL),
)


def exit_code(error: BgpoError) -> ExitCode:
    """The exit status that says what `error` says."""
    return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), ExitCode.UNEXPECTED)


def exit_code_of(code: str) -> ExitCode:
    """The exit status of a process that failed with an error of this code: what the main process of a run would have
    ended with, had the error been its own."""
    return next((status for kind, status in _EXIT_CODES if kind.code == code), ExitCode.UNEXPECTED)


Record = Annotated[
    PhaseRecord | MetricRecord | SampleRecord | CheckpointRecord | LogRecord | ErrorRecord | EndRecord,
    Field(discriminator="type"),
]
_ADAPTER: TypeAdapter[Record] = TypeAdapter(Record)


def parse_record(line: bytes | str) -> Record:
    """Parse one line. Raises pydantic.ValidationError (a ValueError) when it is not a record."""
    return _ADAPTER.validate_json(line)


class RecordWriter:
    """Writes records to a file descriptor, a whole line at a time, from any thread.

    Several processes may write to one pipe if all but one write short records only (`emit_short`): the kernel writes
    those in one piece, though perhaps in the middle of a long one.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._seq = 0
        self._ended = False
        self._lock = threading.Lock()

    def emit(self, type_: str, **fields: Any) -> None:
        """Write one record. Raises BrokenPipeError when nobody reads any more, ValueError on NaN or infinity."""
        with self._lock:
            self._write(self._line(type_, fields))

    def emit_short(self, type_: str, message: str, **fields: Any) -> None:
        """Write one record in one piece, its message cut to fit, on a line of its own wherever another writer is."""
        with self._lock:
            line = b"\n" + self._line(type_, {"message": message, **fields})
            while len(line) > select.PIPE_BUF and message:
                message = message[: len(message) * 3 // 4]
                line = b"\n" + self._line(type_, {"message": message, **fields})
            self._write(line)

    def end(self, status: int) -> None:
        """Write the last record; later ones are dropped. So is this one when another thread hangs in writing."""
        if self._lock.acquire(timeout=_LAST_WRITE_S):
            try:
                self._write(self._line("end", {"status": int(status)}))
                self._ended = True
            finally:
                self._lock.release()

    def _line(self, type_: str, fields: Mapping[str, Any]) -> bytes:
        record = {"type": type_, "seq": self._seq + 1, "time": round(time.time(), 3), **fields}
        return (json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n").encode(errors="replace")

    def _write(self, data: bytes) -> None:
        if self._ended:
            return
        self._seq += 1
        while data:
            data = data[os.write(self._fd, data) :]
