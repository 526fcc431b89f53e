"""Whether this worker may take a job: room on its disk, base models to start from.

An unfit worker takes nothing, says why in the registry and once in its log, and looks again each round.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import structlog

from jobs.services.models import Catalog
from jobs.settings import Settings
from worker import disk
from worker.context import WorkerContext

_log = structlog.get_logger(__name__)


def problem(settings: Settings) -> str | None:
    """Why a worker with these settings should take no job now, or None."""
    if not Catalog(settings.model_root).list():  # a mount that is missing would fail job after job
        return "there is no base model in its model_root"
    return disk.problem(settings)


@contextmanager
def fit(context: WorkerContext) -> Iterator[Sequence[int] | None]:
    """Within the block the accelerators are ours: descriptors of their locks, or None when the worker is unfit."""
    found = problem(context.settings)
    _tell(context, found)
    yield None if found else ()


def look(context: WorkerContext) -> None:
    """Bring what the registry shows up to date while the worker runs no job."""
    _tell(context, problem(context.settings))


def _tell(context: WorkerContext, found: str | None) -> None:
    activity = context.activity
    if found != activity.problem:
        if found is None:
            _log.info("worker is fit again", was=activity.problem)
        else:
            _log.warning("worker takes no jobs", problem=found)
    activity.problem = found
