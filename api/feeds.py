"""What streams tell of a job, read once for all who listen and not once for each.

A `Feed` is one kind of message of one job, in this process. Its listeners have each a place in it; whoever wants to
know what is behind a place gets a `Page`, and all who ask from the same place in the same turn get the same one: read
by one statement, written as bytes once. A turn begins when there may be something new (the job's row has another
version, or, for what does not change the row, twice a second), and pages of the turn before are forgotten. So nothing
here is derived from what was read before: a page is always what the database has behind a place, and a listener can
lose or repeat nothing that way.

Those who have heard all there is wait, without a timer or a thread each, and are woken some at a time, with a pause
between: a thousand at once would keep every other request waiting until the last of them has written. A slow listener
holds its place and no queue, and so costs no memory however far it is behind.

While the database fails listeners wait; other errors end their streams. It is not said here who may listen: the routes
look that up before a stream begins.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog
from fastapi.sse import format_sse_event
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from api.follow import OVER, POLL_S
from api.poll import Polls
from jobs.errors import NotFound
from jobs.repositories.polls import Version
from jobs.states import State

_WOKEN = 16  # listeners woken at once; each then writes, which takes a tenth of a millisecond
_PAUSE_S, _ROUND_S = 0.004, 0.25  # between them, and at most for all of a feed
_KEPT_PAGES = 8
_CHUNK = 32 * 1024  # of a page, as it is handed to a connection, which may hold one that its client does not read
_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Batch:
    """What there is to tell behind a place, as the database has it."""

    state: State
    """Of the job, read before the messages: of one that is over none can be missing."""
    messages: Sequence[tuple[str, str]]
    """Id and data of each."""
    place: int
    """Behind which there was nothing more."""
    full: bool
    """There may be more."""


@dataclass(frozen=True)
class Page:
    """The same, as listeners get it."""

    chunks: Sequence[bytes]
    """Server-sent events."""
    place: int
    full: bool
    over: bool
    """Nothing will come behind it."""
    turn: int
    """In which it was read."""


Read = Callable[[int], Batch]
"""Reads what is behind a place; runs in a thread. Raises NotFound when the job is gone."""


@dataclass(eq=False)
class _Waiter:
    """A listener that has heard all there was."""

    place: int
    page: asyncio.Future[Page | None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Feeds:
    """All feeds of this process. Call from the event loop."""

    def __init__(self, polls: Polls, stopping: threading.Event) -> None:
        self._polls, self._stopping = polls, stopping
        self._feeds: dict[tuple[str, str], Feed] = {}

    def __len__(self) -> int:
        """How many somebody listens to."""
        return len(self._feeds)

    @contextmanager
    def listening(self, kind: str, job_id: str, read: Read, *, in_row: bool) -> Iterator[Feed]:
        """The feed of a kind of a job, while the block runs.

        Args:
            read: the same for all who name this kind and job.
            in_row: whatever there is to tell also changes the job's row.
        """
        key = (kind, job_id)
        feed = self._feeds.get(key)
        if feed is None:
            feed = self._feeds[key] = Feed(self._polls, self._stopping, job_id, read, in_row=in_row)
        feed.listeners += 1
        try:
            yield feed
        finally:
            feed.listeners -= 1
            if not feed.listeners:
                feed.close()
                del self._feeds[key]


class Feed:
    """One kind of message of one job."""

    def __init__(self, polls: Polls, stopping: threading.Event, job_id: str, read: Read, *, in_row: bool) -> None:
        self._polls, self._stopping, self._job_id, self._read, self._in_row = polls, stopping, job_id, read, in_row
        self.listeners = 0
        self._turn = 0
        self._seen: Version | None = None
        """Of the job's row when this turn began; None = what the turn has read may not be all there was."""
        self._pages: OrderedDict[int, asyncio.Task[Page]] = OrderedDict()
        self._waiting: set[_Waiter] = set()
        self._watch: asyncio.Task[None] | None = None

    async def page(self, place: int) -> Page:
        """What is behind a place now, or was since this turn began."""
        task = self._pages.get(place)
        if task is None:
            task = self._pages[place] = asyncio.ensure_future(self._ask(place, self._turn))
            if len(self._pages) > _KEPT_PAGES:
                self._pages.popitem(last=False)
        return await asyncio.shield(task)  # others wait for it, too

    def is_behind(self, page: Page) -> bool:
        """Whether there may be something behind a page already."""
        return page.full or page.turn != self._turn

    @contextmanager
    def waiting(self, page: Page) -> Iterator[asyncio.Future[Page | None]]:
        """Wait for what comes behind a page that nothing is behind yet; None when the server stops."""
        waiter = _Waiter(page.place)
        if self._stopping.is_set():
            waiter.page.set_result(None)
        self._waiting.add(waiter)
        if self._watch is None:
            self._watch = asyncio.ensure_future(self._run())
        try:
            yield waiter.page
        finally:
            self._waiting.discard(waiter)
            waiter.page.cancel()

    def close(self) -> None:
        """Nobody listens any more."""
        for task in (self._watch, *self._pages.values()):
            if task is not None:
                task.cancel()

    async def _ask(self, place: int, turn: int) -> Page:
        try:
            return await run_in_threadpool(self._written, place, turn)
        except NotFound:
            return Page((), place, full=False, over=True, turn=turn)
        except SQLAlchemyError as error:
            _log.warning("feed.unread", job_id=self._job_id, error=str(error))
            self._seen = None
            return Page((), place, full=False, over=False, turn=turn)

    def _written(self, place: int, turn: int) -> Page:
        """Reads and writes a page, in a thread."""
        batch = self._read(place)
        chunks, waiting = [], b""
        for id_, data in batch.messages:
            waiting += format_sse_event(data_str=data, id=id_)
            if len(waiting) >= _CHUNK:
                chunks.append(waiting)
                waiting = b""
        if waiting:
            chunks.append(waiting)
        return Page(chunks, batch.place, batch.full, over=batch.state in OVER and not batch.full, turn=turn)

    async def _run(self) -> None:
        """Begins turns, and tells those who wait."""
        while not self._stopping.is_set():
            await asyncio.sleep(POLL_S)
            version = await self._polls.version(self._job_id)
            if version is None or version != self._seen or not self._in_row:
                self._seen = version
                self._turn += 1
                self._pages.clear()
                await self._tell()
        for waiter in self._waiting:
            if not waiter.page.done():
                waiter.page.set_result(None)

    async def _tell(self) -> None:
        places: defaultdict[int, list[_Waiter]] = defaultdict(list)
        for waiter in self._waiting:
            places[waiter.place].append(waiter)
        for place, waiters in places.items():
            try:
                page = await self.page(place)
            except Exception as error:  # task boundary: the listeners get it, each ends its stream
                for waiter in waiters:
                    if not waiter.page.done():
                        waiter.page.set_exception(error)
                continue
            if not page.chunks and not page.over:
                for waiter in waiters:
                    waiter.place = page.place
                continue
            pause = min(_PAUSE_S, _ROUND_S * _WOKEN / len(waiters))
            for first in range(0, len(waiters), _WOKEN):
                for waiter in waiters[first : first + _WOKEN]:
                    if not waiter.page.done():
                        waiter.page.set_result(page)
                await asyncio.sleep(pause)
