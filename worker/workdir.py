"""The local folder of one attempt: inputs copied in and verified, the run specification, what the trainer writes.

    <home>/work/<job>/<epoch>/spec.json  trainer.log  data/  resume/  output/checkpoints/

A folder per epoch, so that a trainer nobody waits for any more cannot touch the files of the attempt that follows it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from bgpo.errors import DataError, ModelError
from bgpo.spec import parse_run_spec
from jobs.artifacts import ArtifactStore, Manifest
from jobs.db import Database
from jobs.repositories import checkpoints, files
from jobs.repositories.jobs import Claim
from jobs.services.models import Catalog
from jobs.settings import Settings
from jobs.tables import Checkpoint, File


class WorkDir:
    """One attempt's folder."""

    def __init__(self, settings: Settings, claim: Claim) -> None:
        self._settings, self._claim = settings, claim
        self._job = settings.home / "work" / claim.job_id
        self.path = self._job / str(claim.epoch)
        self.spec = self.path / "spec.json"
        self.log = self.path / "trainer.log"

    def create(self) -> None:
        """Make the folder; what earlier attempts of the job left on this machine goes."""
        shutil.rmtree(self._job, ignore_errors=True)
        self.path.mkdir(parents=True, mode=0o700)

    def remove(self) -> None:
        """Delete it: everything worth keeping is in the artifact store."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._job.is_dir() and not any(self._job.iterdir()):
            self._job.rmdir()

    def prepare(self, database: Database, store: ArtifactStore) -> None:
        """Fetch the inputs and write the specification.

        Raises:
            ModelError, DataError: the base model or a file does not exist (any more).
            SpecError: the stored recipe does not validate (an upgrade made it invalid).
            ArtifactError: a stored object is missing or damaged.
        """
        claim, settings = self._claim, self._settings
        model = Catalog(settings.model_root).get(claim.model)
        if model is None:
            raise ModelError(f"this worker has no base model {claim.model!r}", "model")
        with database.read() as session:
            train = files.get(session, claim.project_id, claim.training_file)
            validation = files.get(session, claim.project_id, claim.validation_file) if claim.validation_file else None
            resume = checkpoints.by_id(session, claim.resume_checkpoint_id) if claim.resume_checkpoint_id else None
        if train is None or (validation is None and claim.validation_file):
            name = "training_file" if train is None else "validation_file"
            raise DataError("the file was deleted before the job started", name)
        spec = parse_run_spec(
            claim.recipe
            | {
                "model": str(model.path),
                "train_data": str(self._fetch_file(store, train, "train.jsonl")),
                "validation_data": str(self._fetch_file(store, validation, "validation.jsonl")) if validation else None,
                "output_dir": str(self.path / "output"),
                "resume_from": str(self._fetch_checkpoint(store, resume)) if resume else None,
                "device": settings.trainer_device,
                "threads": settings.trainer_threads,
            }
        )
        self.spec.write_text(json.dumps(spec.model_dump(mode="json"), indent=2) + "\n", "utf-8")

    def checkpoint(self, path: str) -> Path:
        """A checkpoint directory the trainer reported.

        Raises:
            ValueError: it is not in this folder.
        """
        directory = Path(path).resolve()
        if not directory.is_relative_to(self.path.resolve()):
            raise ValueError(f"{path} lies outside the job's folder")
        return directory

    def _fetch_file(self, store: ArtifactStore, file: File, name: str) -> Path:
        target = self.path / "data" / name
        store.fetch_file(file.key, target, bytes=file.bytes, sha256=file.sha256)
        return target

    def _fetch_checkpoint(self, store: ArtifactStore, checkpoint: Checkpoint) -> Path:
        target = self.path / "resume" / f"step-{checkpoint.step:06d}"
        store.fetch_directory(checkpoint.key, Manifest.from_json(checkpoint.manifest), target)
        return target
