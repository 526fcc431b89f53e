"""One trainer process: spawn it apart from the worker, talk to it, stop it for certain.

The trainer gets its own session (so the whole tree can be signalled and counted), an environment built from an
allow-list (no database, Redis or API secrets), records on an inherited pipe, commands on stdin, stdout and stderr in a
log file. It dies with the thread that started it (`worker.launch`).

Not covered: a descendant that calls setsid itself leaves the session; only a cgroup would hold it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from worker import launch

# What a numerical program needs from its surroundings. Everything else, secrets first, stays here.
_ALLOWED = frozenset(
    {"PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV"}
    | {"BGPO_ALLOW_UNSANDBOXED"}  # the operator's consent, which the trainer's graders ask for
)
_ALLOWED_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "NCCL_", "TORCH_", "PYTORCH_", "TRITON_")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_MAX_LINE = 8 * 2**20


def clean_environment(source: Mapping[str, str], threads: int | None) -> dict[str, str]:
    """The trainer's environment: allow-listed variables of `source`, thread counts, offline model loading."""
    env = {key: value for key, value in source.items() if key in _ALLOWED or key.startswith(_ALLOWED_PREFIXES)}
    env |= {"PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    # Threads that spin while they wait starve the ones they wait for when cores are shared: 10x slower was measured.
    env["OMP_WAIT_POLICY"] = "PASSIVE"
    if threads is not None:
        env |= dict.fromkeys(_THREAD_VARIABLES, str(threads))
    return env


def session_members(session_id: int) -> list[int]:
    """Ids of the living (not zombie) processes of a session."""
    return [pid for pid, session, state in _processes() if session == session_id and state not in "ZX"]


def _processes() -> Iterator[tuple[int, int, str]]:
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            stat = Path(entry.path, "stat").read_text()
        except OSError:  # ended while we looked
            continue
        # The command name (field 2) may hold spaces and parentheses; fields count from behind its last parenthesis.
        state, _ppid, _pgrp, session = stat.rpartition(")")[2].split()[:4]
        yield int(entry.name), int(session), state


class TrainerProcess:
    """A running trainer. Create, read, signal and reap it from one thread: it dies when that thread ends."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        log_path: Path,
        fence_s: float,
        lock_fds: Sequence[int] = (),
        processes: int = 1,
    ) -> None:
        """Start `command` with `--record-fd N` appended, or, by several processes, with `--record-path FIFO`.

        Args:
            fence_s: everything is killed when `keep_alive` was not called for so many seconds.
            lock_fds: descriptors that live for as long as anything of the trainer does.
            processes: above 1 the command runs under `accelerate launch`.
        """
        read_fd, write_fd = os.pipe()
        guard = [sys.executable, "-I", "-S", str(Path(launch.__file__).resolve()), str(os.getpid())]
        self.log_path = log_path
        try:
            with log_path.open("ab") as log:
                self._popen = subprocess.Popen(
                    [*guard, *command, "--record-fd", str(write_fd)],
                    cwd=cwd,
                    env=dict(env),
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    pass_fds=(write_fd, *lock_fds),
                    start_new_session=True,
                )
        except BaseException:
            os.close(read_fd)
            raise
        finally:
            os.close(write_fd)
        if self._popen.stdin is None:  # never: it was asked for above
            raise RuntimeError("the trainer has no stdin")
        self._stdin: IO[bytes] = self._popen.stdin
        self._records: int | None = read_fd
        self._partial = b""

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def records_ended(self) -> bool:
        """Every writer of the record pipe is gone and all it held was read."""
        return self._records is None

    def read_lines(self, timeout: float) -> list[bytes]:
        """Complete record lines that arrive within `timeout` seconds; returns as soon as there are some."""
        if self._records is None:
            if self._popen.poll() is None:
                time.sleep(timeout)  # closed its records but lives: nothing to wait on but time
            return []
        ready, _, _ = select.select([self._records], [], [], timeout)
        if not ready:
            return []
        chunk = os.read(self._records, 2**20)
        if not chunk:
            os.close(self._records)
            self._records = None
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        if len(self._partial) > _MAX_LINE:  # a record is never this long: drop it instead of growing without bound
            self._partial = b""
        return [line for line in lines if line]

    def send(self, command: str) -> None:
        """Write one command line to the trainer's stdin; a trainer that is already gone is no error."""
        with contextlib.suppress(BrokenPipeError, ValueError):  # ValueError: closed by an earlier failure
            self._stdin.write(command.encode() + b"\n")
            self._stdin.flush()

    def keep_alive(self, age: float = 0.0) -> None:
        """The lease is good: it was surely ours `age` seconds ago, and `fence_s` counts from then."""

    def poll(self) -> int | None:
        """Exit status (negative = signal number) or None while it runs."""
        return self._popen.poll()

    def signal_tree(self, number: signal.Signals) -> None:
        """Send a signal to every process of the trainer's session."""
        for pid in session_members(self.pid):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def kill_tree(self) -> int:
        """SIGKILL the session until nothing of it lives; returns the trainer's exit status."""
        while session_members(self.pid):
            self.signal_tree(signal.SIGKILL)
            time.sleep(0.01)
        return self._popen.wait()

    def close(self) -> None:
        """Release the pipes of an ended trainer."""
        with contextlib.suppress(BrokenPipeError):  # an unsent command: nobody is left to read it
            self._stdin.close()
        if self._records is not None:
            os.close(self._records)
            self._records = None

    def log_tail(self, limit: int = 4096) -> str:
        """The end of what the trainer printed, at most `limit` bytes, from a line start where possible."""
        with self.log_path.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - limit))
            data = log.read()
        if size > limit and b"\n" in data:
            data = data.split(b"\n", 1)[1]
        return data.decode(errors="replace").strip()


class StopLadder:
    """Stops a trainer with rising force: command, then SIGTERM, then SIGKILL. Call `tick` until it has exited."""

    def __init__(self, trainer: TrainerProcess, command: str, *, grace_s: float, term_grace_s: float) -> None:
        self.command = command
        self._trainer = trainer
        self._steps = [(grace_s, signal.SIGTERM), (grace_s + term_grace_s, signal.SIGKILL)]
        self._start = time.monotonic()
        trainer.send(command)

    def tick(self) -> None:
        """Take the next step when its time has come."""
        while self._steps and time.monotonic() - self._start >= self._steps[0][0]:
            self._trainer.signal_tree(self._steps.pop(0)[1])
