"""Many listeners of one job: each hears everything once, in order, and the job is read for all of them together."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import AsyncExitStack, ExitStack, contextmanager
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa
import structlog

from api.event_stream import EventStream
from api.feeds import Batch, Feed, Feeds, Page
from api.follow import POLL_S
from api.poll import Polls
from benchmarks.serving.listeners import Listener, Verdict
from jobs.db import Database
from jobs.repositories import events, logs
from jobs.repositories.jobs import Claim, JobError
from jobs.states import State
from jobs.tables import Job
from tests.api.test_metrics import tell
from tests.service import Service

URL = "/v1/fine_tuning/jobs"
KINDS = ("events", "metrics", "logs")
PATIENCE_S = 120
Message = MutableMapping[str, Any]


def listen(service: Service, job_id: str, kind: str, kept: dict[str, str], *, by_header: bool = True) -> Listener:
    port = urlsplit(service.url).port
    assert port is not None
    return Listener(port, f"{URL}/{job_id}/{kind}/stream", kept, by_header=by_header)


async def until(check: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not check():
            await asyncio.sleep(0.02)


def stored(service: Service, job_id: str, kind: str) -> dict[str, Any]:
    """What is stored, by the id that a stream gives it, oldest first."""
    found: list[dict[str, Any]] = []
    with service.http() as http:
        params: dict[str, Any] = {"limit": 100}
        while True:
            page = http.get(f"{URL}/{job_id}/{'logs' if kind == 'logs' else 'events'}", params=params).json()
            found += page["data"]
            if not page["has_more"]:
                break
            params["after"] = page["last_id"]
        points = http.get(f"{URL}/{job_id}/metrics").json()["data"]
    if kind == "logs":
        return {line["id"]: line for line in found}
    found.reverse()
    if kind == "events":
        return {event["id"]: event for event in found}
    by_step = {point["step"]: point for point in points}
    return {event["id"]: by_step[event["data"]["step"]] for event in found if event["type"] == "metrics"}


def talk(service: Service, claim: Claim, step: int) -> None:
    """What a step of a job says; now and then more than a page holds."""
    tell(service, claim, step, loss=step / 7, reward=1.0)
    with service.ctx.db.transaction() as session:
        for number in range(300 if step % 8 == 3 else 2):
            events.append(session, claim.job_id, claim.epoch, "info", f"note {step}.{number} ü")
        lines = 250 if step % 8 == 5 else 2
        said: list[tuple[Any, str]] = [("info", f"line {step}.{number}") for number in range(lines)]
        assert logs.append(session, claim.job_id, claim.epoch, 1000 * step, said)


def test_fifty_listeners_hear_everything_once(start_service: Callable[..., Service], database_url: str) -> None:
    """They come at different times, and every third is cut off again and again and goes on where it was."""
    service = start_service(database_url=database_url)
    job_id = service.create()["id"]
    claim = service.claim(job_id)
    talk(service, claim, 1)
    draw = random.Random(3)

    async def run() -> list[tuple[str, Listener]]:
        kept: dict[str, str] = {}
        listeners = [
            (KINDS[number % 3], listen(service, job_id, KINDS[number % 3], kept, by_header=number % 2 == 0))
            for number in range(50)
        ]
        coming = iter(listeners)
        for step in range(2, 22):
            for _, listener in islice(coming, 4):
                await listener.connect()
            await asyncio.to_thread(talk, service, claim, step)
            for number in range(0, 50, 3):
                if listeners[number][1].heard and draw.random() < 0.3:
                    await listeners[number][1].cut()
        await asyncio.to_thread(service.finish, claim, "failed", JobError("oom", "No memory."))
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(listener.over for _, listener in listeners))
        for _, listener in listeners:
            await listener.close()
        return listeners

    listeners = asyncio.run(run())
    assert sum(listener.connections for _, listener in listeners) > 60, "some were cut"
    for kind in KINDS:
        expected, verdict = stored(service, job_id, kind), Verdict()
        assert len(expected) >= 20
        for some, listener in listeners:
            if some == kind:
                verdict.add(listener.heard, expected)
        assert verdict == Verdict(), kind


def test_a_feed_is_forgotten_with_its_last_listener(service: Service) -> None:
    job_id = service.create()["id"]
    feeds: Feeds = service.server.config.app.state.feeds  # type: ignore[union-attr]

    async def run() -> None:
        both = [listen(service, job_id, "events", {}) for _ in range(2)]
        for listener in both:
            await listener.connect()
            await until(lambda listener=listener: listener.heard)  # type: ignore[misc]
        assert len(feeds) == 1
        await both[0].close()
        with service.http() as http:
            await asyncio.to_thread(http.patch, f"{URL}/{job_id}", json={"metadata": {"a": "b"}})
        count = len(both[1].heard)
        await asyncio.to_thread(note, service.ctx.db, job_id)
        await until(lambda: len(both[1].heard) > count)
        assert len(feeds) == 1
        await both[1].close()
        await until(lambda: not len(feeds))

    asyncio.run(run())


def note(db: Database, job_id: str) -> None:
    with db.transaction() as session:
        events.append(session, job_id, None, "info", "note")


def test_listeners_outlast_a_database_that_fails(start_service: Callable[..., Service], database_url: str) -> None:
    service = start_service(database_url=database_url)
    job_id = service.create()["id"]

    @contextmanager
    def away(table: str) -> Iterator[None]:
        rename(table, "away")
        try:
            yield
        finally:
            rename("away", table)

    def rename(old: str, new: str) -> None:
        with service.ctx.db.transaction() as session:
            session.execute(sa.text(f"ALTER TABLE {old} RENAME TO {new}"))

    async def run() -> Listener:
        listener = listen(service, job_id, "events", {})
        await listener.connect()
        await until(lambda: listener.heard)
        with away("job_events"), structlog.testing.capture_logs() as said:
            with service.ctx.db.transaction() as session:
                session.execute(sa.update(Job).where(Job.id == job_id).values(priority=1))
            await until(lambda: any(line["event"] == "feed.unread" for line in said))
        count = len(listener.heard)
        note(service.ctx.db, job_id)
        await until(lambda: len(listener.heard) > count)
        with service.http() as http:
            await asyncio.to_thread(http.post, f"{URL}/{job_id}/cancel")
        async with asyncio.timeout(PATIENCE_S):
            await listener.over
        await listener.close()
        return listener

    listener = asyncio.run(run())
    assert listener.connections == 1
    verdict = Verdict()
    verdict.add(listener.heard, stored(service, job_id, "events"))
    assert verdict == Verdict()


class Source:
    """Lines to read, and how often they were."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.reads = 0
        self.state = State.RUNNING
        self.error: Exception | None = None
        self._lock = threading.Lock()

    def read(self, place: int) -> Batch:
        with self._lock:
            self.reads += 1
        if self.error is not None:
            raise self.error
        found = [(str(number), line) for number, line in enumerate(self.lines, 1) if number > place]
        return Batch(self.state, found, len(self.lines), full=False)


