"""The body of POST /v1/fine_tuning/jobs.

OpenAI's parameters are written out; the hyperparameters of ours are taken over from `bgpo.spec`, field by field with
their bounds, so that the two cannot drift apart. Every hyperparameter may be "auto".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, Field, StringConstraints, create_model

from bgpo.rewards.spec import GraderSpec
from bgpo.spec import (
    AlgorithmName,
    Dpo,
    EarlyStoppingSpec,
    EvaluationSpec,
    GradingSpec,
    OptimizerSpec,
    Recipe,
    Reinforcement,
    RolloutSpec,
    Supervised,
)
from jobs.wire.base import Auto, StorableWire, Wire, refuse

PriorityName = Literal["low", "normal", "high"]
PRIORITIES: dict[PriorityName, int] = dict(zip(get_args(PriorityName), (-1, 0, 1), strict=True))
"""As the jobs table has them."""

STRUCTURE = frozenset({"type", "algorithm", "grader", "rollout", "optimizer"})
"""Fields of a method that are not hyperparameters on the wire."""


class Hyperparameters(Wire):
    """OpenAI's own; the rest is added below."""

    n_epochs: Annotated[int | None, Field(ge=1, le=50), Auto()] = Field(
        None, description="Passes over the training file. Not together with max_steps. Auto: at least 100 steps."
    )
    learning_rate_multiplier: Annotated[float | None, Field(gt=0), Auto()] = Field(
        None, description="Scales the method's base learning rate. Not together with learning_rate. Auto: 1."
    )
    eval_interval: Annotated[int | None, Field(ge=1), Auto()] = Field(
        None, description="Steps between evaluations on the validation file. Auto: first and last step only."
    )
    eval_samples: Annotated[int | None, Field(ge=1), Auto()] = Field(
        None, description="Rows of the validation file used. Auto: all."
    )
    compute_multiplier: Annotated[None, BeforeValidator(refuse), Auto()] = None
    reasoning_effort: Annotated[None, BeforeValidator(refuse)] = None


def _hyperparameters(name: str, *specs: type[BaseModel]) -> Any:
    fields: dict[str, Any] = {}
    for spec in specs:
        for field, info in spec.model_fields.items():
            if field not in STRUCTURE:
                optional = info.annotation | None  # type: ignore[operator]  # annotations here are types
                described = Field(None, description=info.description)
                fields[field] = (Annotated[(optional, *info.metadata, Auto())], described)
    precision = Recipe.model_fields["precision"]
    fields["precision"] = (Annotated[precision.annotation | None, Auto()], None)  # type: ignore[operator]
    return create_model(name, __base__=Hyperparameters, __module__=__name__, **fields)


if TYPE_CHECKING:

    class ReinforcementHyperparameters(Hyperparameters):
        """Made below."""

    class SupervisedHyperparameters(Hyperparameters):
        """Made below."""

    class DpoHyperparameters(Hyperparameters):
        """Made below."""
else:
    ReinforcementHyperparameters = _hyperparameters(
        "ReinforcementHyperparameters", Reinforcement, RolloutSpec, OptimizerSpec
    )
    SupervisedHyperparameters = _hyperparameters("SupervisedHyperparameters", Supervised, RolloutSpec, OptimizerSpec)
    DpoHyperparameters = _hyperparameters("DpoHyperparameters", Dpo, RolloutSpec, OptimizerSpec)


class ReinforcementBlock(Wire):
    """`method.reinforcement`."""

    grader: GraderSpec
    algorithm: AlgorithmName = "bgpo"
    hyperparameters: ReinforcementHyperparameters = Field(default_factory=ReinforcementHyperparameters)


class SupervisedBlock(Wire):
    """`method.supervised`. With a grader, evaluations sample answers and score them."""

    grader: GraderSpec | None = None
    hyperparameters: SupervisedHyperparameters = Field(default_factory=SupervisedHyperparameters)


