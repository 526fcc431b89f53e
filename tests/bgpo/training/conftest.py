"""Trainers on tiny policies, closed when the test ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bgpo.training.harness import Harness

Start = Callable[..., Harness]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Makes harnesses: start(policy, rows, spec, cluster=None)."""
    made: list[Harness] = []

    def make(*arguments: Any, **named: Any) -> Harness:
        policy, rows, spec = arguments
        made.append(Harness(policy, rows, spec, tmp_path / f"records-{len(made)}.jsonl", **named))
        return made[-1]

    yield make
    for harness in made:
        harness.close()
