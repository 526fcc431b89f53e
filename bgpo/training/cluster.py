"""The processes of one run and what they tell each other.

A run of one process uses `Cluster` itself, where every exchange is the identity. Code of the trainer is written for
many: it works on its own share of the prompts and asks the cluster for sums. Because every random stream is named by
what it is for (seed, step, prompt slot, sample) and not by the process, the shares do not change what is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor

T = TypeVar("T")


class Cluster:
    """One process."""

    rank = 0
    size = 1

    @property
    def is_main(self) -> bool:
        """This process reports and writes files."""
        return self.rank == 0

    def share(self, slots: Sequence[int]) -> list[int]:
        """The slots this process works on: every size-th, beginning with its rank. May be empty."""
        return list(slots[self.rank :: self.size])

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over the processes, the same on all."""
        return values

    def maximum(self, values: Tensor) -> Tensor:
        """Elementwise maximum over the processes, the same on all."""
        return values

    def gather(self, items: list[T]) -> list[T]:
        """The processes' lists one after the other, in rank order, on all."""
        return items
