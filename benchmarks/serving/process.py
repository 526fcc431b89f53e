"""What a process takes while something is measured: its memory, sampled, and its CPU time; and what others take.

Read from /proc, so Linux only.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.job_plane.load import cpu_s

_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


def rss_bytes(pid: int) -> int:
    """Memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE


def busy_s() -> float:
    """Seconds that all processors of the machine have worked, since it started."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICKS


@dataclass
class Memory:
    """Samples a process's memory in a thread while the block runs."""

    pid: int
    every_s: float = 0.1
    samples: list[tuple[float, int]] = field(default_factory=list)
    """Of the monotonic clock, and bytes."""
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._take()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._take()

    def peak(self, begin: float = 0.0, end: float = float("inf")) -> int:
        """Most between two times."""
        return max(value for time_, value in self.samples if begin <= time_ <= end)

    def at(self, moment: float) -> int:
        """The last sample before a time, or the first one of all."""
        return [value for time_, value in self.samples if time_ <= moment or time_ == self.samples[0][0]][-1]

    def _run(self) -> None:
        while not self._stop.wait(self.every_s):
            self._take()

    def _take(self) -> None:
        self.samples.append((time.monotonic(), rss_bytes(self.pid)))


class Shares:
    """Shares of a core that processes take, from the making to `taken`."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._pids = pids
        self._before = self._read()

    def taken(self) -> dict[str, float]:
        """Of each process, and of all that is none of them."""
        after = self._read()
        seconds = after.pop("") - self._before[""]
        busy = after.pop("busy") - self._before["busy"]
        shares = {name: (value - self._before[name]) / seconds for name, value in after.items()}
        return shares | {"others": busy / seconds - sum(shares.values())}

    def _read(self) -> dict[str, float]:
        taken = {name: cpu_s(pid) for name, pid in self._pids.items()}
        return taken | {"busy": busy_s(), "": time.monotonic()}
