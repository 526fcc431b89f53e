"""Whether this worker may take a job: base models to start from, room on its disk, GPUs that nobody else uses.

An unfit worker takes nothing, says why in the registry and once in its log, and looks again each round.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import structlog

from jobs.services.models import Catalog
from jobs.settings import Settings
from worker import disk
from worker.context import WorkerContext
from worker.gpus import GpuBusy, GpuLocks

_log = structlog.get_logger(__name__)


def problem(settings: Settings) -> str | None:
    """Why a worker with these settings should take no job now, or None."""
    if not Catalog(settings.model_root).list():  # a mount that is missing would fail job after job
        return "there is no base model in its model_root"
    return disk.problem(settings)


@contextmanager
def fit(context: WorkerContext) -> Iterator[Sequence[int] | None]:
    """Within the block the accelerators are ours: descriptors of their locks, or None when the worker is unfit."""
    with ExitStack() as held:
        found = problem(context.settings)
        locks: Sequence[int] = ()
        if found is None:
            try:
                locks = held.enter_context(GpuLocks(context.settings.lock_dir, context.slot.devices).hold())
            except GpuBusy as error:  # a process that should be dead, or a worker that has the same GPU
                found = str(error)
            except OSError as error:
                found = f"the locks of its GPUs cannot be taken: {error.strerror}"
        _tell(context, found)
        yield None if found else locks


def _tell(context: WorkerContext, found: str | None) -> None:
    activity = context.activity
    if found != activity.problem:
        if found is None:
            _log.info("worker is fit again", was=activity.problem)
        else:
            _log.warning("worker takes no jobs", problem=found)
    activity.problem = found
