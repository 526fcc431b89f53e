"""The process below a generator that has the models: `python -m bgpo.serve`, started when it is needed.

It lives as a trainer does (`worker.process`): a clean environment, records on a pipe, wardens that end it with us.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Sequence

import structlog
from pydantic import ValidationError

from bgpo.serving.protocol import BatchCommand, CancelCommand, Record, parse_record
from jobs.settings import Settings
from worker.process import TrainerProcess, clean_environment

SERVE = (sys.executable, "-m", "bgpo.serve")
_MAX_LOG_BYTES = 4 * 2**20
_log = structlog.get_logger(__name__)


class Serving:
    """Use it from one thread, which must live as long as the process does."""

    def __init__(self, settings: Settings, command: Sequence[str] = SERVE) -> None:
        self._settings, self._command = settings, command
        self._process: TrainerProcess | None = None
        self._heard_at = 0.0

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Of the warden above it."""
        return self._process.pid if self._process is not None else None

    @property
    def silent_s(self) -> float:
        """Seconds since it was last asked or heard."""
        return time.monotonic() - self._heard_at

    def ask(self, batch: BatchCommand) -> None:
        """Give it a batch, starting it first if it is not there."""
        if not self.running:
            self.stop()
            self._start()
        self._heard_at = time.monotonic()
        self._send(batch)

    def cancel(self, completion_id: str) -> None:
        """Nobody waits for this one any more."""
        self._send(CancelCommand(id=completion_id))

    def records(self, timeout_s: float) -> list[Record]:
        """What it says within the time; returns as soon as it says something."""
        if self._process is None:
            return []
        found = []
        for line in self._process.read_lines(timeout_s):
            try:
                found.append(parse_record(line))
            except ValidationError as error:  # something in it printed to the pipe
                _log.warning("a record that is none", error=str(error))
        if found:
            self._heard_at = time.monotonic()
        return found

    def stop(self) -> None:
        """End it, with all it started."""
        if self._process is not None:
            status = self._process.kill_tree()
            _log.info("serving process ended", status=status)
            self._process.close()
            self._process = None

    def _start(self) -> None:
        settings = self._settings
        folder = settings.home / "generator"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        log_path = folder / f"serve-{os.getpid()}.log"
        if log_path.exists() and log_path.stat().st_size > _MAX_LOG_BYTES:
            log_path.unlink()
        options = {
            "--device": settings.generator_device,
            "--dtype": settings.generator_dtype,
            "--threads": settings.generator_threads,
            "--max-models": settings.generator_models,
            "--max-bytes": settings.generator_max_bytes,
        }
        given = [f"{name}={value}" for name, value in options.items() if value is not None]
        self._process = TrainerProcess(
            [*self._command, *given],
            cwd=folder,
            env=clean_environment(os.environ, settings.generator_threads),
            log_path=log_path,
            fence_s=math.inf,  # a lease that ends costs a completion its answer here, nothing else
        )
        _log.info("serving process started", pid=self._process.pid)

    def _send(self, command: BatchCommand | CancelCommand) -> None:
        if self._process is not None:
            self._process.send(command.model_dump_json())
