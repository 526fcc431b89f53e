"""Requests that are counted at the same time: exactly as many pass as one after the other, and Redis is asked less."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest
import redis

from api.rates import Rates, Window

AWAY = "redis://127.0.0.1:1/0"


def at_once(redis_url: str, count: int, limit: int) -> list[Window]:
    """Take so many of a limit at the same time."""

    async def run() -> list[Window]:
        rates, who = Rates(redis_url), uuid.uuid4().hex
        try:
            return await asyncio.gather(*(rates.take("read", limit, who) for _ in range(count)))
        finally:
            await rates.close()

    return asyncio.run(run())


def scripts_run(redis_url: str) -> int:
    with redis.Redis.from_url(redis_url) as client:
        stats: Any = client.info("commandstats")
    return int(stats.get("cmdstat_evalsha", {"calls": 0})["calls"])


@pytest.mark.parametrize("away", [False, True])
def test_as_many_pass_as_there_are(redis_url: str, away: bool) -> None:
    found = at_once(AWAY if away else redis_url, 40, 25)
    assert [window.allowed for window in found] == [True] * 25 + [False] * 15
    assert [window.remaining for window in found] == [*reversed(range(25)), *[0] * 15]
    assert all(0 < window.reset_s <= 60 for window in found)


def test_redis_is_asked_for_all_who_wait(redis_url: str) -> None:
    before = scripts_run(redis_url)
    found = at_once(redis_url, 40, 1000)
    assert [window.remaining for window in found] == list(reversed(range(960, 1000)))
    assert 0 < scripts_run(redis_url) - before <= 8, "twice for the first, twice for all others"


def test_projects_and_kinds_are_apart(redis_url: str) -> None:
    async def run() -> list[Window]:
        rates, who = Rates(redis_url), uuid.uuid4().hex
        try:
            asked = [("read", who), ("read", f"{who}2"), ("write", who), ("read", who)]
            return await asyncio.gather(*(rates.take(name, 1, one) for name, one in asked))
        finally:
            await rates.close()

    assert [window.allowed for window in asyncio.run(run())] == [True, True, True, False]


def test_a_request_that_is_given_up_keeps_no_other_from_its_answer(redis_url: str) -> None:
    async def run() -> list[Window | BaseException]:
        rates, who = Rates(redis_url), uuid.uuid4().hex
        try:
            tasks = [asyncio.ensure_future(rates.take("read", 100, who)) for _ in range(10)]
            await asyncio.sleep(0)
            tasks[0].cancel()
            tasks[5].cancel()
            return await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            await rates.close()

    found = asyncio.run(run())
    assert [isinstance(one, Window) for one in found] == [number not in (0, 5) for number in range(10)]
