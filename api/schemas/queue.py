"""The queue and the registry of workers on the wire."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from api.schemas.jobs import ResourcesObject
from api.schemas.lists import Listed
from jobs.repositories.queue import Snapshot, Waiting
from jobs.services import scheduling
from jobs.states import State, WireStatus, wire_status
from jobs.tables import Job, Worker
from jobs.wire.request import PriorityName


class QueuedJob(BaseModel):
    """A job, as far as the queue is concerned."""

    job: str
    status: WireStatus
    priority: PriorityName
    resources: ResourcesObject


class WaitingJob(QueuedJob):
    """A job that no worker has."""

    position: int | None = Field(description="1 starts next; null unless it is queued.")
    reason: str = Field(description="What it waits for.")


class RunningJob(QueuedJob):
    """A job that holds a worker."""

    step: int
    total_steps: int
    attempt: int


class WorkerClass(BaseModel):
    """The connected workers of one kind; each runs one job at a time."""

    gpu_type: str = Field(description="What `rl.resources.gpu_type` can ask for.")
    gpus: int = Field(description="Accelerators of each of these workers.")
    total: int
    busy: int
    out: int = Field(description="Those that take no jobs: shutting down, or with a problem.")


class QueueObject(BaseModel):
    """What a project has waiting and running, and what there is to run it."""

    object: Literal["fine_tuning.queue"] = "fine_tuning.queue"
    waiting: list[WaitingJob] = Field(description="By position, then those that are not queued.")
    running: list[RunningJob]
    queued_total: int = Field(description="Queued jobs of all projects.")
    max_queued_jobs: int = Field(description="Of a project.")
    max_running_jobs: int | None = Field(description="Of a project; null: any number.")
    slots: list[WorkerClass]


class WorkerObject(Listed):
    """A worker, as it last reported itself."""

    object: Literal["organization.worker"] = "organization.worker"
    host: str
    pid: int
    gpu_type: str
    gpus: int
    devices: list[str] | None
    state: str = Field(description="idle, busy, draining, or unfit: then `problem` says why.")
    job_id: str | None
    problem: str | None
    version: str
    started_at: int
    last_seen: int


class WorkerList(BaseModel):
    """All workers that are remembered; never paged."""

    object: Literal["list"] = "list"
    data: list[WorkerObject]
    has_more: bool = False


def queue_object(found: Snapshot, *, max_queued_jobs: int, max_running_jobs: int | None) -> QueueObject:
    """A view of the queue as the wire has it."""
    return QueueObject(
        waiting=[_waiting(entry) for entry in found.waiting],
        running=[_running(job) for job in found.running],
        queued_total=found.queued_total,
        max_queued_jobs=max_queued_jobs,
        max_running_jobs=max_running_jobs,
        slots=[WorkerClass.model_validate(vars(slot)) for slot in found.slots],
    )


def worker_object(row: Worker) -> WorkerObject:
    """A row as the wire has it."""
    names = ("id", "host", "pid", "gpu_type", "gpus", "devices", "state", "job_id", "problem", "version")
    times = {"started_at": int(row.started_at), "last_seen": int(row.last_seen)}
    return WorkerObject.model_validate({name: getattr(row, name) for name in names} | times)


def _waiting(entry: Waiting) -> WaitingJob:
    return WaitingJob.model_validate(_job(entry.job) | {"position": entry.position, "reason": entry.reason})


def _running(job: Job) -> RunningJob:
    values = {"step": job.last_step, "total_steps": job.total_steps, "attempt": job.epoch}
    return RunningJob.model_validate(_job(job) | values)


def _job(job: Job) -> dict[str, Any]:
    return {"job": job.id, "status": wire_status(State(job.state)), **scheduling.of_job(job)}
