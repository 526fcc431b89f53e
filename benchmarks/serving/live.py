"""Many listeners and many polls on one API process while a job runs, and what that cost.

The job is run by a real worker, with a trainer that only tells (`talking_trainer`). Listeners of its events, metrics
and logs connect while it runs; from when the last of them hears, polls and memory are measured for a while, and
meanwhile some listeners are cut off and reconnect. Then the job ends, and each listener must have heard exactly what is
stored.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.job_plane.plane import Plane, create_body
from benchmarks.job_plane.rows import quantile, row
from benchmarks.serving.listeners import Listener, Verdict
from benchmarks.serving.polling import Poller
from benchmarks.serving.process import Memory, Shares

TRAINER = Path(__file__).with_name("talking_trainer.py")
KINDS = ("events", "metrics", "logs")
_JOBS = "/v1/fine_tuning/jobs"
_CONNECTING = 20
"""Listeners that connect at once."""
_POLLERS = 32
_PATIENCE_S = 180.0
_MIB = 1 << 20


@dataclass(frozen=True)
class Amounts:
    """How much load, for how long."""

    listeners: int = 1000
    polls_per_s: float = 200.0
    seconds: float = 60.0
    step_s: float = 1.0
    """A step of the job: an event, its metrics, two lines of log."""
    cut: int = 10
    """Each so many-th listener is cut off, twice."""


@dataclass
class Outcome:
    """What was measured."""

    connect_s: float
    shares: dict[str, float]
    begin_bytes: int
    connected_bytes: int
    peak_bytes: int
    minute_peak_bytes: int
    end_bytes: int
    polls: list[float]
    ramp_polls: list[float]
    failed_polls: int
    verdicts: dict[str, Verdict]
    counts: dict[str, tuple[int, int]]
    """Of each kind of stream: its listeners, and the messages that are stored."""
    delays: list[float]
    """Seconds from when the database stored an event to when a listener had it, during the minute."""
    reconnects: int


def live_plane(folder: Path, database_url: str, redis_url: str, amounts: Amounts) -> Plane:
    """A service whose jobs talk until `stop_file` is there."""
    command = [sys.executable, "-I", "-S", str(TRAINER), "--until", str(stop_file(folder))]
    return Plane(folder, database_url, redis_url, trainer_command=[*command, "--every", str(amounts.step_s)])


def stop_file(folder: Path) -> Path:
    """Its appearance ends the jobs."""
    return folder / "stop"


def live(folder: Path, plane: Plane, kind: str, amounts: Amounts) -> list[dict[str, Any]]:
    """Measure on a plane made by `live_plane`; the rows of the result."""
    api = plane.start_api()
    plane.start_workers(1)
    with plane.http() as http:
        body = create_body(plane.upload(http))
        body["method"]["reinforcement"]["hyperparameters"]["max_steps"] = 100_000
        job_id = http.post(_JOBS, json=body).raise_for_status().json()["id"]
        _await_running(http, job_id)
        pids = {"api": api, "load generator": os.getpid(), "worker": plane.workers[0].pid}
        with Memory(api) as memory:
            outcome = asyncio.run(_Run(plane, http, job_id, amounts, stop_file(folder), pids, memory).measure())
    return _rows(kind, amounts, outcome)


def _await_running(http: httpx2.Client, job_id: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while http.get(f"{_JOBS}/{job_id}").json()["rl"]["step"] < 1:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the job does not run: {http.get(f'{_JOBS}/{job_id}').text}")
        time.sleep(0.1)


class _Run:
    """One run of it."""

    def __init__(
        self,
        plane: Plane,
        http: httpx2.Client,
        job_id: str,
        amounts: Amounts,
        stop: Path,
        pids: dict[str, int],
        memory: Memory,
    ) -> None:
        self._plane, self._http, self._job_id, self._amounts = plane, http, job_id, amounts
        self._stop, self._pids, self._memory = stop, pids, memory
        self._kept: dict[str, str] = {}
        self._random = random.Random(1)

    async def measure(self) -> Outcome:
        amounts = self._amounts
        poller = Poller(self._plane.port, f"{_JOBS}/{self._job_id}", amounts.polls_per_s, _POLLERS)
        await poller.start()
        ramp = time.monotonic()
        listeners = await self._connect()
        begin, began_at, shares = time.monotonic(), time.time(), Shares(self._pids)
        cuts = asyncio.create_task(self._cut(listeners))
        await asyncio.sleep(amounts.seconds)
        end, taken = time.monotonic(), shares.taken()
        await cuts
        await poller.close()
        self._stop.touch()
        everyone = [listener for some in listeners.values() for listener in some]
        async with asyncio.timeout(_PATIENCE_S):
            await asyncio.gather(*(listener.over for listener in everyone), return_exceptions=True)
        for listener in everyone:
            await listener.close()
        stored = {kind: await asyncio.to_thread(self._stored, kind) for kind in KINDS}
        verdicts = {kind: self._verdict(listeners[kind], stored[kind]) for kind in KINDS}
        created = {id_: line["created_at"] for id_, line in stored["logs"].items()}
        memory = self._memory
        return Outcome(
            connect_s=begin - ramp,
            shares=taken,
            begin_bytes=memory.samples[0][1],
            connected_bytes=memory.at(begin),
            peak_bytes=memory.peak(),
            minute_peak_bytes=memory.peak(begin, end),
            end_bytes=memory.samples[-1][1],
            polls=poller.between(begin, end),
            ramp_polls=poller.between(ramp, begin),
            failed_polls=poller.failed,
            verdicts=verdicts,
            counts={kind: (len(listeners[kind]), len(stored[kind])) for kind in KINDS},
            delays=[
                message.at - created[message.id]
                for listener in listeners["logs"]
                for message in listener.heard
                if message.id in created and created[message.id] >= began_at and message.at < began_at + amounts.seconds
            ],
            reconnects=sum(listener.connections - 1 for listener in everyone),
        )

    async def _connect(self) -> dict[str, list[Listener]]:
        """Of twenty listeners one hears the logs, six the metrics and the others the events."""
        listeners: dict[str, list[Listener]] = {kind: [] for kind in KINDS}
        free = asyncio.Semaphore(_CONNECTING)

        async def add(number: int) -> None:
            kind = "logs" if number % 20 == 0 else "metrics" if number % 20 < 7 else "events"
            path = f"{_JOBS}/{self._job_id}/{kind}/stream"
            listener = Listener(self._plane.port, path, self._kept, by_header=bool(number // 20 % 2))
            listeners[kind].append(listener)
            async with free:
                await listener.connect()
                await listener.begun

        await asyncio.gather(*(add(number) for number in range(self._amounts.listeners)))
        return listeners

    async def _cut(self, listeners: dict[str, list[Listener]]) -> None:
        """Cut some off, twice each, at times of their own."""
        chosen = [listener for some in listeners.values() for listener in some[:: self._amounts.cut]]
        times = sorted((self._random.uniform(0.05, 0.95) * self._amounts.seconds, i) for i in range(2 * len(chosen)))
        began = time.monotonic()
        for moment, number in times:
            await asyncio.sleep(max(began + moment - time.monotonic(), 0))
            await chosen[number % len(chosen)].cut()

    def _stored(self, kind: str) -> dict[str, Any]:
        """All messages of a kind that the service has stored, by id, in their order."""
        if kind == "logs":
            return {line["id"]: line for line in self._pages("logs", 1000)}
        events = self._pages("events", 100)[::-1]
        if kind == "events":
            return {event["id"]: event for event in events}
        points = self._http.get(f"{_JOBS}/{self._job_id}/metrics").raise_for_status().json()["data"]
        by_step = {(point["step"], point["split"]): point for point in points}
        told = [event for event in events if event["type"] == "metrics"]
        splits = ["train" if "train" in event["data"] else "validation" for event in told]
        return {event["id"]: by_step[event["data"]["step"], split] for event, split in zip(told, splits, strict=True)}

    def _pages(self, kind: str, limit: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        params: dict[str, str | int] = {"limit": limit}
        while True:
            page = self._http.get(f"{_JOBS}/{self._job_id}/{kind}", params=params).raise_for_status().json()
            found += page["data"]
            if not page["has_more"]:
                return found
            params["after"] = page["last_id"]

    def _verdict(self, listeners: Sequence[Listener], stored: dict[str, Any]) -> Verdict:
        verdict = Verdict()
        for listener in listeners:
            verdict.add(listener.heard, stored)
        return verdict


def _rows(kind: str, amounts: Amounts, outcome: Outcome) -> list[dict[str, Any]]:
    total = Verdict()
    for verdict in outcome.verdicts.values():
        for name in ("lost", "duplicated", "disordered", "different"):
            setattr(total, name, getattr(total, name) + getattr(verdict, name))
    heard = ", ".join(f"{count} of {stored} {name}" for name, (count, stored) in outcome.counts.items() if count)
    polled = f"{len(outcome.polls)} polls in {amounts.seconds:.0f} s, {outcome.failed_polls} failed"
    shares = outcome.shares
    growth = outcome.minute_peak_bytes - outcome.connected_bytes
    said = f"listeners: {heard}; {outcome.reconnects} reconnects"
    return [
        row("messages lost", kind, total.lost, "", "0", said),
        row("messages duplicated", kind, total.duplicated, "", "0", "each listener against what is stored at the end"),
        row("messages in another order", kind, total.disordered, "", "0"),
        row("messages that differ from what is stored", kind, total.different, "", "0"),
        row("poll_p50", kind, 1000 * quantile(outcome.polls, 0.5), "ms", None, polled),
        row("poll_p99", kind, 1000 * quantile(outcome.polls, 0.99), "ms", "< 250", "from when each was due"),
        row("poll_max", kind, 1000 * max(outcome.polls, default=0.0), "ms"),
        row("poll_p99 while the listeners connect", kind, 1000 * quantile(outcome.ramp_polls, 0.99), "ms"),
        row("polls failed", kind, outcome.failed_polls, "", "0"),
        row("polls answered", kind, len(outcome.polls) / amounts.seconds, "1/s", f">= {0.99 * amounts.polls_per_s:g}"),
        row("connecting all listeners", kind, outcome.connect_s, "s", None, f"{_CONNECTING} at once; polls meanwhile"),
        row("from stored to heard, p50", kind, quantile(outcome.delays, 0.5), "s", None, "lines of the log"),
        row("from stored to heard, p99", kind, quantile(outcome.delays, 0.99), "s"),
        row("API memory before", kind, outcome.begin_bytes / _MIB, "MiB"),
        row("API memory with all listeners", kind, outcome.connected_bytes / _MIB, "MiB"),
        row("API memory, peak", kind, outcome.peak_bytes / _MIB, "MiB"),
        row("API memory, growth while all listen", kind, growth / _MIB, "MiB", "<= 32"),
        row("API memory after", kind, outcome.end_bytes / _MIB, "MiB", None, "listeners gone"),
        *(row(f"CPU of {name}", kind, share, "cores") for name, share in shares.items()),
    ]