class DpoBlock(Wire):
    """`method.dpo`. With a grader, evaluations sample answers to the rows' input and score them."""

    grader: GraderSpec | None = None
    hyperparameters: DpoHyperparameters = Field(default_factory=DpoHyperparameters)


class MethodBlock(Wire):
    """`method`: the type, and the block of that name."""

    type: Literal["reinforcement", "supervised", "dpo"]
    reinforcement: ReinforcementBlock | None = None
    supervised: SupervisedBlock | None = None
    dpo: DpoBlock | None = None


class EvalBlock(Wire):
    """`rl.eval`: the same as eval_interval and eval_samples of the hyperparameters."""

    interval: Annotated[int | None, Field(ge=1)] = None
    samples: Annotated[int | None, Field(ge=1)] = None
    batch_size: int = Field(EvaluationSpec().batch_size, ge=1, description="Prompts decoded at once.")
    answers: int = Field(1, ge=1, le=64, description="Sampled answers per prompt, the k of pass@k; needs a grader.")
    at_start: bool = Field(True, description="Also evaluate before the first step.")


class CheckpointingBlock(Wire):
    """`rl.checkpointing`."""

    every_steps: Annotated[int | None, Field(ge=1)] = Field(None, description="None: five during the job.")
    keep_last: int = Field(
        5, ge=1, description="Newest ones the service keeps; the best, pinned ones and the result stay too."
    )
    keep_best: bool = Field(True, description="Also write a checkpoint whenever an evaluation is the best so far.")
    best_metric: Annotated[str | None, StringConstraints(min_length=1, max_length=256)] = Field(
        None, description="Validation metric of the best. None: sampled_solved_rate, or loss without a grader."
    )


class ResourcesBlock(Wire):
    """`rl.resources`: what a worker must have, and for how long."""

    gpus: int = Field(1, ge=1, description="Accelerators of one worker; on CPU workers, processes.")
    gpu_type: Annotated[str | None, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=64)] = Field(
        None, description="Class of accelerator, as GET /v1/fine_tuning/queue names it. None: any."
    )
    max_runtime_s: Annotated[float | None, Field(gt=0)] = Field(
        None, description="Seconds the job's attempts may take together; then it fails with `deadline`. None: no limit."
    )


OnExceed = Literal["pause", "stop"]


class BudgetBlock(Wire):
    """`rl.budget`: what all attempts of the job may use together."""

    gpu_seconds: Annotated[float | None, Field(gt=0)] = Field(
        None, description="Accelerators times seconds; on CPU workers, processes. None: no limit."
    )
    judge_tokens: Annotated[int | None, Field(ge=1, le=2**53)] = Field(
        None, description="Tokens of prompts and answers of judges. None: no limit."
    )
    on_exceed: OnExceed = Field(
        "pause",
        description="A running job writes a checkpoint, and is then paused, or over (stop): that checkpoint is its "
        "result. One that waits is paused.",
    )


class Scheduling(Wire):
    """The part of `rl` that says when and where a job runs, what it may use, and who is told. Of all that only a budget
    that stops changes the result."""

    priority: PriorityName = Field("normal", description="Jobs of a higher one start first, whosever they are.")
    resources: ResourcesBlock = Field(default_factory=ResourcesBlock)
    budget: BudgetBlock = Field(default_factory=BudgetBlock)
    webhook_url: Annotated[str | None, StringConstraints(min_length=1, max_length=2048)] = Field(
        None, description="Is sent the event that ends the job: https. Needs a webhook secret in the service."
    )


class ResumeBlock(Wire):
    """`rl.resume_from`: another job's checkpoint to go on from."""

    checkpoint: str = Field(
        min_length=1, max_length=512, description="By id or model id. `model` must be that of the job that made it."
    )
    load_optimizer: bool = Field(
        True, description="Go on with its step and optimizer. False: its weights alone, a new optimizer, from step 1."
    )


