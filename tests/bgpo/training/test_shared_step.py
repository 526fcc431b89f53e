"""Steps shared by several processes, here threads with real exchanges, equal those of one process."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bgpo.models import Policy
from bgpo.training.cluster import Cluster, T
from bgpo.training.data import Row, batch_indices
from tests.bgpo.training.harness import PROMPTS, STEP, Harness, rows_of, run_spec

Start = Callable[..., Harness]
PATIENCE_S = 60.0


class Exchange:
    """What the threads of one cluster share."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=PATIENCE_S)
        self.parts: list[list[Any]] = [[] for _ in range(size)]


class ThreadCluster(Cluster):
    """One thread's end of an exchange."""

    def __init__(self, rank: int, size: int, exchange: Exchange) -> None:
        self.rank, self.size, self._exchange = rank, size, exchange

    def gather(self, items: list[T]) -> list[T]:
        self._exchange.parts[self.rank] = items
        self._exchange.barrier.wait()
        everything = [item for part in self._exchange.parts for item in part]
        self._exchange.barrier.wait()  # nobody overwrites what another still reads
        return everything

    def sum(self, values: Tensor) -> Tensor:
        return torch.stack(self.gather([values])).sum(0)

    def maximum(self, values: Tensor) -> Tensor:
        return torch.stack(self.gather([values])).amax(0)


def run_shared(
    policies: list[Policy], rows: list[Row], spec: Any, start: Start, steps: range
) -> list[list[dict[str, float]]]:
    """The metrics of each step of each process."""
    size = len(policies)
    exchange = Exchange(size)
    harnesses = [
        start(policy, rows, spec, cluster=ThreadCluster(rank, size, exchange)) for rank, policy in enumerate(policies)
    ]
    results: list[list[dict[str, float]]] = [[] for _ in policies]
    failures: list[BaseException] = []

    def work(rank: int) -> None:
        try:
            for step in steps:
                results[rank].append(harnesses[rank].step(step))
        except BaseException as error:
            failures.append(error)
            exchange.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    if failures:
        raise failures[0]
    return results


def check_equal(policy: Policy, rows: list[Row], spec: Any, start: Start, size: int, steps: range) -> None:
    """Parameters to 1e-5 after the steps, and the same metrics on every process."""
    alone, shared = copy.deepcopy(policy), [copy.deepcopy(policy) for _ in range(size)]
    one = start(alone, rows, spec)
    expected = [one.step(step) for step in steps]
    found = run_shared(shared, rows, spec, start, steps)
    for index, metrics in enumerate(expected):
        for rank in range(size):
            assert found[rank][index].keys() == metrics.keys()
            for name in metrics.keys() - {"tokens_per_second", "seconds_grader/g"}:
                assert found[rank][index][name] == pytest.approx(metrics[name], rel=1e-4, abs=1e-5), name
                assert found[rank][index][name] == found[0][index][name], "the same on every process"
    before = policy.model.state_dict()
    moved = 0.0
    for name, value in alone.model.state_dict().items():
        moved = max(moved, float((value - before[name]).abs().max()))
        for other in shared:
            torch.testing.assert_close(other.model.state_dict()[name], value, rtol=0, atol=1e-5)
    assert moved > 5e-3, "the steps must be far larger than the tolerance"


@pytest.mark.parametrize(
    ("size", "fields"),
    [
        (2, {"num_inner_updates": 2, "dynamic_sampling_rounds": 2}),
        (3, {"algorithm": "diffu_grpo"}),
        (2, {"algorithm": "spg", "num_inner_updates": 4}),
    ],
    ids=str,
)
def test_a_shared_step_is_the_step_of_one_process(
    wordy: Policy, start: Start, size: int, fields: dict[str, Any]
) -> None:
    """Three processes share four prompts unevenly; mini-batches of one prompt leave a process without any."""
    check_equal(wordy, rows_of(wordy), run_spec(**fields), start, size, range(STEP, STEP + 2))


def test_a_process_without_signal_takes_part(wordy: Policy, start: Start) -> None:
    """Every prompt of the second process has rewards that do not differ."""
    rows = rows_of(wordy)
    for index in batch_indices(6, len(rows), PROMPTS, STEP)[1::2]:
        rows[index] = Row({**rows[index].item, "answer": ""}, rows[index].prompt_ids, [])
    check_equal(wordy, rows, run_spec(num_inner_updates=2), start, 2, range(STEP, STEP + 1))
