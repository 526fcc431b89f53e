"""The record protocol over a real pipe: what is written is what is parsed, a line each."""

from __future__ import annotations

import json
import os
import select
import threading
import time
from typing import Any

import pytest

from bgpo.errors import DiskFullError, GraderError, OutOfMemory, PeerLost, SpecError
from bgpo.records import (
    CheckpointRecord,
    EndRecord,
    ErrorRecord,
    ExitCode,
    LogRecord,
    MetricRecord,
    PhaseRecord,
    RecordWriter,
    SampleRecord,
    exit_code,
    exit_code_of,
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
    (LogRecord, {"type": "log", "level": "warn", "message": "line 1\nline 2", "data": {"step": 4, "traceback": None}}),
    (
        ErrorRecord,
        {
            "type": "error",
            "code": "oom",
            "phase": "training",
            "step": 4,
            "message": "m",
            "param": None,
            "details": "line 1\nline 2",
        },
    ),
    (EndRecord, {"type": "end", "status": 7}),
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


def test_nothing_follows_the_end() -> None:
    reader, writer = os.pipe()
    records = RecordWriter(writer)
    records.end(ExitCode.CANCELLED)
    records.end(ExitCode.FINISHED)
    records.emit("log", level="info", message="too late")
    os.close(writer)
    with open(reader, "rb") as lines:
        (end,) = map(parse_record, lines)
    assert isinstance(end, EndRecord)
    assert end.status == ExitCode.CANCELLED


def test_the_end_waits_for_no_writer_that_hangs() -> None:
    reader, writer = os.pipe()
    records = RecordWriter(writer)
    hanging = threading.Thread(target=lambda: records.emit("log", level="info", message="x" * 1_000_000))
    hanging.start()
    assert len(os.read(reader, 1)) == 1  # it is in the middle of its line
    records.end(ExitCode.CANCELLED)
    while not os.read(reader, 100_000).endswith(b"\n"):  # the one end of a line there is
        pass
    hanging.join()
    os.close(writer)
    os.close(reader)


@pytest.mark.parametrize("message", ["short", "ü" * 20_000, "\udcff" + '"' * 5_000, ""])
def test_a_short_record_survives_in_the_middle_of_a_long_one(message: str) -> None:
    """Two processes, one pipe: the other's error cuts a line of the main one in two and is whole itself."""
    reader, writer = os.pipe()
    fields = {"code": "oom", "phase": "training", "step": 4, "param": None}
    os.write(writer, b'{"type": "sample", "comple')
    RecordWriter(writer).emit_short("error", message, **fields)
    os.write(writer, b'tion": "x"}\n')
    os.close(writer)
    with open(reader, "rb") as stream:
        torn, line, rest = stream.read().splitlines(keepends=True)
    assert (torn, rest) == (b'{"type": "sample", "comple\n', b'tion": "x"}\n')
    assert len(line) < select.PIPE_BUF
    record = parse_record(line)
    assert isinstance(record, ErrorRecord)
    assert message.replace("\udcff", "?").startswith(record.message)
    assert len(record.message) == len(message) or len(record.message.encode()) > 1500
    assert record.model_dump(include=set(fields)) == fields


def test_a_code_stands_for_the_status_its_error_ends_with() -> None:
    codes = {kind.code: exit_code(kind("m")) for kind in (SpecError, GraderError, OutOfMemory, DiskFullError, PeerLost)}
    assert list(codes.values()) == [2, 5, 7, 9, 70]
    assert {code: exit_code_of(code) for code in codes} == codes


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
