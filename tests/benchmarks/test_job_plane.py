"""The parts of the job plane's benchmark, and all of it at a size that only shows that it runs."""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from benchmarks.job_plane import noop_trainer
from benchmarks.job_plane.fill import QUEUED, copy_jobs
from benchmarks.job_plane.load import drive, get
from benchmarks.job_plane.rows import quantile, row
from bgpo.records import CheckpointRecord, EndRecord, parse_record
from jobs.db import Database
from jobs.ids import JOB, is_id, new_id
from jobs.repositories import jobs
from jobs.resources import Slot
from jobs.tables import Job
from worker.uploader import verify

FIGURES = {
    "submit_to_start_p50",
    "submit_to_start_p99",
    "jobs_started_per_s",
    "claims_per_s",
    "polls_per_s",
    "metric_rows_per_s",
    "poll_cost_ratio",
    "first_page_cost_ratio",
    "claim_next_cost_ratio",
}


@pytest.fixture
def answering() -> Iterator[Callable[[bytes], int]]:
    """Serves one fixed response to whatever is asked, on a port."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def serve(response: bytes) -> None:
        # OSError: the end of the test, or a client that has heard enough.
        with contextlib.suppress(OSError), listener.accept()[0] as connection:
            while connection.recv(65536):
                for part in (response[:20], response[20:]):
                    connection.sendall(part)

    def start(response: bytes) -> int:
        threads.append(threading.Thread(target=serve, args=(response,), daemon=True))
        threads[-1].start()
        port: int = listener.getsockname()[1]
        return port

    yield start
    listener.close()
    for thread in threads:
        thread.join(10)


def test_quantiles() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert [quantile(values, q) for q in (0.5, 0.99, 1.0)] == [50.0, 99.0, 100.0]
    assert quantile([7.0], 0.5) == 7.0
    assert math.isnan(quantile([], 0.5))
    assert row("f", "sqlite", 1234.5678, "ms")["value"] == 1235.0


def test_the_load_generator_counts_whole_answers(answering: Callable[[bytes], int]) -> None:
    port = answering(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")
    load = drive(port, get("/"), connections=1, seconds=0.1)
    assert len(load.latencies_s) >= 1
    assert load.rate == pytest.approx(len(load.latencies_s) / load.seconds)
    assert sum(load.latencies_s) <= load.seconds * 1.01
    assert load.client_cpu_s > 0


def test_the_load_generator_takes_no_other_answer(answering: Callable[[bytes], int]) -> None:
    port = answering(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
    with pytest.raises(RuntimeError, match="404"):
        drive(port, get("/"), connections=1, seconds=5)


def test_the_trainer_says_what_a_worker_wants_to_hear(tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({"output_dir": str(tmp_path / "output")}))
    reader, writer = os.pipe()
    command = [sys.executable, "-I", "-S", noop_trainer.__file__, str(spec), "--record-fd", str(writer)]
    subprocess.run(command, pass_fds=(writer,), check=True)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        records = [parse_record(line) for line in pipe]
    checkpoint, end = records[-2:]
    assert isinstance(checkpoint, CheckpointRecord)
    assert isinstance(end, EndRecord)
    assert (checkpoint.final, end.status) == (True, 0)
    verify(Path(checkpoint.path))


def test_copies_are_jobs_of_their_own(db: Database) -> None:
    original = new_id(JOB)
    values: dict[str, Any] = {
        "id": original,
        "project_id": "p",
        "created_at": 1.0,
        "request_hash": "0",
        "model": "tiny",
        "training_file": "file-x",
        "seed": 1,
        "method": {"type": "reinforcement"},
        "recipe": {"seed": 1},
        "tuned_model": "ft:tiny",
        "total_steps": 1,
        "state": "succeeded",
        "desired": "run",
        "attempts_left": 3,
        "max_attempts": 3,
        "epoch": 4,
    }
    with db.transaction() as session:
        session.add(Job(**values))
    made = copy_jobs(db, original, 3, **QUEUED) + copy_jobs(db, original, 2, state="failed")
    assert len(set(made)) == 5
    assert all(is_id(JOB, job_id) for job_id in made)
    with db.transaction() as session:
        claimed = [jobs.claim_next(session, Slot("w"), 60) for _ in range(4)]
        assert [None if claim is None else (claim.job_id, claim.epoch) for claim in claimed] == [
            *((job_id, 1) for job_id in made[:3]),
            None,
        ]
        failed = session.scalars(sa.select(Job).where(Job.state == "failed")).all()
        assert [job.recipe for job in failed] == [{"seed": 1}] * 2


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_all_of_it_runs(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks.job_plane", "--quick", "--database", kind, "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_bytes())
    rows = result["rows"]
    assert {row["figure"] for row in rows} >= FIGURES
    assert all(0 < row["value"] < 1e9 for row in rows)
    assert {row["database"] for row in rows} == {kind}
    started = next(row for row in rows if row["figure"] == "jobs_started_per_s")
    assert ", 0 not succeeded" in started["detail"]
    assert {"load_before", "load_after", "postgresql_fsync"} <= result["conditions"].keys()
