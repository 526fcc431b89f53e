"""Generated Countdown data against brute force in rationals; splits, determinism, demonstrations."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from fractions import Fraction

import pytest

from bgpo.rewards import Sample, compile_grader
from bgpo.rewards.countdown import evaluate
from bgpo.tasks import countdown
from bgpo.tasks.held_out import countdown_key
from bgpo.tasks.rows import seeded

GRADER = compile_grader(countdown.grader_spec())
OPERATIONS: list[Callable[[Fraction, Fraction], Fraction]] = [
    lambda a, b: a + b,
    lambda a, b: a - b,
    lambda a, b: a * b,
    lambda a, b: a / b,
]


def values(numbers: tuple[Fraction, ...]) -> Iterator[Fraction]:
    """Every value of every expression: replace two numbers by a result, until one is left."""
    if len(numbers) == 1:
        yield numbers[0]
    for i in range(len(numbers)):
        for j in range(len(numbers)):
            rest = tuple(number for k, number in enumerate(numbers) if k not in (i, j))
            for operation in OPERATIONS if i != j else []:
                try:
                    result = operation(numbers[i], numbers[j])
                except ZeroDivisionError:
                    continue
                yield from values((*rest, result))


def test_solution_exists_exactly_where_brute_force_finds_one() -> None:
    rng = random.Random(0)
    for largest in (4, 12, 100):
        for _ in range(15):
            numbers = [rng.randint(1, largest) for _ in range(3)]
            reached = set(values(tuple(map(Fraction, numbers))))
            for target in range(1, 101):
                if target in reached:
                    text = countdown.solution(numbers, target)
                    assert evaluate(text) == target
                    grade = GRADER.grade(Sample(text), {"numbers": numbers, "target": target})
                    assert grade.solved
                else:
                    with pytest.raises(ValueError, match="do not reach"):
                        countdown.solution(numbers, target)


@pytest.mark.parametrize(
    ("numbers", "target", "expected"),
    [
        ([30, 100, 93], 23, "30-100+93"),
        ([2, 3, 4], 20, "(2+3)*4"),
        ([84, 84, 80], 21, "84/(84-80)"),
        ([6, 4, 8], 3, "6*4/8"),
        ([10, 3, 2], 9, "10-3+2"),
        ([50, 2, 5], 5, "50/2/5"),
    ],
)
def test_reference_is_short_and_in_order(numbers: list[int], target: int, expected: str) -> None:
    assert countdown.solution(numbers, target) == expected


def test_rows() -> None:
    rows = countdown.generate(1500, 3, "train")
    assert len({countdown_key(row["numbers"], row["target"]) for row in rows}) == 1500
    for row in rows:
        prompt = ",".join(map(str, row["numbers"])) + f"={row['target']}"
        assert row["messages"] == [{"role": "user", "content": prompt}]
        assert len(row["numbers"]) == 3
        assert all(1 <= number <= 100 for number in [*row["numbers"], row["target"]])
        grade = GRADER.grade(Sample(row["expression"]), row)
        assert (grade.solved, grade.error) == (True, None)
        assert " " not in row["expression"]


def test_deterministic_by_seed_and_split() -> None:
    first = countdown.generate(50, 1, "test")
    assert countdown.generate(50, 1, "test") == first
    assert countdown.generate(20, 1, "test") == first[:20]
    assert countdown.generate(50, 2, "test") != first


def test_splits_are_disjoint_whatever_the_order() -> None:
    for row in countdown.generate(200, 0, "test"):
        a, b, c = row["numbers"]
        assert countdown.split_of([c, a, b], row["target"]) == "test"
    train, test = (
        {countdown_key(row["numbers"], row["target"]) for row in countdown.generate(1000, 0, split)}
        for split in ("train", "test")
    )
    assert not train & test
    random_splits = [countdown.split_of([i, i + 1, i + 2], 7) for i in range(1600)]
    assert random_splits.count("test") == pytest.approx(100, abs=30)


def test_demonstrations() -> None:
    rng = seeded("noise")
    correct = 0
    for row in countdown.generate(1500, 0, "train"):
        shown = countdown.demonstrate(row, rng, noise=0.65)
        user, assistant = shown["messages"]
        assert user == row["messages"][0]
        assert (assistant["role"], {**shown, "messages": None}) == ("assistant", {**row, "messages": None})
        grade = GRADER.grade(Sample(assistant["content"]), row)
        assert grade.solved == (assistant["content"] == row["expression"])
        assert set(assistant["content"]) <= set("0123456789+-*/()")
        correct += grade.solved
    assert correct / 1500 == pytest.approx(0.35, abs=0.04)


def test_every_expression_can_be_made_wrong() -> None:
    for row in countdown.generate(1000, 1, "train"):
        answer = countdown.demonstrate(row, seeded(row["target"]), noise=1)["messages"][1]["content"]
        assert not GRADER.grade(Sample(answer), row).solved
