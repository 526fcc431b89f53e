"""How a run is told to stop: commands on stdin, signals, and the end of the parent.

`checkpoint` and `pause` (also SIGTERM, SIGINT, and end of input in a supervised run) take effect when the step in
progress is done. `cancel` ends the process at once: nothing is saved, so there is nothing to wait for.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

from bgpo.records import ExitCode


class Control:
    """Flags that the loop reads between steps."""

    def __init__(
        self, on_cancel: Callable[[], None] = lambda: None, on_stop: Callable[[], None] = lambda: None
    ) -> None:
        """Say what else is to happen.

        Args:
            on_cancel: called before a cancelled process ends, in the thread that reads the commands.
            on_stop: called when a stop is requested, also from a signal handler.
        """
        self._on_cancel, self._on_stop = on_cancel, on_stop
        self._stop = threading.Event()
        self._checkpoint = threading.Event()

    @property
    def stop_requested(self) -> bool:
        """The run should write a checkpoint and end."""
        return self._stop.is_set()

    def take_checkpoint_request(self) -> bool:
        """True once for each `checkpoint` command (several before a look count as one)."""
        requested = self._checkpoint.is_set()
        self._checkpoint.clear()
        return requested

    def listen(self, *, supervised: bool, commands: bool = True) -> None:
        """Install signal handlers and start reading commands.

        In a supervised run the end of stdin means that the parent is gone. Unsupervised, stdin is read only when it
        is not a terminal, and its end means nothing. Several processes of a run may have one stdin: only the main one
        reads `commands`.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        if commands and (supervised or not os.isatty(0)):
            threading.Thread(target=self._read_commands, args=(supervised,), daemon=True, name="commands").start()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._request_stop()
        # A second Ctrl-C should not wait for the step to end.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def _read_commands(self, supervised: bool) -> None:
        # os.read, not sys.stdin: a buffered reader's lock in a daemon thread can abort interpreter shutdown.
        pending = b""
        while chunk := _read():
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                self._obey(line.strip().decode("utf-8", "replace"))
        if supervised:
            self._request_stop()

    def _request_stop(self) -> None:
        self._stop.set()
        self._on_stop()

    def _obey(self, command: str) -> None:
        if command == "cancel":
            try:
                self._on_cancel()
            finally:
                os._exit(ExitCode.CANCELLED)
        elif command == "pause":
            self._request_stop()
        elif command == "checkpoint":
            self._checkpoint.set()


def _read() -> bytes:
    try:
        return os.read(0, 4096)
    except OSError:
        return b""  # stdin is closed, the same as its end
