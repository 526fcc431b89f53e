"""Checkpoints and their files on the wire."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from api.schemas.lists import Listed
from jobs.artifacts import Manifest
from jobs.services.messages import checkpoint_metrics
from jobs.tables import Checkpoint


class CheckpointDetails(BaseModel):
    """`rl`: what OpenAI's object has no place for."""

    final: bool = Field(description="Whether it is the result of the job.")
    best: bool = Field(description="Its evaluation was the best so far; of several, the newest is the best.")
    pinned: bool = Field(description="Kept until it is unpinned.")
    damaged: bool = Field(description="Files of it were found missing or altered; no job goes on from it.")
    bytes: int
    manifest_sha256: str = Field(description="Identifies the content of all files together.")


class CheckpointObject(Listed):
    """A checkpoint of a job."""

    id: str = Field(examples=["ftckpt_0197..."])
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str = Field(description="Its name as a model.")
    fine_tuning_job_id: str
    step_number: int
    metrics: dict[str, float]
    rl: CheckpointDetails


class CheckpointDeleted(BaseModel):
    """Answer to a deletion."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    deleted: Literal[True] = True


class CheckpointFile(BaseModel):
    """One file of a checkpoint."""

    path: str
    bytes: int
    sha256: str
    kind: Literal["weights", "adapter", "tokenizer", "trainer_state", "config"]


class CheckpointFiles(BaseModel):
    """The manifest of a checkpoint."""

    object: Literal["list"] = "list"
    data: list[CheckpointFile]
    has_more: bool = False


def checkpoint_object(row: Checkpoint) -> CheckpointObject:
    """A row as the wire has it."""
    return CheckpointObject(
        id=row.id,
        created_at=int(row.created_at),
        fine_tuned_model_checkpoint=row.name,
        fine_tuning_job_id=row.job_id,
        step_number=row.step,
        metrics=checkpoint_metrics(row.step, row.metrics),
        rl=CheckpointDetails(
            final=row.final,
            best=row.best,
            pinned=row.pinned,
            damaged=row.damaged,
            bytes=row.bytes,
            manifest_sha256=row.manifest_sha256,
        ),
    )


def checkpoint_files(manifest: Manifest) -> CheckpointFiles:
    """A manifest as the wire has it."""
    return CheckpointFiles(
        data=[CheckpointFile(path=f.path, bytes=f.bytes, sha256=f.sha256, kind=f.kind) for f in manifest.files]
    )
