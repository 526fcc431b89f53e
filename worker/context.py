"""What all parts of a worker process share."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from uuid_utils import uuid7

from jobs.artifacts import ArtifactStore
from jobs.db import Database
from jobs.doorbell import Doorbell
from jobs.resources import Slot
from jobs.settings import Settings
from worker.gpus import Accelerators, discover

TRAINER = (sys.executable, "-m", "bgpo.run")


class Activity:
    """What the worker does, for its row in the registry. Written by the thread that holds `busy`."""

    job_id: str | None = None
    problem: str | None = None
    """Why it takes no jobs."""

    @contextmanager
    def on(self, job_id: str) -> Iterator[None]:
        """Busy with a job within the block."""
        self.job_id = job_id
        try:
            yield
        finally:
            self.job_id = None


@dataclass(frozen=True)
class WorkerContext:
    """Built once per process by `create`."""

    settings: Settings
    database: Database
    store: ArtifactStore
    doorbell: Doorbell
    slot: Slot
    trainer: tuple[str, ...] = TRAINER
    """Command of the trainer; gets `spec.json --record-fd N` appended."""
    draining: threading.Event = field(default_factory=threading.Event)
    """Set when the worker shuts down: running jobs checkpoint and go back to the queue."""
    busy: threading.Lock = field(default_factory=threading.Lock)
    """Held while jobs are being taken and run."""
    activity: Activity = field(default_factory=Activity)

    @property
    def worker_id(self) -> str:
        """This process, in leases and in the registry."""
        return self.slot.worker_id

    @classmethod
    def create(cls, settings: Settings, accelerators: Accelerators | None = None) -> WorkerContext:
        """Connect to what the settings name.

        Args:
            accelerators: the worker's; None = what `worker_gpus` means on this machine.

        Raises:
            GpuError: the settings name GPUs that are not there.
        """
        host = socket.gethostname()
        gpu_type, devices = accelerators or discover(settings.worker_gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
        return cls(
            settings=settings,
            database=Database(settings.database_url),
            store=ArtifactStore(settings.artifacts_url),
            doorbell=Doorbell(settings.redis_url.get_secret_value()),
            slot=Slot(f"{host}-{os.getpid()}-{uuid7().hex[-8:]}", host, gpu_type, devices),
            trainer=settings.trainer_command or TRAINER,
        )

    def close(self) -> None:
        """Close what keeps connections."""
        self.database.dispose()
        self.doorbell.close()
