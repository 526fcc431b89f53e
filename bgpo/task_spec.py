"""What the trainer process is told when it is not to train: evaluate a model, or export a checkpoint.

Kept apart from `bgpo.spec`: a task has the paths of a run but none of its steps. `task` tells the specifications apart;
one without it is a run's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from bgpo.errors import SpecError
from bgpo.rewards.settings import GraderSettings
from bgpo.rewards.spec import wire_path
from bgpo.spec import Recipe, RunSpec, Strict, parse_run_spec

DType = Literal["float32", "bfloat16", "float16"]
Content = Literal["merged", "adapter"]


class Task(Strict):
    """What both share."""

    model: str = Field(description="Directory of the checkpoint, or of the base model.")
    base: str | None = Field(None, description="Directory of the base model: `model` is its LoRA adapter over it.")
    output_dir: str
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    threads: int | None = Field(None, ge=1, description="CPU threads; None = torch's default.")


class EvaluationTask(Task):
    """Answer and grade the rows of a file, as an evaluation of a run does."""

    task: Literal["evaluate"]
    recipe: Recipe = Field(description="Grader, sampler, answers a prompt, seed; its method trains nothing here.")
    data: str = Field(description="JSONL file.")
    graders: GraderSettings = Field(default_factory=GraderSettings)


class ExportTask(Task):
    """Write a checkpoint's weights for use elsewhere."""

    task: Literal["export"]
    content: Content = Field(description="merged: whole weights; adapter: the LoRA adapter alone.")
    dtype: DType
    base_name: str = Field(description="What an adapter's config names as its base model.")


Spec = RunSpec | EvaluationTask | ExportTask
_TASKS: dict[str, type[EvaluationTask] | type[ExportTask]] = {"evaluate": EvaluationTask, "export": ExportTask}


def parse_spec(path: Path | str) -> Spec:
    """Read the specification of a run or a task from a JSON file.

    Raises:
        SpecError: naming the first offending field by its dotted path.
    """
    try:
        text = Path(path).read_bytes()
        fields = json.loads(text)
    except OSError as error:
        raise SpecError(f"cannot read the specification {path}: {error.strerror}") from error
    except ValueError:
        fields = None  # `parse_run_spec` says what is wrong with it
    task = fields.get("task") if isinstance(fields, dict) else None
    if task is None:
        return parse_run_spec(path)
    if task not in _TASKS:
        raise SpecError(f"{task!r} is none of {', '.join(_TASKS)}", "task")
    try:
        return _TASKS[task].model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise SpecError(first["msg"].removeprefix("Value error, "), wire_path(first["loc"], fields) or None) from error
