"""Bodies of the requests for evaluations and exports.

The sampler's fields are those of `bgpo.spec.RolloutSpec` with their bounds, as the hyperparameters of a job have them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, create_model
from pydantic_core import PydanticCustomError

from bgpo.rewards.spec import GraderSpec
from bgpo.spec import EvaluationSpec, RolloutSpec
from bgpo.task_spec import Content, DType
from jobs.wire.base import Auto, StorableWire, Wire
from jobs.wire.request import Key, Value


def _sampler() -> Any:
    fields: dict[str, Any] = {}
    for name, info in RolloutSpec.model_fields.items():
        optional = info.annotation | None  # type: ignore[operator]  # annotations here are types
        fields[name] = (Annotated[(optional, *info.metadata, Auto())], Field(None, description=info.description))
    return create_model("Sampler", __base__=Wire, __module__=__name__, **fields)


if TYPE_CHECKING:

    class Sampler(Wire):
        """Made below."""
else:
    Sampler = _sampler()


def _no_destination(value: Any) -> None:
    if value is not None:
        raise PydanticCustomError(
            "unsupported_destination", "is not supported: download the files of the export and push them yourself"
        )


class Evaluate(StorableWire):
    """What to evaluate on and how. What is left out is as the checkpoint's job has it, where there is one."""

    file: str | None = Field(
        None, min_length=1, max_length=64, description="Rows to answer. Absent: the job's validation file."
    )
    grader: GraderSpec | None = Field(None, description="Absent: the job's.")
    sampler: Sampler | None = Field(None, description="How answers are sampled. Absent: as the job does.")
    samples: int | None = Field(
        None, ge=1, description="Rows of the file used. Absent: as many as the job uses, or all."
    )
    answers: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Sampled answers per row, beside the greedy one. Absent: as many as the job, or 1.",
    )
    batch_size: int = Field(
        EvaluationSpec().batch_size, ge=1, le=4096, description="Rows decoded at once; never changes the result."
    )
    seed: int | None = Field(None, ge=0, le=2**31 - 1, description="Absent: the job's, or 0.")
    precision: Literal["float32", "bfloat16"] | None = Field(None, description="Absent: the job's, or float32.")
    on_grader_error: Literal["drop", "zero", "fail"] | None = Field(
        None,
        description="An answer that the grader fails on is left out, counts as 0, or ends the evaluation. Absent: as "
        "the job does, or drop.",
    )
    metadata: dict[Key, Value] | None = Field(None, max_length=16)


class CreateEvaluation(Evaluate):
    """The same for any model."""

    model: str = Field(min_length=1, max_length=512, description="A base model, a tuned model, or a checkpoint.")


class ExportCheckpoint(StorableWire):
    """What to export."""

    content: Content = Field(
        "merged", description="merged: whole weights, an adapter folded in; adapter: the LoRA adapter alone."
    )
    dtype: DType = Field("bfloat16", description="Of the exported weights.")
    destination: Annotated[None, BeforeValidator(_no_destination)] = Field(
        None, description="A hub or bucket to push to: not supported."
    )
    metadata: dict[Key, Value] | None = Field(None, max_length=16)
