"""What `python -m bgpo.serve` and its parent say to each other: one JSON object a line.

The parent writes commands to its stdin: a batch of conversations to answer by one model with one sampler, and
cancellations. The process writes records: blocks as they are finished, then for each row `done` or `failed`, and
`idle` when the batch is over. A row that is cancelled gets nothing more. `beat` comes while a batch is decoded, so that
silence means that the process hangs. Nothing here imports torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from bgpo.spec import RolloutSpec


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ServedModel(_Line):
    """A model on this machine's disk."""

    key: str
    """Equal keys, equal weights."""
    path: str
    base: str | None = None
    """Directory of the base model, when `path` holds a LoRA adapter only."""


class Row(_Line):
    """One conversation to answer."""

    id: str
    messages: list[dict[str, str]]
    max_tokens: int = Field(ge=1)
    """The answer is cut to so many tokens; the canvas may be longer."""
    stop: list[str] = Field(default_factory=list)
    seed: int


class BatchCommand(_Line):
    """Answer these."""

    type: Literal["batch"] = "batch"
    model: ServedModel
    rollout: RolloutSpec
    rows: list[Row] = Field(min_length=1)


class CancelCommand(_Line):
    """Nobody waits for this row any more."""

    type: Literal["cancel"] = "cancel"
    id: str


class ReadyRecord(_Line):
    """The process takes batches."""

    type: Literal["ready"] = "ready"


class BeatRecord(_Line):
    """A step was made."""

    type: Literal["beat"] = "beat"


class BlockRecord(_Line):
    """The next piece of a row's text. `seq` counts from 0."""

    type: Literal["block"] = "block"
    id: str
    seq: int
    text: str


class DoneRecord(_Line):
    """A row's text is complete: its blocks, in order."""

    type: Literal["done"] = "done"
    id: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int


class FailedRecord(_Line):
    """A row cannot be answered."""

    type: Literal["failed"] = "failed"
    id: str
    code: str
    message: str
    param: str | None = None


class IdleRecord(_Line):
    """The batch is over; `models` are the keys of those in memory, the last used one last."""

    type: Literal["idle"] = "idle"
    models: list[str]


Command = Annotated[BatchCommand | CancelCommand, Field(discriminator="type")]
Record = Annotated[
    ReadyRecord | BeatRecord | BlockRecord | DoneRecord | FailedRecord | IdleRecord, Field(discriminator="type")
]
_COMMAND: TypeAdapter[Any] = TypeAdapter(Command)
_RECORD: TypeAdapter[Any] = TypeAdapter(Record)


def parse_command(line: bytes) -> Command:
    """Raises pydantic.ValidationError."""
    command: Command = _COMMAND.validate_json(line)
    return command


def parse_record(line: bytes) -> Record:
    """Raises pydantic.ValidationError."""
    record: Record = _RECORD.validate_json(line)
    return record
