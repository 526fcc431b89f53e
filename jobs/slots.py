"""Work of a process that is bounded twice: so many pieces at a time, and so long each.

A thread cannot be ended from outside. Work that is too late goes on by itself, holding its slot until its own limits
end it, so that the bound on how much runs at once holds whatever happens.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from typing import TypeVar

from jobs.errors import Unavailable

_T = TypeVar("_T")
_RETRY_AFTER_S = 2


class Busy(Unavailable):
    """All slots are taken."""

    code = "busy"

    @property
    def headers(self) -> Mapping[str, str]:
        return {"retry-after": str(_RETRY_AFTER_S)}


class Slots:
    """So many pieces of work at a time.

    Args:
        kind: what the pieces are, in the plural, for whoever gets none.
    """

    def __init__(self, count: int, kind: str) -> None:
        self._free = threading.BoundedSemaphore(count)
        self._kind = kind

    def run(self, work: Callable[[], _T], *, within_s: float, wait_s: float = 0.0) -> _T:
        """The result of `work`, which runs in a thread of its own.

        Args:
            within_s: longest time it may take.
            wait_s: longest wait for a slot.

        Raises:
            Busy: there is no slot.
            TimeoutError: it is not finished in time.
        """
        if not self._free.acquire(timeout=wait_s):
            raise Busy(f"As many {self._kind} run here as may at once: try again in a moment.")
        results: queue.SimpleQueue[tuple[_T | None, BaseException | None]] = queue.SimpleQueue()

        def target() -> None:
            try:
                results.put((work(), None))
            except BaseException as error:  # thread boundary: raised again below
                results.put((None, error))
            finally:
                self._free.release()

        threading.Thread(target=target, name=self._kind, daemon=True).start()
        try:
            result, problem = results.get(timeout=within_s)
        except queue.Empty:
            raise TimeoutError from None
        if problem is not None:
            raise problem
        return result  # type: ignore[return-value]
