"""The parts of the API's load benchmark, and all of it at a size that only shows that it runs."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.api_load import met
from benchmarks.serving.listeners import Heard, Reader, Verdict
from benchmarks.serving.polling import Poller
from benchmarks.serving.process import Memory, Shares
from benchmarks.serving.talking_trainer import __file__ as TRAINER
from bgpo.records import CheckpointRecord, EndRecord, MetricRecord, parse_record
from worker.uploader import verify

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"


def chunked(*texts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(text), text) for text in texts)


def test_a_stream_is_read_whatever_its_pieces_are() -> None:
    said = (b"id: 1\ndata: on", "e ü\n\n: ping\n\ndata: two\nid: 2\n\nda".encode(), b"ta: [DONE]\n\n")
    whole = HEAD + chunked(*said, b"")
    for size in (1, 2, 7, len(whole)):
        reader = Reader()
        found = [message for at in range(0, len(whole), size) for message in reader.feed(whole[at : at + size])]
        assert found == [("1", "one ü"), ("2", "two"), ("", "[DONE]")]
        assert (reader.comments, reader.ended) == (1, True)


def test_another_answer_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="404"):
        Reader().feed(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")


def test_the_verdict_counts_what_is_wrong() -> None:
    stored = {"a": 1, "b": 2, "c": 3}

    def verdict(*heard: tuple[str, str]) -> Verdict:
        found = Verdict()
        found.add([Heard(id_, data, 0.0) for id_, data in heard], stored)
        return found

    a, b, c = ("a", "1"), ("b", "2"), ("c", "3")
    assert verdict(a, b, c) == Verdict()
    assert verdict(a, b, c).exact
    assert verdict(a, c) == Verdict(lost=1)
    assert verdict(a, b, b, c) == Verdict(duplicated=1)
    assert verdict(a, c, b) == Verdict(disordered=1)
    assert verdict(a, b, ("c", "4")) == Verdict(different=1)
    assert verdict(a, b, c, ("d", "4")) == Verdict(different=1, disordered=1)
    assert not verdict(a, c).exact


def test_targets() -> None:
    assert (met(249.9, "< 250"), met(250, "< 250"), met(32, "<= 32"), met(5.0, ">= 6")) == (True, False, True, False)
    assert (met(0, "0"), met(1, "0"), met(1, None), met(float("nan"), "< 1")) == (True, False, None, False)


def test_a_poll_counts_from_when_it_was_due() -> None:
    """A server that answers the first poll late is charged for those that waited behind it."""

    async def run() -> Poller:
        held, left = asyncio.Event(), asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                while await reader.readuntil(b"\r\n\r\n"):
                    await held.wait()
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
            writer.close()
            left.set()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            poller = Poller(server.sockets[0].getsockname()[1], "/", 100, 1)
            await poller.start()
            await asyncio.sleep(0.3)  # what the server takes for its first answer
            held.set()
            async with asyncio.timeout(30):
                while len(poller.polls) < 10:
                    await asyncio.sleep(0.01)
                await poller.close()
                await left.wait()
        return poller

    poller = asyncio.run(run())
    assert poller.failed == 0
    dues = [due for due, _ in poller.polls]
    assert [round(late - early, 6) for early, late in pairwise(dues)] == [0.01] * (len(dues) - 1)
    assert poller.polls[5][1] >= 0.2, "due 0.05 s after the first, which took 0.3 s"
    assert len(poller.between(dues[0], dues[3])) == 3


def test_memory_and_shares_of_this_process() -> None:
    with Memory(os.getpid(), every_s=0.01) as memory:
        shares = Shares({"us": os.getpid()})
        kept = bytearray(os.urandom(1 << 25))
        while time.process_time() < 0.5 or shares.taken()["us"] < 0.01:
            pass
        taken = shares.taken()
    assert len(kept) == 1 << 25
    assert memory.peak() >= memory.samples[0][1] + (1 << 24)
    assert memory.at(0.0) == memory.samples[0][1]
    assert 0 < taken["us"] < 1.5


def test_the_trainer_tells_until_it_is_told_to_end(tmp_path: Path) -> None:
    spec, stop = tmp_path / "spec.json", tmp_path / "stop"
    spec.write_text(json.dumps({"output_dir": str(tmp_path / "output")}))
    reader, writer = os.pipe()
    options = ["--until", str(stop), "--every", "0.01", str(spec), "--record-fd", str(writer)]
    with subprocess.Popen(
        [sys.executable, "-I", "-S", TRAINER, *options], pass_fds=(writer,), stdout=subprocess.PIPE
    ) as process:
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            records = []
            for line in pipe:
                records.append(parse_record(line))
                if isinstance(records[-1], MetricRecord) and records[-1].split == "validation":
                    stop.touch()
        assert process.stdout is not None
        said = process.stdout.read().decode().splitlines()
    assert process.returncode == 0
    checkpoint, end = records[-2:]
    assert isinstance(checkpoint, CheckpointRecord)
    assert isinstance(end, EndRecord)
    assert (checkpoint.final, end.status, len(said)) == (True, 0, 2 * checkpoint.step)
    assert [record.seq for record in records] == list(range(1, len(records) + 1))
    verify(Path(checkpoint.path))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_of_it_runs(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    size = ["--listeners", "40", "--polls", "20", "--seconds", "4", "--step", "0.5", "--bytes", "30000000"]
    command = [sys.executable, "-m", "benchmarks.api_load", *size, "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr  # 1: a machine too busy for the times
    rows = {row["figure"]: row for row in json.loads(out.read_bytes())["rows"]}
    exact = [name for name in rows if name.startswith("messages ")]
    assert len(exact) == 4
    assert all(rows[name]["met"] for name in [*exact, "downloads with the right sha256"]), rows
    assert " 12 reconnects" in rows["messages lost"]["detail"]
    assert rows["API memory, peak"]["value"] > 0
