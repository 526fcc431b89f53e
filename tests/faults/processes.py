"""Processes of a scenario: started with a log each, killed by id, and found again by the mark they carry.

The mark is TMPDIR: it is among the few variables that a worker hands on to its trainer, each process hands it on to
what it starts whatever session that is in, and a scenario's folder is nobody else's. So whoever still carries it when
a scenario is over was left behind by it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
PATIENCE_S = 120.0
"""How long a scenario waits for anything: far more than it takes on a busy machine, so that only a hang reaches it."""


def wait_for(check: Callable[[], T], what: str, timeout: float = PATIENCE_S, every: float = 0.02) -> T:
    """The first true result of `check`."""
    deadline = time.monotonic() + timeout
    while not (result := check()):
        if time.monotonic() > deadline:
            raise AssertionError(f"never happened within {timeout:.0f} s: {what}")
        time.sleep(every)
    return result


def wait_empty(look: Callable[[], Collection[object]], what: str, timeout: float = 60.0) -> None:
    """Until `look` finds nothing any more."""
    deadline = time.monotonic() + timeout
    while found := look():
        assert time.monotonic() < deadline, f"{what}: {found}"
        time.sleep(0.05)


class Process:
    """A running command."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        env: Mapping[str, str],
        folder: Path,
        *,
        user: str | None = None,
        stdin: bytes | None = None,
    ) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                command,
                env=dict(env),
                cwd=folder,
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                user=user,
            )
        if stdin is not None and self._popen.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it ended already: who polls sees that
                self._popen.stdin.write(stdin)
                self._popen.stdin.close()

    @property
    def pid(self) -> int:
        return self._popen.pid

    def running(self) -> bool:
        """Whether it has not ended."""
        return self._popen.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process itself; none to one that has ended."""
        self._popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL it, and nothing else: what it started is to notice by itself."""
        self._popen.kill()
        self._popen.wait()

    def terminate(self, timeout: float = PATIENCE_S) -> int:
        """SIGTERM; the exit status."""
        self._popen.terminate()
        return self._popen.wait(timeout)

    def tail(self, lines: int = 30) -> str:
        """The end of its log."""
        text = self.log.read_text(errors="replace").splitlines()[-lines:]
        return "\n".join(line if len(line) < 2000 else f"{line[:300]} ... {line[-1500:]}" for line in text)


def marked(mark: Path) -> dict[int, str]:
    """Living processes with this TMPDIR, with their command lines."""
    wanted, found = f"TMPDIR={mark}".encode(), {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            if wanted in Path(entry.path, "environ").read_bytes().split(b"\0"):
                command = Path(entry.path, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found[int(entry.name)] = command.strip()
        except OSError:  # ended while we looked (a zombie's environment is empty), or not ours to read
            continue
    return found


def kill_marked(mark: Path) -> None:
    """SIGKILL whatever carries the mark, until nothing does."""
    deadline = time.monotonic() + 30
    while left := marked(mark):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise AssertionError(f"cannot be killed: {left}")
        time.sleep(0.02)
