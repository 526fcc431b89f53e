"""Limits of concurrency and rate, with a clock that the test turns."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from bgpo.egress.gate import Gate


class TurnedClock:
    """Sleeping moves it on."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds


def test_a_batch_goes_out_at_once_and_the_next_waits_for_the_minute_to_pass() -> None:
    clock = TurnedClock()
    gate = Gate(8, 3, clock)
    assert [gate.turn() for _ in range(3)] == [0, 0, 0]
    clock.time += 10
    assert gate.turn() == 50
    assert [gate.turn(), gate.turn()] == [0, 0]
    assert gate.turn() == 60


@given(rate=st.integers(1, 5), pauses=st.lists(st.floats(0, 100), max_size=60))
def test_no_minute_has_more_than_allowed(rate: int, pauses: list[float]) -> None:
    clock = TurnedClock()
    gate = Gate(8, rate, clock)
    begun = []
    for pause in pauses:
        clock.time += pause
        gate.turn()
        begun.append(clock.now())
    for earlier, later in zip(begun, begun[rate:], strict=False):
        assert later - earlier >= 60 - 1e-6


def test_without_a_rate_nobody_waits() -> None:
    clock = TurnedClock()
    gate = Gate(1, None, clock)
    assert sum(gate.turn() for _ in range(1000)) == 0
    assert clock.slept == []


def test_threads_that_wait_together_get_turns_of_their_own() -> None:
    """The clock stands still, so turns are told apart by how long each would have to wait."""

    class StandingClock(TurnedClock):
        def sleep(self, seconds: float) -> None:
            self.slept.append(seconds)

    clock = StandingClock()
    gate = Gate(100, 2, clock)
    with ThreadPoolExecutor(8) as pool:
        waits = sorted(pool.map(lambda _: gate.turn(), range(8)))
    assert waits == [0, 0, 60, 60, 120, 120, 180, 180]


def test_no_more_hold_a_place_than_there_are() -> None:
    gate = Gate(3, None)
    together, lock = threading.Barrier(3), threading.Lock()
    inside, most = 0, 0

    def enter(_: int) -> None:
        nonlocal inside, most
        with gate.place():
            with lock:
                inside += 1
                most = max(most, inside)
            together.wait(30)  # also three at a time can be inside, else this would never end
            with lock:
                inside -= 1

    with ThreadPoolExecutor(9) as pool:
        list(pool.map(enter, range(9)))
    assert most == 3
