"""The tables. All times are unix seconds (UTC) on the database's clock; states are stored as their strings.

Every table that belongs to a user carries or reaches a `project_id`. Schema changes go through `migrations/`; a test
holds that the migrations produce exactly these tables. Tenants, their keys and the audit log: `jobs.tenant_tables`;
uploads in parts, and requests that make something once: `jobs.request_tables`; what judges took: `jobs.usage_tables`;
webhooks: `jobs.webhook_tables`.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from jobs.base import Base
from jobs.request_tables import Part, RequestRow, Upload  # importing it declares its tables
from jobs.tenant_tables import DEFAULT_ORGANIZATION, DEFAULT_PROJECT  # importing it declares its tables, too
from jobs.usage_tables import JudgeUsage  # the same
from jobs.webhook_tables import Delivery, WebhookEndpoint  # the same

__all__ = [
    "DEFAULT_ORGANIZATION",
    "DEFAULT_PROJECT",
    "SCHEMA",
    "Base",
    "Delivery",
    "JudgeUsage",
    "Part",
    "RequestRow",
    "Upload",
    "WebhookEndpoint",
]
SCHEMA = "0010"
"""The newest migration."""


class File(Base):
    """A file, uploaded or a result of a job; its bytes are in the artifact store under `key`."""

    __tablename__ = "files"
    __table_args__ = (
        sa.Index(None, "project_id", "created_at", "id"),
        sa.Index(None, "expires_at"),
        sa.Index(None, "job_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str]
    created_at: Mapped[float]
    filename: Mapped[str]
    """As the client gave it: for display, never a path."""
    purpose: Mapped[str]
    bytes: Mapped[int]
    sha256: Mapped[str]
    """Empty until the bytes are there, which is so of a result file at first."""
    key: Mapped[str]
    summary: Mapped[dict[str, Any] | None]
    """What the upload check of a fine-tune file saw, see `jobs.services.dataset`."""
    expires_at: Mapped[float | None]
    """From then on it is not there, unless an unfinished job uses it."""
    problem: Mapped[str | None]
    """Why a fine-tune file that came in parts cannot be used."""
    job_id: Mapped[str | None]
    """The job whose result it is."""


class Job(Base):
    """One fine-tuning job, or a task of another kind: what was asked (immutable), and where it stands.

    A task has no columns of its own. Its result is its final checkpoint: of an evaluation the answers and their
    metrics, of an export the exported files.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        sa.UniqueConstraint("project_id", "idempotency_key"),
        sa.UniqueConstraint("project_id", "tuned_model"),
        sa.Index(None, "project_id", "kind", "created_at", "id"),
        sa.Index(None, "source_job_id"),
        sa.Index(None, "state", "not_before"),
        sa.Index(None, "project_id", "state"),
        sa.Index(None, "resume_checkpoint_id"),
        sa.Index(None, "start_checkpoint_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(default="train", server_default="train")
    """`jobs.kinds.Kind`."""
    project_id: Mapped[str]
    created_at: Mapped[float]
    idempotency_key: Mapped[str | None]
    request_hash: Mapped[str]
    """Of the create body, to tell a repeated request from another one with the same key."""

    model: Mapped[str]
    """The model the job starts from, as the request named it."""
    base_model: Mapped[str | None]
    """Id of the base model that one is made of; None = it is one itself."""
    start_checkpoint_id: Mapped[str | None]
    """The checkpoint whose weights the job starts from; None = the base model's."""
    lineage: Mapped[list[dict[str, Any]] | None]
    """The tuned models it descends from, the nearest first: model, checkpoint, job, step of each."""
    training_file: Mapped[str]
    """Empty in a task."""
    validation_file: Mapped[str | None]
    """In an evaluation, the file whose rows are answered."""
    suffix: Mapped[str | None]
    tags: Mapped[dict[str, Any] | None] = mapped_column("metadata")
    seed: Mapped[int]
    method: Mapped[dict[str, Any]]
    """The method as the wire shows it, with resolved hyperparameters."""
    recipe: Mapped[dict[str, Any]]
    """What the trainer is told: a `bgpo.spec.Recipe`, or an export's content and dtype."""
    tuned_model: Mapped[str]
    """Name of the resulting model; shown only when the job has succeeded. A task makes none: its own id."""
    tuned_model_deleted_at: Mapped[float | None]
    """Since when that name is no model any more."""
    result_files: Mapped[list[str] | None]
    """Ids, set when the job succeeds. A user may have deleted the files."""
    total_steps: Mapped[int]
    request: Mapped[dict[str, Any] | None]
    """The create body as sent, for `clone`; None in jobs of schema 0001."""
    source_job_id: Mapped[str | None]
    """The job this one was made from by `retry` or `clone`; of a task, the job whose checkpoint it is about, in the
    same project."""
    webhook_url: Mapped[str | None]
    priority: Mapped[int] = mapped_column(default=0, server_default="0")
    """-1 low, 0 normal, 1 high."""
    gpus: Mapped[int] = mapped_column(default=1, server_default="1")
    """Accelerators asked for; on CPU workers, processes."""
    gpu_type: Mapped[str | None]
    """Accelerator class asked for (`jobs.resources`); None = any."""
    max_runtime_s: Mapped[float | None]
    """Seconds the job's attempts may take together."""
    budget: Mapped[dict[str, Any] | None]
    """gpu_seconds, judge_tokens (None = any), on_exceed; None without a limit."""

    state: Mapped[str]
    desired: Mapped[str]
    """What the user wants of the run: run, pause or cancel."""
    phase: Mapped[str | None]
    epoch: Mapped[int] = mapped_column(default=0)
    """Counts claims; every write of a worker is guarded by it."""
    attempts_left: Mapped[int]
    max_attempts: Mapped[int]
    lease_owner: Mapped[str | None]
    lease_until: Mapped[float | None]
    queued_at: Mapped[float | None]
    """When it last entered the queue by a user's wish; an interrupted job keeps its place."""
    not_before: Mapped[float] = mapped_column(default=0.0)
    rung_at: Mapped[float | None]
    last_step: Mapped[int] = mapped_column(default=0)
    resume_checkpoint_id: Mapped[str | None]
    final_checkpoint_id: Mapped[str | None]
    event_seq: Mapped[int] = mapped_column(default=0)
    error_code: Mapped[str | None]
    error_message: Mapped[str | None]
    error_param: Mapped[str | None]
    error_phase: Mapped[str | None]
    error_step: Mapped[int | None]
    error_log: Mapped[str | None]
    """The end of the trainer's log."""
    pause_code: Mapped[str | None]
    """Why the service paused the job; None when the user did."""
    pause_message: Mapped[str | None]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]
    revision: Mapped[int] = mapped_column(default=0, server_default="0")
    """Counts the changes its user made to what else is fixed (`jobs.repositories.changes`)."""
    deleted_at: Mapped[float | None]
    """Its user deleted it: nobody sees it any more, and it stays only because usage is computed from such rows."""

    @property
    def base(self) -> str:
        """Id of the base model."""
        return self.base_model or self.model


