"""Group advantages, worked by hand and against the standard library's statistics."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bgpo.training.advantage import group_advantages


def advantages(
    rewards: list[list[float]], valid: list[list[bool]] | None = None, mode: str = "z_score"
) -> tuple[list[list[float]], list[bool]]:
    known = torch.ones(len(rewards), len(rewards[0]), dtype=torch.bool) if valid is None else torch.tensor(valid)
    found, zero = group_advantages(torch.tensor(rewards), known, mode)  # type: ignore[arg-type]
    assert found.dtype == torch.float32
    return found.tolist(), zero.tolist()


def test_worked_by_hand() -> None:
    found, zero = advantages([[1, 0, 0, 1], [0, 0, 0, 4], [2, 2, 2, 2]])
    root = 3**0.5  # of 0, 0, 0, 4: mean 1, population std sqrt(3)
    assert found[0] == [1, -1, -1, 1]
    assert found[1] == pytest.approx([-1 / root, -1 / root, -1 / root, 3 / root])
    assert found[2] == [0, 0, 0, 0]
    assert zero == [False, False, True]


def test_mean_only_keeps_the_scale() -> None:
    found, zero = advantages([[1, 0, 0, 1], [0, 0, 0, 4], [2, 2, 2, 2]], mode="mean_only")
    assert found == [[0.5, -0.5, -0.5, 0.5], [-1, -1, -1, 3], [0, 0, 0, 0]]
    assert zero == [False, False, True]


@pytest.mark.parametrize("garbage", [0.0, 100.0, math.nan, math.inf])
def test_responses_that_could_not_be_graded_leave_their_group(garbage: float) -> None:
    found, zero = advantages(
        [[1, 0, garbage, garbage], [5, garbage, 5, 5], [7, garbage, garbage, garbage], [garbage] * 4],
        [[True, True, False, False], [True, False, True, True], [True, False, False, False], [False] * 4],
    )
    assert found == [[1, -1, 0, 0], [0] * 4, [0] * 4, [0] * 4]
    assert zero == [False, True, True, True]


def test_rounding_is_not_signal() -> None:
    """Equal rewards that differ in the last bits must not become advantages of size 1."""
    found, zero = advantages([[0.1 + 0.2, 0.3, 0.3, 0.3], [0.7, 0.7 + 1e-7, 0.7, 0.7]])
    assert found == [[0] * 4] * 2
    assert zero == [True, True]
    # Rewards in thousandths are signal.
    assert not any(advantages([[0.001, 0, 0, 0]])[1])


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(-1000, 1000), min_size=2, max_size=16))
def test_z_scores_are_those_of_the_standard_library(rewards: list[int]) -> None:
    (found,), (zero,) = advantages([[float(r) for r in rewards]])
    std = statistics.pstdev(rewards)
    assert zero == (std == 0)
    expected = [0.0 if zero else (r - statistics.mean(rewards)) / std for r in rewards]
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(-1000, 1000), st.booleans()), min_size=2, max_size=16))
def test_leave_one_out_compares_with_the_mean_of_the_others(responses: list[tuple[int, bool]]) -> None:
    (found,), (zero,) = advantages(
        [[float(reward) for reward, _ in responses]], [[valid for _, valid in responses]], mode="leave_one_out"
    )
    graded = [reward for reward, valid in responses if valid]
    assert zero == (len(set(graded)) < 2)
    for index, (reward, valid) in enumerate(responses):
        others = [r for i, (r, ok) in enumerate(responses) if ok and i != index]
        expected = reward - statistics.mean(others) if valid and not zero else 0.0
        assert found[index] == pytest.approx(expected, rel=1e-6, abs=1e-6)
