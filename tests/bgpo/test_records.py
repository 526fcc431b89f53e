"""The record protocol over a real pipe: what is written is what is parsed, a line each."""

from __future__ import annotations

import json
import os
import threading
import time
from typing import Any

import pytest

from bgpo.records import (
    CheckpointRecord,
    ErrorRecord,
    ExitCode,
    LogRecord,
    MetricRecord,
    PhaseRecord,
    RecordWriter,
    SampleRecord,
    parse_record,
)

RECORDS: list[tuple[type, dict[str, Any]]] = [
    (PhaseRecord, {"type": "phase", "phase": "rollout", "step": 3}),
    (MetricRecord, {"type": "metric", "step": 3, "total_steps": 9, "split": "train", "values": {"loss": -0.5}}),
    (
        SampleRecord,
        {
            "type": "sample",
            "step": 3,
            "split": "validation",
            "index": 0,
            "prompt": "数独\n\u2028",
            "completion": '"\x00\ufffd',
            "reward": None,
            "scores": {},
            "error": "other_error: no",
        },
    ),
    (
        CheckpointRecord,
        {
            "type": "checkpoint",
            "step": 9,
            "path": "/x",
            "final": True,
            "metrics": {"a": 1.0},
            "best": True,
            "seconds": 0.5,
        },
    ),
    (LogRecord, {"type": "log", "level": "warn", "message": "line 1\nline 2"}),
    (ErrorRecord, {"type": "error", "code": "oom", "phase": "training", "step": 4, "message": "m", "param": None}),
]


def written(emit: list[dict[str, Any]]) -> list[bytes]:
    """The lines that come out of a pipe, read by somebody slower than the writer."""
    reader, writer = os.pipe()
    content = bytearray()

    def read() -> None:
        while chunk := os.read(reader, 1000):
            content.extend(chunk)

    thread = threading.Thread(target=read)
    thread.start()
    records = RecordWriter(writer)
    for fields in emit:
        records.emit(fields["type"], **{name: value for name, value in fields.items() if name != "type"})
    os.close(writer)
    thread.join()
    os.close(reader)
    return bytes(content).splitlines(keepends=True)


def test_every_record_comes_out_as_it_went_in() -> None:
    before = time.time()
    lines = written([fields for _, fields in RECORDS])
    assert len(lines) == len(RECORDS)
    for number, (line, (kind, fields)) in enumerate(zip(lines, RECORDS, strict=True), 1):
        assert line.endswith(b"\n")
        record = parse_record(line)
        assert type(record) is kind
        assert record.model_dump(exclude={"seq", "time"}) == fields
        assert record.seq == number
        assert before - 0.001 <= record.time <= time.time() + 0.001


def test_records_larger_than_a_pipe_arrive_whole() -> None:
    long = {**RECORDS[2][1], "completion": "ü" * 200_000}
    (line,) = written([long])
    record = parse_record(line)
    assert isinstance(record, SampleRecord)
    assert record.completion == long["completion"]


def test_nan_is_never_written() -> None:
    reader, writer = os.pipe()
    with pytest.raises(ValueError, match="JSON"):
        RecordWriter(writer).emit("metric", step=1, total_steps=1, split="train", values={"x": float("nan")})
    os.close(writer)
    assert os.read(reader, 100) == b""
    os.close(reader)


def test_a_reader_that_is_gone_is_noticed() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        RecordWriter(writer).emit("log", level="info", message="anyone?")
    os.close(writer)


@pytest.mark.parametrize(
    "line",
    ["", "{", "[]", '{"type": "metric"}', '{"type": "nonsense", "seq": 1, "time": 0}', "loss 0.5", b"\xff"],
)
def test_a_line_that_is_no_record_is_a_value_error(line: str | bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - pydantic's messages are its own
        parse_record(line)


def test_fields_of_a_newer_trainer_are_ignored() -> None:
    record = parse_record(json.dumps({**RECORDS[4][1], "seq": 1, "time": 0.0, "colour": "red"}))
    assert isinstance(record, LogRecord)


def test_exit_codes_are_stable() -> None:
    """Supervisors and scripts compare numbers."""
    assert {code.name: int(code) for code in ExitCode} == {
        "FINISHED": 0,
        "BAD_SPEC": 2,
        "BAD_MODEL": 3,
        "BAD_DATA": 4,
        "GRADER": 5,
        "NON_FINITE": 6,
        "OUT_OF_MEMORY": 7,
        "ZERO_GRADIENT": 8,
        "DISK_FULL": 9,
        "UNEXPECTED": 70,
        "STOPPED": 75,
        "CANCELLED": 76,
    }
