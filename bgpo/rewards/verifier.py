"""Equality of mathematical texts by math-verify, in processes of their own (`children.math_worker`).

A pool grows to as many processes as threads ask at once, and idle ones wait for the next pair. The processes end with
this one: their input closes.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

_WORKER = Path(__file__).parent / "children" / "math_worker.py"
START_SECONDS = 120.0
"""Importing SymPy on a busy machine."""
ANSWER_SECONDS = 60.0
"""Wall time of one pair; its processor time, which ends it earlier, is limited by the worker itself."""


class VerifierError(RuntimeError):
    """math-verify cannot be run, or cannot read the reference answer."""


class Verifier:
    """A pool of math-verify processes, safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []

    def equal(self, gold: str, answer: str) -> bool:
        """Whether an answer equals the reference. One that takes too long or breaks the process does not.

        Raises:
            VerifierError: the reference is to blame, or math-verify does not start.
        """
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        worker = worker or _Worker()
        verdict = worker.ask(gold, answer)
        if worker.alive:
            with self._lock:
                self._idle.append(worker)
        return verdict

    def close(self) -> None:
        """End the idle processes."""
        with self._lock:
            workers, self._idle = self._idle, []
        for worker in workers:
            worker.close()


@lru_cache(maxsize=1)
def shared_verifier() -> Verifier:
    """The pool of this process."""
    verifier = Verifier()
    atexit.register(verifier.close)
    return verifier


class _Worker:
    """One math-verify process; dead after an error."""

    def __init__(self) -> None:
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # Our own path is where math-verify is found, also when it is not installed beside the interpreter.
                env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C in a terminal is for the trainer, which then closes us
            )
        except OSError as error:
            raise VerifierError(f"math-verify does not start: {error}") from error
        self._buffer = b""
        self.alive = True
        if self._line(START_SECONDS) != b"ready":
            assert self._process.stderr is not None
            self._process.kill()
            reason = self._process.stderr.read()[-500:].decode(errors="replace").strip().rpartition("\n")[2]
            self.close()
            raise VerifierError(f"math-verify does not start: {reason or 'no answer'}")

    def ask(self, gold: str, answer: str) -> bool:
        """The verdict on one pair; see `Verifier.equal`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([gold, answer]).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self.close()
            raise VerifierError("the math-verify process has died") from None
        gold_read = self._line(ANSWER_SECONDS)
        if gold_read == b"true":
            verdict = self._line(ANSWER_SECONDS)
            if verdict is None:
                self.close()
            return verdict == b"true"
        if gold_read is None:
            self.close()
        raise VerifierError(f"math-verify cannot read the reference answer {gold[:80]!r}")

    def _line(self, seconds: float) -> bytes | None:
        """The next line the process writes; None when it ends or does not write one in time."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        deadline = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            if not poller.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return None
            chunk = os.read(descriptor, 4096)
            if not chunk:
                return None
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def close(self) -> None:
        """End the process."""
        self.alive = False
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with suppress(BrokenPipeError):  # what could not be sent does not matter any more
                    stream.close()
