"""Waiting for chat completions: one thread reads the rows of all that wait, and tells each request what is new.

Generators write into the database and cannot call us, so it is asked again and again: often while something happens,
less often while nothing does. A request that ends early, because its caller has left or its time is over, takes its
completion out of the queue.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog
from sqlalchemy.exc import SQLAlchemyError

from jobs.context import Context
from jobs.errors import ServiceError, Unavailable
from jobs.repositories import completions
from jobs.repositories.completions import OPEN
from jobs.services.completions import error_of
from jobs.tables import Completion

_FASTEST_S, _SLOWEST_S, _SLOWER = 0.02, 0.25, 1.25
_IDLE_S = 0.5
_OUTAGE_S = 1.0
_CLOSE_S = 2.0
_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class News:
    """What is new about a completion: blocks, and at the end its row or an error."""

    blocks: Sequence[str] = ()
    end: Completion | None = None
    error: ServiceError | None = None

    @property
    def is_last(self) -> bool:
        """Nothing comes after it."""
        return self.end is not None or self.error is not None


@dataclass(eq=False)
class Watch:
    """One request that waits. `close` it in any case."""

    completion: Completion
    loop: asyncio.AbstractEventLoop
    news: asyncio.Queue[News] = field(default_factory=asyncio.Queue)
    seen: int = 0
    """Blocks told of."""


class Waiters:
    """All that wait in this process, and the thread that reads for them."""

    def __init__(self, ctx: Context, stopping: threading.Event) -> None:
        self._ctx, self._stopping = ctx, stopping
        self._watches: dict[str, Watch] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="completions", daemon=True)
        self._thread.start()

    def watch(self, completion: Completion) -> Watch:
        """Wait for a completion, from the event loop."""
        watch = Watch(completion, asyncio.get_running_loop())
        with self._changed:
            self._watches[completion.id] = watch
            self._changed.notify()
        return watch

    def forget(self, watch: Watch) -> None:
        """Wait no longer."""
        with self._changed:
            self._watches.pop(watch.completion.id, None)

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        pause = _FASTEST_S
        while True:
            with self._changed:
                if self._closed:
                    return
                known = len(self._watches)
                self._changed.wait(pause if known else _IDLE_S)
                watches = dict(self._watches)
            if len(watches) > known:
                pause = _FASTEST_S
            if not watches:
                continue
            if self._stopping.is_set():
                self._give_up(watches)
                continue
            try:
                happened = self._look(watches)
            except SQLAlchemyError as error:
                _log.warning("completions.unread", error=str(error))
                pause = _OUTAGE_S
                continue
            except Exception:  # thread boundary: all requests wait for this thread
                _log.exception("completions.failed")
                pause = _OUTAGE_S
                continue
            pause = _FASTEST_S if happened else min(pause * _SLOWER, _SLOWEST_S)

    def _look(self, watches: dict[str, Watch]) -> bool:
        """Read what is new; whether anything is."""
        with self._ctx.db.read() as session:
            now = completions.progress(session, watches)
            over = [id_ for id_ in watches if id_ not in now or now[id_].state not in OPEN]
            rows = completions.get(session, over) if over else {}
            more = {id_: watch.seen for id_, watch in watches.items() if id_ in now and now[id_].blocks > watch.seen}
            blocks = completions.blocks(session, more)
        for id_, watch in watches.items():
            new, row = blocks.get(id_, []), rows.get(id_)
            if not new and id_ not in over:
                continue
            watch.seen += len(new)
            error: ServiceError | None = None
            if row is not None:
                error = error_of(row)
            elif id_ in over:
                error = Unavailable("The completion is not there any more.")
            self._tell(watch, News(new, row if error is None else None, error))
        return bool(blocks or over)

    def _give_up(self, watches: dict[str, Watch]) -> None:
        error = Unavailable("The service is stopping; try again.")
        for watch in watches.values():
            self._tell(watch, News(error=error))

    def _tell(self, watch: Watch, news: News) -> None:
        if news.is_last:
            self.forget(watch)
        watch.loop.call_soon_threadsafe(watch.news.put_nowait, news)
