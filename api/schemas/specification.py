"""What a job was, on the wire."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from jobs.services.specification import Specification


class SpecFile(BaseModel):
    """A file the job was made with."""

    id: str
    filename: str | None = Field(description="Null, as what follows, when the file is deleted.")
    bytes: int | None
    sha256: str | None


class SpecModelFile(BaseModel):
    """One file of a base model."""

    path: str
    bytes: int


class SpecModel(BaseModel):
    """The base model, as the catalog has it now."""

    id: str
    config_sha256: str | None = Field(description="Of config.json; null when the model is gone.")
    files: list[SpecModelFile]


class SpecAttempt(BaseModel):
    """Where an attempt ran."""

    number: int
    worker_version: str | None = Field(description="Of bgpo there; null when the worker is not remembered any more.")
    devices: list[str] | None
    resumed_step: int | None = Field(description="Null: from the base model.")


class SpecificationObject(BaseModel):
    """All that a job stood on."""

    object: Literal["fine_tuning.job.spec"] = "fine_tuning.job.spec"
    job: str
    source_job: str | None
    model: str = Field(description="What the job started from: the base model, or a tuned one or checkpoint.")
    lineage: list[dict[str, Any]] = Field(description="The models a tuned one descends from, the nearest first.")
    seed: int
    run: dict[str, Any] = Field(
        description="What `python -m bgpo.run` takes, with names to replace in model, train_data, validation_data and "
        "output_dir. Header values of graders are hidden."
    )
    files: dict[str, SpecFile] = Field(description="By parameter.")
    base_model: SpecModel
    attempts: list[SpecAttempt]
    versions: dict[str, str] = Field(description="Of the service now: bgpo, and the schema of its database.")


def specification_object(found: Specification) -> SpecificationObject:
    """A specification as the wire has it."""
    job, model = found.job, found.model
    sizes = model.bytes if model is not None else {}
    return SpecificationObject(
        job=job.id,
        source_job=job.source_job_id,
        model=job.model,
        lineage=job.lineage or [],
        seed=job.seed,
        run=found.run,
        files={
            param: SpecFile(
                id=getattr(job, param),
                filename=file.filename if file else None,
                bytes=file.bytes if file else None,
                sha256=file.sha256 if file else None,
            )
            for param, file in found.files.items()
        },
        base_model=SpecModel(
            id=job.base,
            config_sha256=model.config_sha256 if model is not None else None,
            files=[SpecModelFile(path=path, bytes=size) for path, size in sizes.items()],
        ),
        attempts=[
            SpecAttempt(
                number=attempt.epoch,
                worker_version=worker_version,
                devices=attempt.devices,
                resumed_step=attempt.resumed_step,
            )
            for attempt, worker_version in found.attempts
        ],
        versions=dict(found.versions),
    )
