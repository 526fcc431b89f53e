"""Bounded work: results and errors come back, no more at a time than slots, late work keeps its slot until it ends."""

from __future__ import annotations

import threading

import pytest

from jobs.slots import Busy, Slots


def test_results_and_errors_come_back() -> None:
    slots = Slots(1, "graders")
    assert slots.run(lambda: 7, within_s=10) == 7
    with pytest.raises(ZeroDivisionError):
        slots.run(lambda: 1 // 0, within_s=10)
    assert slots.run(lambda: 8, within_s=10) == 8


def test_late_work_keeps_its_slot_until_it_ends() -> None:
    slots, end = Slots(1, "graders"), threading.Event()
    with pytest.raises(TimeoutError):
        slots.run(end.wait, within_s=0.01)
    with pytest.raises(Busy) as caught:
        slots.run(lambda: 7, within_s=10)
    assert (caught.value.status, caught.value.headers) == (503, {"retry-after": "2"})
    end.set()
    assert slots.run(lambda: 7, within_s=10, wait_s=10) == 7
