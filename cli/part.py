"""One part of the embedded stack: a child process with a log file that cannot outlive us.

Every part runs in its own session, so that a Ctrl-C at the terminal reaches only us and we stop the parts in order, and
under `worker.launch`, so that a SIGKILL of this process ends it too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def guarded(command: Sequence[str]) -> list[str]:
    """`command`, to be run so that it dies with this process's current thread."""
    return [sys.executable, "-P", "-m", "worker.launch", str(os.getpid()), *command]


class Part:
    """A running part. Start it from the main thread."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path,
        log_path: Path,
        stdin: bytes = b"",
    ) -> None:
        self.name = name
        self.log_path = log_path
        with log_path.open("ab") as log:
            self._popen = subprocess.Popen(
                guarded(command),
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if self._popen.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it ended already: whoever polls sees that
                self._popen.stdin.write(stdin)
                self._popen.stdin.close()

    @property
    def pid(self) -> int:
        return self._popen.pid

    def poll(self) -> int | None:
        """Exit status, negative for a signal, or None while it runs."""
        return self._popen.poll()

    def terminate(self) -> None:
        """Ask it to stop."""
        if self.poll() is None:
            self._popen.terminate()

    def wait(self, timeout: float) -> bool:
        """Whether it ended within `timeout` seconds."""
        try:
            self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """End it now, with everything left in its session."""
        with contextlib.suppress(ProcessLookupError):  # the group is already empty
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()

    def log_tail(self, lines: int = 15) -> str:
        """The last lines it wrote."""
        with self.log_path.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(0, size - 16384))
            text = log.read().decode(errors="replace")
        return "\n".join(text.splitlines()[-lines:])
