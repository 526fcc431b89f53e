"""Countdown: reach a target from 1 to 100 with three numbers from 1 to 100, each used exactly once, by + - * /.

A sixteenth of all tasks, chosen by hash and whatever the order of their numbers, is the test split; training also
avoids the public test tasks. Prompt `30,100,93=23`, demonstration `30+93-100`: short, for a model that reads
characters. Tasks of one file are distinct; files of different seeds may share tasks.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from fractions import Fraction
from itertools import permutations, product
from pathlib import Path
from typing import Any

from bgpo.errors import DataError, InvalidInput
from bgpo.rewards.countdown import ExpressionError, evaluate
from bgpo.tasks.held_out import countdown_key, fingerprint, held_out, read_countdown
from bgpo.tasks.rows import Row, Split, seeded, with_answer

LARGEST = 100
TEST_SHARE = 16
_PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}
_OPERATORS = tuple(_PRECEDENCE)
_MAX_MISSES = 100_000

_Tree = tuple[int, int, int, str, str, bool]
"""(a, b, c, inner, outer, right): (a inner b) outer c, or a outer (b inner c) when `right`."""


def split_of(numbers: list[int], target: int) -> Split:
    """The split a task belongs to, the same for every order of its numbers."""
    return "train" if int(fingerprint(countdown_key(numbers, target)), 16) % TEST_SHARE else "test"


def generate(rows: int, seed: int, split: Split) -> list[Row]:
    """Distinct tasks: three random numbers, and the value of a random expression of them where that is a target.

    Raises:
        InvalidInput: when there are not that many (there are more than a million).
    """
    rng = seeded("countdown", split, seed)
    made: dict[str, Row] = {}
    misses = 0
    while len(made) < rows:
        numbers = [rng.randint(1, LARGEST) for _ in range(3)]
        target = _random_value(numbers, rng)
        if (
            target is not None
            and belongs(numbers, target, split)
            and (key := countdown_key(numbers, target)) not in made
        ):
            made[key] = to_row(numbers, target)
            misses = 0
        elif (misses := misses + 1) > _MAX_MISSES:
            raise InvalidInput(f"found only {len(made)} distinct {split} tasks, {rows} were asked for", "rows")
    return list(made.values())


def _random_value(numbers: list[int], rng: random.Random) -> int | None:
    a, b, c = numbers  # random already: one order of them is as good as any
    inner, outer = rng.choice(_OPERATORS), rng.choice(_OPERATORS)
    value = _apply(outer, _apply(inner, a, b), c) if rng.random() < 0.5 else _apply(outer, a, _apply(inner, b, c))
    return value if value is not None and 1 <= value <= LARGEST else None


def belongs(numbers: list[int], target: int, split: Split) -> bool:
    """Whether a task may be in the data of a split: public test tasks are never in training data."""
    if split_of(numbers, target) != split:
        return False
    return split == "test" or fingerprint(countdown_key(numbers, target)) not in held_out().countdown


def solution(numbers: list[int], target: int) -> str:
    """The shortest expression for a target, nearest to the order of the numbers. Raises ValueError if out of reach.

    Integers suffice: with three numbers, a fraction on the way to an integer can always be a division at the end.
    """
    texts = [_text(tree) for value, tree in _trees(numbers) if value == target]
    if not texts:
        raise ValueError(f"{numbers} do not reach {target}")
    return min(texts, key=len)


def _trees(numbers: list[int]) -> Iterator[tuple[int | None, _Tree]]:
    """Every expression of three numbers with its value, None where that is no integer."""
    for a, b, c in permutations(numbers):
        for inner in _OPERATORS:
            left, right = _apply(inner, a, b), _apply(inner, b, c)
            for outer in _OPERATORS:
                yield _apply(outer, left, c), (a, b, c, inner, outer, False)
                yield _apply(outer, a, right), (a, b, c, inner, outer, True)


def _apply(symbol: str, a: int | None, b: int | None) -> int | None:
    if a is None or b is None:
        return None
    if symbol == "+":
        return a + b
    if symbol == "-":
        return a - b
    if symbol == "*":
        return a * b
    return a // b if b and a % b == 0 else None


def _text(tree: _Tree) -> str:
    """The expression without spaces or needless parentheses."""
    a, b, c, inner, outer, right = tree
    margin = _PRECEDENCE[inner] - _PRECEDENCE[outer]
    if right:
        bare = margin > 0 or (margin == 0 and outer in "+*")
        return f"{a}{outer}{b}{inner}{c}" if bare else f"{a}{outer}({b}{inner}{c})"
    return f"{a}{inner}{b}{outer}{c}" if margin >= 0 else f"({a}{inner}{b}){outer}{c}"


def to_row(numbers: list[int], target: int) -> Row:
    """The dataset row of a task; `expression` is one solution. Raises ValueError for a target out of reach."""
    prompt = ",".join(map(str, numbers)) + f"={target}"
    return {
        "messages": [{"role": "user", "content": prompt}],
        "numbers": numbers,
        "target": target,
        "expression": solution(numbers, target),
    }


def demonstrate(row: Row, rng: random.Random, noise: float) -> Row:
    """The row with an assistant message: the expression, with probability `noise` one that misses the target.

    A wrong one has an operator exchanged or two numbers swapped, as a weak solver would.
    """
    answer = row["expression"]
    if rng.random() < noise:
        answer = _wrong(answer, row["target"], rng)
    return with_answer(row, answer)


def _wrong(expression: str, target: int, rng: random.Random) -> str:
    candidates = [text for text in sorted(_slips(expression)) if _value(text) != target]
    return rng.choice(candidates)  # never empty: of the three other operators at one place, one changes the value


def _slips(expression: str) -> set[str]:
    """Every expression one exchanged operator or one swap of two numbers away."""
    parts = _split(expression)
    places = [index for index, part in enumerate(parts) if part.isdigit()]
    slips = {
        "".join([*parts[:index], other, *parts[index + 1 :]])
        for index, part in enumerate(parts)
        for other in _OPERATORS
        if part in _PRECEDENCE and part != other
    }
    for first, second in product(places, places):
        swapped = list(parts)
        swapped[first], swapped[second] = parts[second], parts[first]
        slips.add("".join(swapped))
    return slips


def _split(expression: str) -> list[str]:
    parts: list[str] = []
    for character in expression:
        if character.isdigit() and parts and parts[-1].isdigit():
            parts[-1] += character
        else:
            parts.append(character)
    return parts


def _value(expression: str) -> Fraction | None:
    try:
        return evaluate(expression)
    except ExpressionError:
        return None


def grader_spec() -> dict[str, Any]:
    """The grader of this task."""
    return {
        "type": "countdown",
        "name": "countdown",
        "numbers": "{{ item.numbers }}",
        "target": "{{ item.target }}",
    }


def read_public(path: Path) -> list[Row]:
    """The rows of a public test file (JSONL: input, output). Raises DataError, also for a target out of reach."""
    rows = []
    for line, (numbers, target) in enumerate(read_countdown(path), start=1):
        try:
            rows.append(to_row(numbers, target))
        except ValueError as error:
            raise DataError(f"{path.name} line {line}: {error}", line=line) from error
    return rows