def on_a_feed(db: Database, source: Source, use: Callable[[Feeds, Source], Awaitable[None]]) -> None:
    """Run something with feeds on a real database."""

    async def run() -> None:
        polls = Polls(db)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await use(Feeds(polls, threading.Event()), source)
        finally:
            await asyncio.to_thread(polls.close)

    asyncio.run(run())


def listening(feeds: Feeds, source: Source) -> Any:
    return feeds.listening("logs", "ftjob-none", source.read, in_row=False)


async def hear(feed: Feed, count: int) -> list[bytes]:
    """What a listener hears, until it has heard so many pages with something in them."""
    heard: list[bytes] = []
    page = await feed.page(0)
    while True:
        heard += page.chunks
        if len(heard) >= count:
            return heard
        if feed.is_behind(page):
            page = await feed.page(page.place)
            continue
        with feed.waiting(page) as coming:
            told = await coming
            assert told is not None
            page = told


def test_a_log_is_read_once_for_all(db: Database) -> None:
    """Forty listeners, who would each have read it in each turn."""

    async def use(feeds: Feeds, source: Source) -> None:
        with ExitStack() as stack:
            began = time.monotonic()
            each = [hear(stack.enter_context(listening(feeds, source)), 2) for _ in range(40)]
            tasks = [asyncio.ensure_future(one) for one in each]
            source.lines.append("one")
            await until(lambda: source.reads >= 5)
            source.lines.append("two")
            heard = await asyncio.gather(*tasks)
            turns = (time.monotonic() - began) / POLL_S + 1
            assert source.reads <= 2 * turns + 1  # behind the old place and behind the new one
        assert all(b"".join(one) == b"data: one\nid: 1\n\ndata: two\nid: 2\n\n" for one in heard)

    on_a_feed(db, Source(), use)


