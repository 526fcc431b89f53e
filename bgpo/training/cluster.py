"""The processes of one run and what they tell each other.

A run of one process uses `Cluster` itself, where every exchange is the identity. Code of the trainer is written for
many: it works on its own share of the prompts and asks the cluster for sums. Because every random stream is named by
what it is for (seed, step, prompt slot, sample) and not by the process, the shares do not change what is drawn.

Processes come from `accelerate launch` or `torchrun` (or anything else that sets RANK, LOCAL_RANK, WORLD_SIZE,
MASTER_ADDR and MASTER_PORT). Exchanges are collective: every process must make the same ones in the same order. One
that is gone makes the others' next exchange fail, at once with gloo, after TIMEOUT_VARIABLE's seconds at the latest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from bgpo.errors import PeerLost, SpecError

T = TypeVar("T")

TIMEOUT_VARIABLE = "BGPO_PROCESS_TIMEOUT_S"
"""Environment variable: seconds after which a process gives up waiting for another."""
TIMEOUT_S = 600.0
"""Its default: longer than processes with equal work drift apart, an evaluation or a checkpoint included."""


class Cluster:
    """One process."""

    rank = 0
    size = 1
    device: torch.device | None = None
    """Where this process computes; None = as the run's specification says."""

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

    def wait(self) -> None:
        """Until every process is here."""

    def leave(self) -> None:
        """End the connection; no exchange may follow."""


class ProcessGroup(Cluster):
    """Several processes, connected by torch.distributed: NCCL between GPUs, gloo between CPUs."""

    def __init__(self, *, cpu: bool) -> None:
        # Here, so that a run of one process does not pay for the import.
        from accelerate import PartialState  # type: ignore[import-untyped]  # it ships no type information

        timeout = timedelta(seconds=float(os.environ.get(TIMEOUT_VARIABLE, TIMEOUT_S)))
        options = {"backend": "gloo"} if cpu else {}
        self._state = PartialState(cpu=cpu, timeout=timeout, **options)
        self.rank, self.size = self._state.process_index, self._state.num_processes
        self.device = self._state.device

    def sum(self, values: Tensor) -> Tensor:
        return self._reduce(values, dist.ReduceOp.SUM)

    def maximum(self, values: Tensor) -> Tensor:
        return self._reduce(values, dist.ReduceOp.MAX)

    def gather(self, items: list[T]) -> list[T]:
        parts: list[list[T]] = [[] for _ in range(self.size)]
        with exchanging():
            dist.all_gather_object(parts, items)
        return [item for part in parts for item in part]

    def wait(self) -> None:
        with exchanging():
            self._state.wait_for_everyone()

    def leave(self) -> None:
        self._state.destroy_process_group()

    def _reduce(self, values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        """On a copy, on this process's device: NCCL knows no tensors of the host."""
        result = values.detach().to(self.device, copy=True).contiguous()
        with exchanging():
            dist.all_reduce(result, op=operation)
        return result.to(values.device)


@contextmanager
def exchanging() -> Iterator[None]:
    """Says in words what torch.distributed's error means."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise PeerLost(f"another process of the run is gone or does not answer: {error}") from error


def join_cluster(device: str) -> Cluster:
    """Connect to the other processes of the run; a run of one process has nothing to connect to.

    Args:
        device: the specification's `device`.

    Raises:
        SpecError: the device names one GPU for several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Cluster()
    if device.startswith("cuda:"):
        raise SpecError(f"{device!r} is one GPU, the run has several processes; use 'cuda' or 'auto'", "device")
    if device == "cuda" and not torch.cuda.is_available():
        raise SpecError("there is no CUDA device", "device")
    return ProcessGroup(cpu=device == "cpu" or not torch.cuda.is_available())
