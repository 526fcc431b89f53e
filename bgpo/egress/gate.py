"""How much may go out at once and in a minute, shared by the threads that ask the same receiver.

The rate is a window, not a bucket that fills: at most so many requests begin in any 60 seconds, which is how providers
count, and a batch after a pause may still go out at once.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

_MINUTE_S = 60.0


class Clock(Protocol):
    """Time that only goes forward, and waiting for it."""

    def now(self) -> float:
        """Seconds since some moment."""
        ...

    def sleep(self, seconds: float) -> None:
        """Return when so much time has passed."""
        ...


class SystemClock:
    """The machine's own."""

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


SYSTEM_CLOCK = SystemClock()


class Gate:
    """Lets so many callers in at a time, and so many requests begin in a minute."""

    def __init__(self, concurrency: int, requests_per_minute: int | None, clock: Clock = SYSTEM_CLOCK) -> None:
        self.clock = clock
        self._places = threading.BoundedSemaphore(concurrency)
        self._lock = threading.Lock()
        self._begun: deque[float] | None = None if requests_per_minute is None else deque(maxlen=requests_per_minute)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Wait for one of the places, and hold it."""
        with self._places:
            yield

    def turn(self) -> float:
        """Wait until one more request may begin; returns the seconds waited."""
        wait = self._reserve()
        if wait > 0:
            self.clock.sleep(wait)
        return wait

    def _reserve(self) -> float:
        if self._begun is None:
            return 0.0
        with self._lock:
            now = self.clock.now()
            begin = now if len(self._begun) < (self._begun.maxlen or 0) else max(now, self._begun[0] + _MINUTE_S)
            self._begun.append(begin)
            return begin - now