def test_whoever_was_slow_asks_again(db: Database) -> None:
    """What came while a listener was still writing is not waited for."""

    async def use(feeds: Feeds, source: Source) -> None:
        with listening(feeds, source) as feed:
            page = await feed.page(0)
            assert not feed.is_behind(page)
            quick = asyncio.ensure_future(hear(feed, 1))
            source.lines.append("one")
            await quick
            assert feed.is_behind(page)
            assert (await feed.page(page.place)).chunks == [b"data: one\nid: 1\n\n"]

    on_a_feed(db, Source(), use)


def test_an_error_of_ours_ends_all_who_wait(db: Database) -> None:
    async def use(feeds: Feeds, source: Source) -> None:
        with ExitStack() as stack:
            each = [hear(stack.enter_context(listening(feeds, source)), 1) for _ in range(3)]
            tasks = [asyncio.ensure_future(one) for one in each]
            await until(lambda: source.reads >= 2)
            source.error = ArithmeticError("ours")
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(one) for one in ended] == [ArithmeticError] * 3

    on_a_feed(db, Source(), use)


class Client:
    """The other side of one response."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.left = asyncio.Event()

    async def receive(self) -> Message:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def text(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


async def follow(stack: AsyncExitStack, stream: EventStream) -> tuple[Client, asyncio.Task[None]]:
    client = Client()
    task = asyncio.ensure_future(stream({"type": "http"}, client.receive, client.send))
    stack.callback(task.cancel)
    return client, task


def test_silence_is_broken_by_comments_and_the_end_is_said(db: Database) -> None:
    async def use(feeds: Feeds, source: Source) -> None:
        async with AsyncExitStack() as stack:
            client, task = await follow(stack, EventStream(listening(feeds, source), 0, silence_s=0.05))
            await until(lambda: client.text.count(b": ping\n\n") >= 3)
            source.lines.append("one")
            await until(lambda: b"one" in client.text)
            source.state = State.SUCCEEDED
            await task
        said = client.text.replace(b": ping\n\n", b"")
        assert said == b"data: one\nid: 1\n\ndata: [DONE]\n\n"
        assert client.sent[-1].get("more_body", False) is False
        assert not len(feeds)

    on_a_feed(db, Source(), use)


def test_whoever_leaves_is_told_nothing_more(db: Database) -> None:
    async def use(feeds: Feeds, source: Source) -> None:
        async with AsyncExitStack() as stack:
            client, task = await follow(stack, EventStream(listening(feeds, source), 0))
            await until(lambda: source.reads >= 2)
            client.left.set()
            await task
        assert client.text == b""
        assert not len(feeds)

    on_a_feed(db, Source(), use)


def test_large_pages_are_written_in_parts(db: Database) -> None:
    """So that a client that does not read costs no more memory than a part."""

    async def use(feeds: Feeds, source: Source) -> None:
        source.lines = [f"{number} {'x' * 2000}" for number in range(100)]
        with listening(feeds, source) as feed:
            page: Page = await feed.page(0)
        assert len(page.chunks) > 4
        assert max(map(len, page.chunks)) < 40_000
        assert b"".join(page.chunks).count(b"\n\n") == 100

    on_a_feed(db, Source(), use)
