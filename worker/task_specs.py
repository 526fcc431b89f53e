"""From a claimed task to the specification its trainer process gets, and to the files of the checkpoint it needs.

A checkpoint with an adapter is put together from the base model and the adapter, as the run that made it had them in
memory: merged weights are rounded once more. That holds only where the run began at the base model of the catalog; one
that began at a tuned model has no other base than its merged weights.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from bgpo.errors import SpecError
from bgpo.spec import Recipe
from bgpo.task_spec import EvaluationTask, ExportTask
from jobs.artifacts import Manifest, ManifestFile, adapter_files, has_adapter, model_files
from jobs.kinds import Kind
from jobs.repositories.claims import Claim
from jobs.services.grading import grader_settings
from jobs.settings import Settings
from jobs.tables import Checkpoint, Job


def is_over_base(claim: Claim, checkpoint: Checkpoint, maker: Job) -> bool:
    """Whether the task needs the adapter and the base model, and not the checkpoint's whole weights."""
    if claim.kind == Kind.EXPORT and claim.recipe["content"] == "adapter":
        return True
    return has_adapter(Manifest.from_json(checkpoint.manifest)) and maker.start_checkpoint_id is None


def needed_files(checkpoint: Checkpoint, over_base: bool) -> list[ManifestFile]:
    """What of the checkpoint the task reads."""
    manifest = Manifest.from_json(checkpoint.manifest)
    return adapter_files(manifest) if over_base else model_files(manifest)


def task_spec(
    settings: Settings, claim: Claim, *, model: Path, base: Path | None, data: Path | None, output: Path
) -> EvaluationTask | ExportTask:
    """What the trainer is told.

    Args:
        model: directory of the checkpoint, or of the base model.
        base: directory of the base model, if `model` is an adapter over it.

    Raises:
        SpecError: the stored recipe does not validate (an upgrade made it invalid).
    """
    shared = {"model": str(model), "base": None if base is None else str(base), "output_dir": str(output)}
    machine = {"device": settings.trainer_device, "threads": settings.trainer_threads}
    try:
        if claim.kind == Kind.EXPORT:
            return ExportTask.model_validate(
                shared | machine | claim.recipe | {"task": "export", "base_name": claim.model}
            )
        recipe = Recipe.model_validate(claim.recipe)
        return EvaluationTask.model_validate(
            shared
            | machine
            | {"task": "evaluate", "recipe": recipe, "data": str(data), "graders": grader_settings(settings)}
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise SpecError(first["msg"].removeprefix("Value error, "), ".".join(map(str, first["loc"]))) from error
