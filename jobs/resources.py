"""Accelerators: what a job asks for, what a worker has, and the Celery queues between the two.

A class of jobs is (gpu_type or any, gpus). Each has its own queue, and a worker listens to every class it can serve,
so that a doorbell reaches no worker that could not take the job. The claim checks again: a queue is only a shortcut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

QUEUE_PREFIX = "bgpo"


class Bell(NamedTuple):
    """A job to ring for."""

    job_id: str
    gpus: int = 1
    gpu_type: str | None = None

    @property
    def queue(self) -> str:
        """The Celery queue of its class."""
        return queue_name(self.gpus, self.gpu_type)


@dataclass(frozen=True)
class Slot:
    """One worker: it runs one job at a time on its accelerators."""

    worker_id: str
    host: str = "localhost"
    gpu_type: str = "cpu"
    """Lower-case name of the accelerator ("h200"), or cpu."""
    devices: tuple[str, ...] = ("cpu",)
    """One for each accelerator: GPU UUIDs, or "cpu" for each process."""

    @property
    def gpus(self) -> int:
        """How many accelerators a job can have here."""
        return len(self.devices)


def queue_name(gpus: int, gpu_type: str | None) -> str:
    """The queue of a class of jobs."""
    return f"{QUEUE_PREFIX}.{gpu_type or 'any'}.{gpus}"


def queue_names(slot: Slot) -> list[str]:
    """The queues a worker listens to."""
    return [queue_name(gpus, kind) for gpus in range(1, slot.gpus + 1) for kind in (None, slot.gpu_type)]