class Attempt(Base):
    """One claim of a job by a worker."""

    __tablename__ = "job_attempts"

    job_id: Mapped[str] = mapped_column(sa.ForeignKey("jobs.id"), primary_key=True)
    epoch: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    worker_id: Mapped[str]
    host: Mapped[str | None]
    devices: Mapped[list[str] | None]
    """Accelerators the attempt holds, by name."""
    pid: Mapped[int | None]
    """Of the process the worker started."""
    resumed_step: Mapped[int | None]
    """Step of the checkpoint it went on from; None = from the base model."""
    started_at: Mapped[float]
    ended_at: Mapped[float | None]
    outcome: Mapped[str | None]
    exit_code: Mapped[int | None]
    signal: Mapped[int | None]
    error_code: Mapped[str | None]
    error_message: Mapped[str | None]
    error_phase: Mapped[str | None]
    error_step: Mapped[int | None]


class Event(Base):
    """Something a user is told about a job; `seq` has no gaps and follows commit order."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(sa.ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    id: Mapped[str] = mapped_column(unique=True)
    epoch: Mapped[int | None]
    created_at: Mapped[float]
    level: Mapped[str]
    type: Mapped[str]
    message: Mapped[str]
    data: Mapped[dict[str, Any] | None]


class Metric(Base):
    """One value of one step."""

    __tablename__ = "job_metrics"

    job_id: Mapped[str] = mapped_column(sa.ForeignKey("jobs.id"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    split: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[float]
    epoch: Mapped[int]
    created_at: Mapped[float]


class Sample(Base):
    """One logged rollout."""

    __tablename__ = "job_samples"

    job_id: Mapped[str] = mapped_column(sa.ForeignKey("jobs.id"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    split: Mapped[str] = mapped_column(primary_key=True)
    index: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    prompt: Mapped[str]
    completion: Mapped[str]
    reward: Mapped[float | None]
    scores: Mapped[dict[str, Any]]
    error: Mapped[str | None]
    epoch: Mapped[int]
    created_at: Mapped[float]


class LogLine(Base):
    """One line a trainer printed, without the worker's paths and secrets; the last few thousand of each job."""

    __tablename__ = "job_logs"

    job_id: Mapped[str] = mapped_column(sa.ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """Rises from line to line, over all attempts (`jobs.repositories.logs`)."""
    epoch: Mapped[int]
    created_at: Mapped[float]
    """When the worker read it."""
    level: Mapped[str]
    text: Mapped[str]


class Checkpoint(Base):
    """A complete checkpoint in the artifact store: the row is written after all its files."""

    __tablename__ = "checkpoints"
    __table_args__ = (sa.UniqueConstraint("job_id", "step"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(sa.ForeignKey("jobs.id"))
    epoch: Mapped[int]
    step: Mapped[int]
    created_at: Mapped[float]
    name: Mapped[str] = mapped_column(unique=True)
    """Model id of the checkpoint, `ft:...:ckpt-step-N`."""
    key: Mapped[str]
    """Prefix of its files in the artifact store."""
    manifest: Mapped[list[dict[str, Any]]]
    """Of each file: path, bytes, sha256, kind."""
    manifest_sha256: Mapped[str]
    bytes: Mapped[int]
    final: Mapped[bool]
    best: Mapped[bool] = mapped_column(default=False, server_default=sa.false())
    """Its evaluation was the best of the job when it was written; the newest such row is the best."""
    pinned: Mapped[bool] = mapped_column(default=False, server_default=sa.false())
    """Kept until a user unpins it."""
    damaged: Mapped[bool] = mapped_column(default=False, server_default=sa.false())
    """Its files were found missing or altered; never resumed from."""
    metrics: Mapped[dict[str, Any]]


class Worker(Base):
    """A worker process, as it last reported itself."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    pid: Mapped[int]
    device: Mapped[str]
    gpu_type: Mapped[str] = mapped_column(default="cpu", server_default="cpu")
    gpus: Mapped[int] = mapped_column(default=1, server_default="1")
    devices: Mapped[list[str] | None]
    state: Mapped[str] = mapped_column(default="idle", server_default="idle")
    """idle, busy, draining, or unfit (see `problem`)."""
    job_id: Mapped[str | None]
    problem: Mapped[str | None]
    """Why an unfit worker takes no jobs."""
    version: Mapped[str]
    started_at: Mapped[float]
    last_seen: Mapped[float]


class Secret(Base):
    """A project's secret for its graders, encrypted (`jobs.vault`); its value leaves only to where graders run."""

    __tablename__ = "secrets"

    project_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    ciphertext: Mapped[str]
    key_id: Mapped[str]
    """Which of the installation's keys it is encrypted with."""
    created_at: Mapped[float]
    updated_at: Mapped[float]


class StoredGrader(Base):
    """A grader kept under a name; what it is stands in its versions."""

    __tablename__ = "graders"
    __table_args__ = (sa.Index(None, "project_id", "created_at", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str]
    name: Mapped[str]
    created_at: Mapped[float]
    latest: Mapped[int]
    """Number of the newest version."""


class GraderVersion(Base):
    """One definition of a stored grader. Never changed."""

    __tablename__ = "grader_versions"

    grader_id: Mapped[str] = mapped_column(sa.ForeignKey("graders.id", ondelete="CASCADE"), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    created_at: Mapped[float]
    definition: Mapped[dict[str, Any]]
    """Normalised wire form."""


class Completion(Base):
    """One chat completion: asked by the API, answered by a generator. What was said is forgotten soon after."""

    __tablename__ = "completions"
    __table_args__ = (
        sa.Index(None, "state", "created_at"),
        sa.Index(None, "project_id", "state"),
        sa.Index(None, "project_id", "finished_at"),
        sa.Index(None, "finished_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str]
    created_at: Mapped[float]
    model: Mapped[str]
    """As the request named it."""
    base_model: Mapped[str]
    checkpoint_id: Mapped[str | None]
    """Whose weights answer; None = the base model's."""
    batch_key: Mapped[str | None]
    """Completions with the same one may be decoded together; None = alone."""
    request: Mapped[dict[str, Any]]
    """Messages, sampler settings, seed; empty once forgotten."""
    state: Mapped[str]
    """queued, running, done, failed or cancelled."""
    epoch: Mapped[int] = mapped_column(default=0)
    """Counts claims; every write of a generator is guarded by it."""
    failures: Mapped[int] = mapped_column(default=0)
    """Times whoever answered it was lost."""
    lease_owner: Mapped[str | None]
    lease_until: Mapped[float | None]
    deadline: Mapped[float]
    blocks: Mapped[int] = mapped_column(default=0)
    """Rows in `completion_blocks`."""
    finish_reason: Mapped[str | None]
    prompt_tokens: Mapped[int | None]
    completion_tokens: Mapped[int | None]
    error_code: Mapped[str | None]
    error_message: Mapped[str | None]
    error_param: Mapped[str | None]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None]


class CompletionBlock(Base):
    """A piece of a completion's text that will not change; `seq` counts from 0 without gaps."""

    __tablename__ = "completion_blocks"

    completion_id: Mapped[str] = mapped_column(sa.ForeignKey("completions.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    text: Mapped[str]


class Generator(Base):
    """A process that answers completions, as it last reported itself."""

    __tablename__ = "generators"

    id: Mapped[str] = mapped_column(primary_key=True)
    host: Mapped[str]
    pid: Mapped[int]
    device: Mapped[str]
    version: Mapped[str]
    models: Mapped[list[str] | None]
    """Those it has in memory, by id, the last used one last."""
    started_at: Mapped[float]
    last_seen: Mapped[float]