class Extensions(Scheduling):
    """`rl`: what OpenAI's API has no place for."""

    resume_from: ResumeBlock | None = Field(None, description="Go on from a checkpoint of another job (jobs.md).")

    eval: EvalBlock = Field(default_factory=EvalBlock)
    checkpointing: CheckpointingBlock = Field(default_factory=CheckpointingBlock)
    early_stopping: EarlyStoppingSpec | None = Field(
        None, description="Needs a validation_file and eval_interval. The job then succeeds before its last step."
    )
    on_grader_error: Literal["drop", "zero", "fail"] = Field(
        "drop", description="A sample that the grader fails on leaves its group, has reward 0, or ends the job."
    )
    max_error_rate: float = Field(
        GradingSpec().max_error_rate,
        ge=0,
        le=1,
        description="The job fails when the share of samples with an error reaches it and stays there (rewards.md).",
    )
    sample_log: int = Field(4, ge=0, le=64, description="Rollouts logged each step.")


Key = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Value = Annotated[str, StringConstraints(max_length=512)]


class CreateJob(StorableWire):
    """A request for a fine-tuning job."""

    model: str = Field(
        min_length=1, max_length=512, description="What to start from: a base model, a tuned model, or a checkpoint."
    )
    training_file: str = Field(min_length=1, max_length=64)
    validation_file: str | None = Field(None, min_length=1, max_length=64)
    method: MethodBlock | None = Field(None, description="Absent: supervised.")
    hyperparameters: SupervisedHyperparameters | None = Field(
        None, description="Deprecated: the hyperparameters of a job without `method`."
    )
    suffix: str | None = Field(None, min_length=1, max_length=64, description="Becomes part of the model's name.")
    seed: int | None = Field(None, ge=0, le=2**31 - 1, description="Absent: drawn, and shown in the job.")
    metadata: dict[Key, Value] | None = Field(None, max_length=16)
    integrations: Annotated[None, BeforeValidator(lambda value: refuse(value or None))] = Field(
        None, description="Not supported yet."
    )
    rl: Extensions = Field(default_factory=Extensions)


class RetryJob(StorableWire):
    """What a retry may change: nothing of the recipe. Of `rl.resources` and `rl.budget`, what is left out stays."""

    rl: Scheduling = Field(default_factory=Scheduling)


class KeepBlock(Wire):
    """Which checkpoints the service keeps; what is left out stays as it is."""

    keep_last: int | None = Field(None, ge=1)
    keep_best: bool | None = Field(None, description="Which ones are written for it changes with the next attempt.")


class ChangedBudget(Wire):
    """What a job may use; what is left out stays as it is, null takes the limit away."""

    gpu_seconds: Annotated[float | None, Field(gt=0)] = None
    judge_tokens: Annotated[int | None, Field(ge=1, le=2**53)] = None
    on_exceed: OnExceed = "pause"


class ChangedExtensions(Wire):
    """`rl` of a job, as far as it can be changed; only while the job is not over."""

    priority: PriorityName | None = None
    budget: ChangedBudget = Field(default_factory=ChangedBudget)
    checkpointing: KeepBlock = Field(default_factory=KeepBlock)


class UpdateJob(StorableWire):
    """What can be changed about a job; what is left out stays as it is."""

    metadata: dict[Key, Value] | None = Field(
        None, max_length=16, description="Replaces the old metadata; null or {} removes it."
    )
    rl: ChangedExtensions = Field(default_factory=ChangedExtensions)


Never = Annotated[None, BeforeValidator(lambda value: refuse(value if value is None else [value]))]
"""Only null passes."""


class UpdateCheckpoint(Wire):
    """What can be changed about a checkpoint."""

    pinned: bool = Field(description="Keep it until it is unpinned.")
    name: Never = Field(None, description="Not supported: names do not change.")
    ttl: Never = Field(None, description="Not supported: `rl.checkpointing` of the job says what is kept.")
