"""The micro-batch: how many masked canvases go through one backward pass, halved when memory does not suffice."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from bgpo.errors import OutOfMemory
from bgpo.training.optimizer import Optimizer
from bgpo.training.reporter import Reporter

T = TypeVar("T")


def does_not_fit(size: int) -> OutOfMemory:
    """What a run fails with when even `size` canvases are too many."""
    return OutOfMemory(
        f"the policy update does not fit with micro_batch {size}; lower micro_batch or max_completion_length",
        "method.micro_batch",
    )


class MicroBatch:
    """Runs gradient accumulations; `size` never changes what they compute.

    An accumulation makes all gradients of an optimizer step or none, so what a failed attempt left is dropped.
    """

    def __init__(
        self,
        size: int,
        optimizer: Optimizer,
        reporter: Reporter,
        failure: Callable[[int], OutOfMemory] = does_not_fit,
    ) -> None:
        """`failure` makes the error of a size that does not fit."""
        self.size = size
        self._optimizer, self._reporter, self._failure = optimizer, reporter, failure
        self._halved = False

    def run(self, accumulate: Callable[[int], T]) -> T:
        """Call `accumulate(size)`; on the run's first lack of memory halve the size and begin again.

        Raises:
            OutOfMemory: the half does not fit either, now or later.
        """
        try:
            return accumulate(self.size)
        except torch.OutOfMemoryError as error:
            if self._halved or self.size == 1:
                raise self._failure(self.size) from error
        self._halved = True
        self._optimizer.discard_gradients()
        self.size //= 2
        self._reporter.log("warn", f"out of memory: micro_batch is now {self.size}")
        try:
            return accumulate(self.size)
        except torch.OutOfMemoryError as error:
            raise self._failure(self.size) from error
