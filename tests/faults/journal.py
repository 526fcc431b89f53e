"""The append-only log that trainers of the fault suite write and the oracle reads; standard library only.

    <folder>/journal/<job>.jsonl  START epoch resumed alive | STEP epoch n value | SAVE epoch n | END epoch status

Each line is one `write` to a file opened with O_APPEND, so that lines of trainers that should never have run at once
stand whole beside each other. Times are CLOCK_MONOTONIC, one clock for all processes of a machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["START", "STEP", "SAVE", "END"]


@dataclass(frozen=True)
class Line:
    """One line; the fields that a kind does not have are None."""

    kind: Kind
    at: int
    """Monotonic nanoseconds."""
    pid: int
    epoch: int
    resumed: int | None = None
    """START: the step it goes on from."""
    alive: tuple[int, ...] = ()
    """START: trainers of earlier epochs that still live."""
    n: int | None = None
    value: str | None = None
    status: int | None = None


def path_of(folder: Path, job_id: str) -> Path:
    """The journal of a job."""
    return folder / "journal" / f"{job_id}.jsonl"


def append(folder: Path, job_id: str, kind: Kind, epoch: int, **fields: Any) -> None:
    """Write one line."""
    path = path_of(folder, job_id)
    path.parent.mkdir(exist_ok=True)
    line = {"kind": kind, "at": time.monotonic_ns(), "pid": os.getpid(), "epoch": epoch, **fields}
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, json.dumps(line).encode() + b"\n")
    finally:
        os.close(fd)


def read(folder: Path, job_id: str) -> list[Line]:
    """All lines, in the order they were written."""
    path = path_of(folder, job_id)
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [Line(**{**line, "alive": tuple(line.get("alive", ()))}) for line in lines]


def begin(folder: Path, job_id: str, epoch: int, resumed: int) -> None:
    """Write the START line, with those trainers of earlier epochs that still live: there must be none."""
    earlier = {line.pid for line in read(folder, job_id) if line.kind == "START" and line.epoch != epoch}
    append(folder, job_id, "START", epoch, resumed=resumed, alive=[pid for pid in earlier if lives(pid)])


def lives(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def job_and_epoch(output_dir: str) -> tuple[str, int]:
    """Whose attempt writes to this folder, `.../<job>/<epoch>/output`."""
    attempt = Path(output_dir).parent
    return attempt.parent.name, int(attempt.name)


# The stand-in's arithmetic: each step's value depends on all before it, so that a step lost, repeated with another
# result, or taken from the wrong checkpoint shows in every later value and in the final weights.


def first_value(seed: int) -> str:
    """The state before step 1."""
    return hashlib.sha256(f"seed {seed}".encode()).hexdigest()


def next_value(value: str, step: int) -> str:
    """The state after a step."""
    return hashlib.sha256(f"{value} {step}".encode()).hexdigest()


def values(seed: int, steps: int) -> list[str]:
    """The states after steps 0, 1, ... `steps`."""
    found = [first_value(seed)]
    for step in range(1, steps + 1):
        found.append(next_value(found[-1], step))
    return found


def metrics_of(value: str) -> dict[str, float]:
    """What a step reports, as training and as validation metrics."""
    return {"reward_mean": int(value[:8], 16) / 2**32, "loss": int(value[8:16], 16) / 2**32}


def weights_of(value: str, size: int) -> bytes:
    """The weights file of a checkpoint."""
    return (value.encode() * (size // len(value) + 1))[:size]
