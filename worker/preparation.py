"""Makes an attempt ready to train, in a thread of its own: room on the disk, inputs, the checkpoint to go on from.

A thread, because fetching takes as long as the store takes, and a stop or a lost lease must not wait for it. One that
was abandoned may still write into its attempt's folder, to no effect.

A checkpoint whose files are missing or altered is marked so and never used again; the attempt goes on from the next
older good one, and without any from the weights it started from: the base model's, or those of a checkpoint of another
job, without which it fails. A task has nothing to go on from. A store that does not answer says nothing about a
checkpoint: it is asked again a few times, then the job is handed back.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog
from sqlalchemy.orm import Session

from bgpo.errors import BgpoError, DataError, DiskFullError, GraderError, ModelError
from bgpo.rewards.spec import AnyGraderSpec
from bgpo.spec import RunSpec, parse_run_spec
from bgpo.task_spec import EvaluationTask, Spec
from jobs import footprint
from jobs.artifacts import (
    ArtifactError,
    Manifest,
    ManifestFile,
    StorageError,
    StorageFull,
    is_adapter_only,
    model_files,
)
from jobs.errors import InvalidRequest
from jobs.kinds import Kind
from jobs.repositories import checkpoints, events, files
from jobs.repositories.claims import Claim
from jobs.repositories.transitions import hold
from jobs.services.grading import grader_settings, secrets_for
from jobs.services.models import BaseModel, Catalog
from jobs.tables import Checkpoint, File, Job
from worker import disk
from worker.context import WorkerContext
from worker.outages import DATABASE_OUTAGE
from worker.task_specs import is_over_base, needed_files, task_spec
from worker.workdir import WorkDir

_STORE_RETRIES_S = (1.0, 5.0, 15.0)
_DATABASE_RETRY_S = 1.0
_T = TypeVar("_T")
_log = structlog.get_logger(__name__)


class Abandoned(BgpoError):
    """Nobody waits for the attempt any more."""


@dataclass(frozen=True)
class Inputs:
    """The rows of what an attempt needs."""

    training: File
    validation: File | None
    resume: Checkpoint | None
    start: Checkpoint | None
    """Whose weights the job starts from instead of the base model's."""

    @property
    def weights(self) -> list[ManifestFile]:
        """Files of `start`."""
        return [] if self.start is None else model_files(Manifest.from_json(self.start.manifest))

    @property
    def bytes(self) -> int:
        """Of the files, without the checkpoint."""
        return self.training.bytes + (self.validation.bytes if self.validation else 0)


@dataclass(frozen=True)
class TaskInputs:
    """The rows of what a task needs."""

    checkpoint: Checkpoint | None
    """None = the base model's own weights."""
    over_base: bool
    """Its adapter is what is needed of it."""
    file: File | None

    @property
    def needed(self) -> list[ManifestFile]:
        """Of the checkpoint."""
        return [] if self.checkpoint is None else needed_files(self.checkpoint, self.over_base)


@dataclass(frozen=True)
class Prepared:
    """What the trainer starts from, beside the files."""

    resumed_step: int | None
    """Step of the checkpoint the attempt goes on from, None for the base model."""
    secrets: dict[str, str] = field(repr=False)
    """What the job's grader needs, by name: in memory only."""


