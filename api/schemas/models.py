"""Models on the wire."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from jobs.services.base_models import BaseModelInfo
from jobs.services.tuned_models import BASE_OWNER, Model


class ModelDetails(BaseModel):
    """`rl`: where a tuned model comes from."""

    base_model: str
    job_id: str | None
    checkpoint_id: str | None


class ModelObject(BaseModel):
    """A base model, the result of a job, or a checkpoint."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    rl: ModelDetails | None = None


class ModelList(BaseModel):
    """All models; never paged."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


def model_object(model: Model) -> ModelObject:
    """A model as the wire has it."""
    details = None
    if model.base is not None:
        details = ModelDetails(base_model=model.base, job_id=model.job_id, checkpoint_id=model.checkpoint_id)
    return ModelObject(id=model.id, created=model.created_at, owned_by=model.owned_by, rl=details)


class ModelDeleted(BaseModel):
    """Answer to a deletion."""

    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True


class MemoryEstimate(BaseModel):
    """Bytes on the accelerator for weights, gradients and optimizer; activations come on top."""

    inference_bfloat16: int
    inference_float32: int
    full_training: int = Field(description="All weights with AdamW, in float32.")
    lora_training_bfloat16: int = Field(description="Frozen bfloat16 weights; the adapter adds little.")


class BaseModelObject(BaseModel):
    """A base model of the catalog."""

    id: str
    object: Literal["base_model"] = "base_model"
    created: int
    owned_by: str = BASE_OWNER
    architecture: str = Field(description="`llada`, `dream`, `a2d` (converted autoregressive), or `unknown`.")
    model_type: str = Field(description="As config.json has it.")
    context_length: int | None = Field(description="Tokens of messages and answer together.")
    vocabulary: int | None
    dtype: str | None = Field(description="Of the stored weights.")
    parameters: int = Field(description="0 when the weight files cannot be read.")
    bytes: int = Field(description="Of the weight files.")
    memory: MemoryEstimate
    methods: list[str]
    algorithms: list[str] = Field(description="For `method.reinforcement.algorithm`.")


class BaseModelList(BaseModel):
    """All base models; never paged."""

    object: Literal["list"] = "list"
    data: list[BaseModelObject]
    has_more: bool = False


def base_model_object(info: BaseModelInfo) -> BaseModelObject:
    """A base model as the wire has it."""
    names = ("id", "architecture", "model_type", "context_length", "vocabulary", "dtype", "parameters", "bytes")
    shown = {name: getattr(info, name) for name in names}
    lists = {"methods": [*info.methods], "algorithms": [*info.algorithms]}
    return BaseModelObject.model_validate(shown | lists | {"created": info.created_at, "memory": info.memory})
