"""Which prompts dynamic sampling draws, and what it keeps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch

from bgpo.models import Policy
from bgpo.spec import Reinforcement
from bgpo.training.cluster import Cluster
from bgpo.training.data import Row, batch_indices
from bgpo.training.groups import Collected, Collector, further_rows
from bgpo.training.reporter import Stopwatch
from tests.bgpo.training.harness import GROUP, PROMPTS, Harness, grading_of, rows_of, run_spec

Start = Callable[..., Harness]


def test_further_rows_are_a_function_of_seed_step_and_round() -> None:
    seen = set()
    for seed in (0, 1):
        for step in (1, 2):
            first = batch_indices(seed, 40, 4, step)
            rounds = [further_rows(seed, 40, 4, step, number) for number in range(1, 10)]
            assert rounds == [further_rows(seed, 40, 4, step, number) for number in range(1, 10)]
            drawn = [row for part in rounds for row in part]
            assert sorted(drawn) == sorted(set(range(40)) - set(first)), "each other row once"
            assert further_rows(seed, 40, 4, step, 10) == rounds[0], "then from the start again"
            seen.add(tuple(drawn))
    assert len(seen) == 4


def test_further_rows_of_a_data_set_no_larger_than_the_batch() -> None:
    assert sorted(further_rows(0, 4, 4, 1, 1)) == [0, 1, 2, 3]
    assert further_rows(0, 1, 3, 1, 2) == [0, 0, 0]


def collect(policy: Policy, rows: list[Row], start: Start, **fields: Any) -> Collected:
    spec = run_spec(**fields)
    method = spec.method
    assert isinstance(method, Reinforcement)
    reporter = start(policy, rows, spec).trainer._reporter  # any reporter will do
    return Collector(policy, rows, grading_of(spec), method, spec.seed, reporter, Cluster()).collect(1, Stopwatch())


def silenced(policy: Policy, count: int, every: int) -> list[Row]:
    """Rows of which only each `every`-th can have signal: any response has the answer of the others."""
    rows = rows_of(policy, count)
    return [
        row if i % every == 0 else Row({**row.item, "answer": ""}, row.prompt_ids, []) for i, row in enumerate(rows)
    ]


def test_rounds_go_on_until_the_batch_is_full_of_signal(wordy: Policy, start: Start) -> None:
    found = collect(wordy, silenced(wordy, 32, 2), start, dynamic_sampling_rounds=16, group_size=8)
    by_slot = {record.slot: record for record in found.records}
    assert len(found.batch) == PROMPTS
    assert all(by_slot[slot].has_signal for slot in found.batch)
    assert 1 <= found.rounds < 16
    without = [slot for slot, record in by_slot.items() if not record.has_signal]
    assert len(by_slot) == PROMPTS + len(without), "as many were replaced as had none"
    assert found.batch == sorted(found.batch)
    assert set(found.own) == set(by_slot)
    first = batch_indices(6, 32, PROMPTS, 1)
    for slot, record in by_slot.items():
        number, index = divmod(slot, PROMPTS)
        assert record.row == (further_rows(6, 32, PROMPTS, 1, number) if number else first)[index]


def test_the_bound_holds_and_groups_without_signal_fill_the_batch(wordy: Policy, start: Start) -> None:
    found = collect(wordy, silenced(wordy, 32, 1000), start, dynamic_sampling_rounds=2)
    assert found.rounds == 2
    assert len(found.records) == 3 * PROMPTS
    assert len(found.batch) == PROMPTS
    none = collect(wordy, silenced(wordy, 32, 1000), start)
    assert none.rounds == 0
    assert none.batch == list(range(PROMPTS))


def test_replacing_groups_does_not_change_the_others(wordy: Policy, start: Start) -> None:
    rows = silenced(wordy, 32, 2)
    alone, more = collect(wordy, rows, start), collect(wordy, rows, start, dynamic_sampling_rounds=3)
    for slot, group in alone.own.items():
        assert more.own[slot].responses == group.responses
        assert more.own[slot].advantages == group.advantages
    assert {slot for slot in alone.batch if alone.own[slot].record.has_signal} <= set(more.batch)


def test_the_same_step_draws_the_same_groups(wordy: Policy, start: Start) -> None:
    """What resuming rests on."""
    rows, twin = silenced(wordy, 32, 2), copy.deepcopy(wordy)
    first = collect(wordy, rows, start, dynamic_sampling_rounds=3)
    torch.manual_seed(5)
    second = collect(twin, rows, start, dynamic_sampling_rounds=3)
    assert first.batch == second.batch
    assert [group.responses for group in first.own.values()] == [group.responses for group in second.own.values()]
    assert all(len(group.responses) == GROUP for group in first.own.values())
