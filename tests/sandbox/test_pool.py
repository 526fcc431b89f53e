"""Sandboxes started ahead: each is used once, and what fails to start is told."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import pytest

from bgpo.sandbox import Limits, Pool, Sandbox, SandboxError, Wall
from bgpo.sandbox.launch import Launch, Unwalled
from tests.sandbox.conftest import LIMITS


def test_nobody_gets_a_used_one(wall: Wall) -> None:
    seen: list[Sandbox] = []
    with Pool(wall, LIMITS, 2) as pool:
        for _ in range(5):
            with pool.take() as sandbox:
                assert sandbox.run("probe:echo", {}).ended == "returned"
                assert sandbox not in seen
                seen.append(sandbox)
    assert not any(sandbox.alive for sandbox in seen)


def test_many_callers_at_once(wall: Wall) -> None:
    def use(pool: Pool, number: int) -> list[object]:
        with pool.take() as sandbox:
            value: list[object] = sandbox.run("probe:echo", {"number": number}).value
            return value

    with Pool(wall, LIMITS, 2) as pool, ThreadPoolExecutor(4) as executor:
        values = list(executor.map(lambda number: use(pool, number), range(12)))
    assert values == [[{"number": number}, "", 0] for number in range(12)]


def test_an_error_of_the_caller_gives_it_back(wall: Wall) -> None:
    with Pool(wall, LIMITS, 1) as pool:
        with pytest.raises(RuntimeError, match="mine"), pool.take() as sandbox:
            raise RuntimeError("mine")
        with pool.take() as other:
            assert other is not sandbox
            assert other.run("probe:echo", {}).ended == "returned"


class Flaky(Unwalled):
    """Fails to start until told otherwise."""

    works = False

    def launch(self, limits: Limits) -> AbstractContextManager[Launch]:
        if not self.works:
            raise SandboxError("out of order")
        return super().launch(limits)


def test_a_failure_to_start_is_told_and_not_for_ever() -> None:
    wall = Flaky()
    with Pool(wall, LIMITS, 1) as pool:
        with pytest.raises(SandboxError, match="out of order"), pool.take():
            pass
        wall.works = True
        for _ in range(3):  # one failure may be in the making still
            try:
                with pool.take() as sandbox:
                    assert sandbox.run("probe:echo", {}).ended == "returned"
                return
            except SandboxError:
                continue
        pytest.fail("the pool did not recover")


def test_a_closed_pool_has_none_and_leaves_nothing(wall: Wall) -> None:
    before = set(threading.enumerate())
    with Pool(wall, LIMITS, 2) as pool, pool.take():
        pass
    with pytest.raises(SandboxError, match="closed"), pool.take():
        pass
    assert set(threading.enumerate()) <= before


def test_the_size_is_at_least_one(wall: Wall) -> None:
    with pytest.raises(ValueError, match="size"):
        Pool(wall, LIMITS, 0)
