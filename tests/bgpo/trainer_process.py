"""`python -m bgpo.run` as a real process: its records as they come, commands, its end. Nothing waits without limit."""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bgpo.records import CheckpointRecord, MetricRecord, Record, parse_record

PATIENCE_S = 100.0
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "error"}


class TrainerProcess:
    """A supervised run (records on a descriptor of its own, commands on stdin), or with `supervised=False` one as from
    a shell: records on stdout, no input, and by several processes if asked for."""

    def __init__(self, spec: dict[str, Any], folder: Path, *, supervised: bool = True, processes: int = 1) -> None:
        path = folder / "spec.json"
        path.write_text(json.dumps(spec))
        self._deadline = time.monotonic() + PATIENCE_S
        self._stderr_path = folder / "stderr"
        reader, writer = os.pipe()
        flags = ["--record-fd", str(writer)] if supervised else []
        command = [sys.executable] if processes == 1 else launcher(processes)
        with self._stderr_path.open("wb") as stderr:
            self._process = subprocess.Popen(
                [*command, "-m", "bgpo.run", str(path), *flags],
                stdin=subprocess.PIPE if supervised else subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if supervised else writer,
                stderr=stderr,
                pass_fds=[writer],
                env=ENVIRONMENT,
            )
        os.close(writer)
        self._reader = reader
        self._selector = selectors.DefaultSelector()
        self._selector.register(reader, selectors.EVENT_READ)
        self._pending = b""
        self._ended = False
        self.records: list[Record] = []

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def stderr(self) -> str:
        return self._stderr_path.read_text("utf-8", "replace")

    def wait_for(self, condition: Callable[[Record], bool]) -> Record:
        """The first record from now on that meets the condition."""
        seen = len(self.records)
        while True:
            for record in self.records[seen:]:
                if condition(record):
                    return record
            seen = len(self.records)
            if not self._read():
                raise AssertionError(f"the run ended first: {self.records[-1:]} {self.stderr}")

    def command(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n".encode())
        self._process.stdin.flush()

    def close_stdin(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def finish(self) -> int:
        """Read all records to their end, wait for the process, and return its exit code."""
        while self._read():
            pass
        code = self._process.wait(max(self._deadline - time.monotonic(), 1))
        assert not self._pending, "the last line is not complete"
        return code

    def release(self) -> None:
        """Leave nothing behind, whatever happened."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        self._selector.close()
        os.close(self._reader)

    def _read(self) -> bool:
        """Read what there is, waiting for something. False at the end of the records."""
        if self._ended:
            return False
        if not self._selector.select(self._deadline - time.monotonic()):
            raise TimeoutError(f"no record for too long; the last: {self.records[-1:]} {self.stderr}")
        chunk = os.read(self._reader, 65536)
        self._ended = not chunk
        *lines, self._pending = (self._pending + chunk).split(b"\n")
        self.records += [parse_record(line) for line in lines]
        return bool(chunk)

    def metrics(self, split: str) -> dict[int, dict[str, float]]:
        """Values by step, without those that measure time or memory."""
        return {
            record.step: {
                name: value
                for name, value in record.values.items()
                if not name.startswith("seconds_") and name not in ("tokens_per_second", "peak_memory_bytes")
            }
            for record in self.records
            if isinstance(record, MetricRecord) and record.split == split
        }

    def checkpoints(self) -> list[CheckpointRecord]:
        return [record for record in self.records if isinstance(record, CheckpointRecord)]


def launcher(processes: int) -> list[str]:
    """`accelerate launch` on this machine. On CPUs too: `--cpu` would start one process, or ask for MPI."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
    options = {"num_processes": processes, "main_process_port": free_port(), "mixed_precision": "no"}
    return [*launch, *(f"--{name}={value}" for name, value in options.items()), "--dynamo_backend=no"]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def train_metric(step: int) -> Callable[[Record], bool]:
    """A condition: the metrics of a training step."""
    return lambda record: isinstance(record, MetricRecord) and record.split == "train" and record.step == step
