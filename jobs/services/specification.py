"""What a job was, for whoever wants to run it again elsewhere: its recipe with everything it stood on.

`run` is a `bgpo.spec.RunSpec` but for its paths, which are names to be replaced. What was not recorded when the job ran
is not made up: of the base model stands here what the catalog has now, of the software what the service and the workers
that are still remembered are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jobs.artifacts import sha256_of
from jobs.context import Context
from jobs.repositories import attempts, files, workers
from jobs.services.jobs import find
from jobs.tables import SCHEMA, Attempt, File, Job
from jobs.wire.graders import shown

_PATHS = {"training_file": "training_file.jsonl", "validation_file": "validation_file.jsonl"}
_OUTPUT = "output"


@dataclass(frozen=True)
class ModelFiles:
    """A base model as the catalog has it now."""

    config_sha256: str
    bytes: Mapping[str, int]
    """Size of each file by its path."""


@dataclass(frozen=True)
class Specification:
    """A job's, see above."""

    job: Job
    run: dict[str, Any]
    files: Mapping[str, File | None]
    """By parameter; None when a file is deleted."""
    model: ModelFiles | None
    """None when the catalog has it no more."""
    attempts: Sequence[tuple[Attempt, str | None]]
    """Each with the version of its worker, where that is remembered."""
    versions: Mapping[str, str]


def of_job(ctx: Context, project_id: str, job_id: str) -> Specification:
    """The specification of a job. Raises NotFound."""
    with ctx.db.read() as session:
        job = find(session, project_id, job_id)
        given = {param: id_ for param in _PATHS if (id_ := getattr(job, param)) is not None}
        found = {param: files.get(session, project_id, id_) for param, id_ in given.items()}
        known = {worker.id: worker.version for worker in workers.list(session)}
        tried = [(attempt, known.get(attempt.worker_id)) for attempt in attempts.of_job(session, job_id)]
    base = ctx.catalog.get(job.base)
    return Specification(
        job=job,
        run=_run(job),
        files=found,
        model=None if base is None else _model_files(base.path),
        attempts=tried,
        versions={"bgpo": version("bgpo"), "schema": SCHEMA},
    )


def _run(job: Job) -> dict[str, Any]:
    method = dict(job.recipe["method"])
    if method.get("grader") is not None:
        method["grader"] = shown(method["grader"])
    validation = _PATHS["validation_file"] if job.validation_file is not None else None
    paths = {"model": job.model, "train_data": _PATHS["training_file"], "validation_data": validation}
    return job.recipe | {"method": method} | paths | {"output_dir": _OUTPUT}


def _model_files(folder: Path) -> ModelFiles:
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return ModelFiles(sha256_of(folder / "config.json"), dict(sorted(sizes.items())))
