"""The record protocol between the trainer and whoever started it, and the trainer's exit codes.

Each record is one JSON object on a line with `type`, `seq` (1, 2, ...) and `time` (unix seconds). The trainer writes
them to a file descriptor; the supervisor parses them with `parse_record`. Nothing here imports torch.
"""

from __future__ import annotations

import json
import os
import time
from enum import IntEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from bgpo.errors import (
    BgpoError,
    DataError,
    GraderError,
    ModelError,
    NonFiniteError,
    OutOfMemory,
    SpecError,
    ZeroGradientError,
)

Phase = Literal["loading_model", "evaluating", "rollout", "grading", "training", "checkpointing"]
Split = Literal["train", "validation"]
COMMANDS = ("checkpoint", "pause", "cancel")


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


class ErrorRecord(_Record):
    """Why the run failed; the process exits after it."""

    type: Literal["error"]
    code: str
    phase: str
    step: int
    message: str
    param: str | None = None


_EXIT_CODES: tuple[tuple[type[BgpoError], ExitCode], ...] = (
    (SpecError, ExitCode.BAD_SPEC),
    (ModelError, ExitCode.BAD_MODEL),
    (DataError, ExitCode.BAD_DATA),
    (GraderError, ExitCode.GRADER),
    (NonFiniteError, ExitCode.NON_FINITE),
    (OutOfMemory, ExitCode.OUT_OF_MEMORY),
    (ZeroGradientError, ExitCode.ZERO_GRADIENT),
)


def exit_code(error: BgpoError) -> ExitCode:
    """The exit status that says what `error` says."""
    return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), ExitCode.UNEXPECTED)


Record = Annotated[
    PhaseRecord | MetricRecord | SampleRecord | CheckpointRecord | LogRecord | ErrorRecord, Field(discriminator="type")
]
_ADAPTER: TypeAdapter[Record] = TypeAdapter(Record)


def parse_record(line: bytes | str) -> Record:
    """Parse one line. Raises pydantic.ValidationError (a ValueError) when it is not a record."""
    return _ADAPTER.validate_json(line)


class RecordWriter:
    """Writes records to a file descriptor, one `write` per line, so lines never interleave."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._seq = 0

    def emit(self, type_: str, **fields: Any) -> None:
        """Write one record. Raises BrokenPipeError when nobody reads any more, ValueError on NaN or infinity."""
        self._seq += 1
        record = {"type": type_, "seq": self._seq, "time": round(time.time(), 3), **fields}
        data = (json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n").encode()
        while data:
            data = data[os.write(self._fd, data) :]