class Preparation(threading.Thread):
    """Start it, wait until it is no longer alive, then ask for the `result`."""

    def __init__(self, context: WorkerContext, claim: Claim, workdir: WorkDir) -> None:
        super().__init__(name=f"preparation-{claim.job_id}", daemon=True)
        self._context, self._claim, self._workdir = context, claim, workdir
        self._abandoned = threading.Event()
        self._resumed_step: int | None = None
        self._secrets: dict[str, str] = {}
        self._error: Exception | None = None

    def abandon(self) -> None:
        """Stop as soon as possible; nobody waits for the result."""
        self._abandoned.set()

    def result(self) -> Prepared:
        """What became of it.

        Raises:
            GraderError: a secret that the grader needs is not there (any more).
            ModelError, DataError: the base model or a file is not there (any more).
            SpecError: the stored recipe does not validate (an upgrade made it invalid).
            DiskFullError, StorageFull: the job does not fit the worker's disk.
            StorageError: the store did not answer.
        """
        if self._error is not None:
            raise self._error
        return Prepared(self._resumed_step, self._secrets)

    def run(self) -> None:
        try:
            self._prepare()
        except Exception as error:  # thread boundary: `result` raises it
            self._error = error

    def _prepare(self) -> None:
        claim, settings = self._claim, self._context.settings
        self._workdir.create()
        model = Catalog(settings.model_root).get(claim.model)
        if model is None:
            raise ModelError(f"this worker has no base model {claim.model!r}", "model")
        spec = self._prepare_run(model) if claim.kind == Kind.TRAIN else self._prepare_task(model)
        self._secrets = self._look_up_secrets(spec)
        self._workdir.spec.write_text(json.dumps(spec.model_dump(mode="json"), indent=2) + "\n", "utf-8")

    def _prepare_run(self, model: BaseModel) -> Spec:
        claim, settings = self._claim, self._context.settings
        inputs = self._ask(self._look_up)
        self._require_room(model, inputs)
        training = self._fetch_file(inputs.training, "training_file")
        validation = self._fetch_file(inputs.validation, "validation_file") if inputs.validation else None
        resume = self._fetch_checkpoint(inputs.resume)
        start = self._fetch_start(inputs.start, inputs.weights) if inputs.start is not None else None
        adapter = inputs.start is not None and is_adapter_only(Manifest.from_json(inputs.start.manifest))
        return parse_run_spec(
            claim.recipe
            | {
                "model": str(start or model.path),
                "adapter_base": str(model.path) if adapter else None,
                "train_data": str(training),
                "validation_data": str(validation) if validation else None,
                "output_dir": str(self._workdir.output),
                "resume_from": str(resume) if resume else None,
                "device": settings.trainer_device,
                "threads": settings.trainer_threads,
                "graders": grader_settings(settings).model_dump(mode="json"),
            }
        )

    def _prepare_task(self, model: BaseModel) -> Spec:
        claim = self._claim
        inputs = self._ask(self._look_up_task)
        size, dtype = footprint.model_size(model.path)
        needed = sum(file.bytes for file in inputs.needed)
        if claim.kind == Kind.EXPORT:
            needed += footprint.export_bytes(size, dtype, claim.recipe["dtype"])
        elif inputs.file is not None:
            needed += 2 * inputs.file.bytes  # the results repeat the prompts
        self._require_disk(needed)
        data = self._fetch_file(inputs.file, "file") if inputs.file is not None else None
        weights, base = model.path, None
        if inputs.checkpoint is not None:
            weights = self._fetch_start(inputs.checkpoint, inputs.needed)
            base = model.path if inputs.over_base else None
        return task_spec(
            self._context.settings, claim, model=weights, base=base, data=data, output=self._workdir.output
        )

    def _look_up_task(self, session: Session) -> TaskInputs:
        claim, file, over_base = self._claim, None, False
        if claim.validation_file is not None:
            file = files.get(session, claim.project_id, claim.validation_file)
            if file is None:
                raise DataError("the file was deleted before the evaluation started", "file")
        checkpoint = self._look_up_start(session)
        if checkpoint is not None:
            over_base = is_over_base(claim, checkpoint, session.get_one(Job, checkpoint.job_id))
        return TaskInputs(checkpoint, over_base, file)

    def _look_up(self, session: Session) -> Inputs:
        claim = self._claim
        training = files.get(session, claim.project_id, claim.training_file)
        validation = files.get(session, claim.project_id, claim.validation_file) if claim.validation_file else None
        if training is None or (validation is None and claim.validation_file):
            name = "training_file" if training is None else "validation_file"
            raise DataError("the file was deleted before the job started", name)
        start = self._look_up_start(session)
        return Inputs(training, validation, checkpoints.to_resume(session, claim.job_id), start)

    def _look_up_start(self, session: Session) -> Checkpoint | None:
        if self._claim.start_checkpoint_id is None:
            return None
        start = checkpoints.by_id(session, self._claim.start_checkpoint_id)
        if start is None:
            raise ModelError("the checkpoint that the job starts from was deleted", "model")
        return start

    def _look_up_secrets(self, spec: Spec) -> dict[str, str]:
        context, project = self._context, self._claim.project_id
        grader, path = _grader_of(spec)
        if grader is None:
            return {}
        try:
            return self._until_answered(lambda: secrets_for(context.settings, context.database, project, grader))
        except InvalidRequest as error:  # deleted since, or this installation keeps none
            raise GraderError(error.message, f"{path}.{error.param}" if error.param else path) from error

    def _require_room(self, model: BaseModel, inputs: Inputs) -> None:
        size, dtype = footprint.model_size(model.path)
        resume = inputs.resume.bytes if inputs.resume else 0
        needed = footprint.disk_bytes(size, dtype, self._claim.recipe, inputs.bytes, resume)
        needed += sum(file.bytes for file in inputs.weights)
        self._require_disk(needed)

    def _require_disk(self, needed: int) -> None:
        free = shutil.disk_usage(self._workdir.path).free
        if free < needed:
            host, home = self._context.slot.host, self._context.settings.home
            raise DiskFullError(
                f"the job needs {needed} bytes ({disk.gigabytes(needed)}) of disk on the worker {host} under {home}, "
                f"and {free} bytes ({disk.gigabytes(free)}) are free"
            )

    def _fetch_file(self, file: File, param: str) -> Path:
        target = self._workdir.path / "data" / f"{param}.jsonl"
        store = self._context.store
        try:
            self._patiently(partial(store.fetch_file, file.key, target, bytes=file.bytes, sha256=file.sha256))
        except ArtifactError as error:
            message = f"the stored file {file.id} is missing or damaged: {error.message}"
            raise DataError(message, param) from error
        return target

    def _fetch_start(self, checkpoint: Checkpoint, files: Sequence[ManifestFile]) -> Path:
        """The weights the job starts from. There is nothing to start from instead."""
        target = self._workdir.path / "start"
        store = self._context.store
        try:
            self._patiently(partial(store.fetch_directory, checkpoint.key, Manifest(tuple(files)), target))
        except ArtifactError as error:
            self._ask(partial(checkpoints.mark_damaged, checkpoint_id=checkpoint.id), writes=True)
            message = f"the checkpoint {checkpoint.id} that the job starts from is damaged: {error.message}"
            raise ModelError(message, "model") from error
        return target

    def _fetch_checkpoint(self, checkpoint: Checkpoint | None) -> Path | None:
        """The newest checkpoint that is whole, from `checkpoint` on backwards."""
        store = self._context.store
        while checkpoint is not None:
            target = self._workdir.path / "resume" / f"step-{checkpoint.step:06d}"
            manifest = Manifest.from_json(checkpoint.manifest)
            try:
                self._patiently(partial(store.fetch_directory, checkpoint.key, manifest, target))
            except ArtifactError as error:
                shutil.rmtree(target, ignore_errors=True)
                checkpoint = self._give_up(checkpoint, error)
            else:
                self._resumed_step = checkpoint.step
                return target
        return None

    def _give_up(self, checkpoint: Checkpoint, error: ArtifactError) -> Checkpoint | None:
        """Mark a checkpoint damaged and tell the user; the one to try next."""
        _log.warning("checkpoint damaged", job_id=self._claim.job_id, step=checkpoint.step, error=error.message)
        return self._ask(lambda session: self._mark(session, checkpoint, error), writes=True)

    def _mark(self, session: Session, checkpoint: Checkpoint, error: ArtifactError) -> Checkpoint | None:
        claim = self._claim
        if hold(session, claim.job_id, claim.epoch) is None:
            raise Abandoned("the job is not ours any more")
        checkpoints.mark_damaged(session, checkpoint.id)
        older = checkpoints.to_resume(session, claim.job_id)
        first = "the base model" if claim.start_checkpoint_id is None else "the weights it started from"
        instead = f"the checkpoint of step {older.step}" if older else first
        message = f"The checkpoint of step {checkpoint.step} is damaged ({error.message}); going on from {instead}"
        data = {"checkpoint": checkpoint.name, "step": checkpoint.step}
        events.append(session, claim.job_id, None, "warn", message, data=data)
        return older

    def _ask(self, question: Callable[[Session], _T], *, writes: bool = False) -> _T:
        """Ask the database until it answers; the fence of the lease ends an attempt that waits too long."""
        database = self._context.database

        def ask() -> _T:
            with database.transaction() if writes else database.read() as session:
                return question(session)

        return self._until_answered(ask)

    def _until_answered(self, ask: Callable[[], _T]) -> _T:
        while True:
            try:
                return ask()
            except DATABASE_OUTAGE as error:
                _log.warning("waiting for the database", job_id=self._claim.job_id, error=str(error))
                self._wait(_DATABASE_RETRY_S)

    def _patiently(self, action: Callable[[], None]) -> None:
        """Do something with the store, again after an outage."""
        for delay in _STORE_RETRIES_S:
            self._wait(0)
            try:
                return action()
            except StorageFull:
                raise
            except StorageError as error:
                _log.warning("the artifact store failed", job_id=self._claim.job_id, error=error.message)
            self._wait(delay)
        return action()

    def _wait(self, seconds: float) -> None:
        if self._abandoned.wait(seconds):
            raise Abandoned("the attempt is over")


def _grader_of(spec: Spec) -> tuple[AnyGraderSpec | None, str]:
    """A specification's grader, and where it stands in the request."""
    if isinstance(spec, RunSpec):
        return spec.method.grader, f"method.{spec.method.type}.grader"
    return (spec.recipe.method.grader if isinstance(spec, EvaluationTask) else None), "grader"
