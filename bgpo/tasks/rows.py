"""What the task generators share: the shape of a dataset row and seeded randomness."""

from __future__ import annotations

import random
from typing import Any, Literal

Split = Literal["train", "test"]
Row = dict[str, Any]
"""`messages` (what the model reads, for a demonstration also its answer) and the fields the task's grader reads."""


def seeded(*parts: str | int) -> random.Random:
    """A generator that depends on these parts only, the same on every machine and Python version."""
    return random.Random(" ".join(map(str, parts)))  # noqa: S311 - data, not secrets


def with_answer(row: Row, answer: str) -> Row:
    """The row with an assistant message."""
    return {**row, "messages": [*row["messages"], {"role": "assistant", "content": answer}]}
