"""The run specification: everything a training run is, as strict, torch-free pydantic models.

`Recipe` is what a user chooses and what the service stores with a job. `RunSpec` adds the local paths, filled in by
whoever starts the run (a worker, or a person at a shell). Unknown fields are errors; cross-field rules are checked at
construction, so a spec that exists is a spec that can run.

Symbols follow the paper (arXiv 2510.11683): G = group_size, n_t = mc_samples, L = response length.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bgpo.errors import SpecError
from bgpo.rewards.settings import GraderSettings
from bgpo.rewards.spec import GraderSpec, wire_path

EstimatorName = Literal[
    "exact_count", "bernoulli", "systematic", "stratified", "antithetic", "quadrature", "importance"
]
"""How masks are drawn, see `bgpo.diffusion.estimators`."""

AlgorithmName = Literal["bgpo", "elbo_ratio", "taylor_only", "jensen_only", "diffu_grpo", "espo", "spg"]
"""What reinforcement maximizes, see `bgpo.objectives`."""


class Strict(BaseModel):
    """Base of all specs: immutable, exact types, unknown fields rejected, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class RolloutSpec(Strict):
    """Block-wise semi-autoregressive sampling (LLaDA), see `bgpo.diffusion.sampler`."""

    max_completion_length: int = Field(256, ge=1, le=32768, description="Response canvas in tokens.")
    diffusion_steps: int = Field(128, ge=1, description="Denoising steps over all blocks.")
    block_length: int = Field(32, ge=1, description="Tokens per block; divides max_completion_length.")
    temperature: float = Field(1.0, ge=0, le=10, description="0 = greedy; else softmax temperature of the draw.")
    remasking: Literal["low_confidence", "entropy", "random"] | None = Field(
        None, description="Which predictions are kept; null = the model family's own (LLaDA low_confidence)."
    )
    threshold: float | None = Field(None, gt=0, le=1, description="Commit every token at or above this confidence.")

    @model_validator(mode="after")
    def _blocks(self) -> Self:
        if self.max_completion_length % self.block_length:
            raise ValueError(
                f"block_length {self.block_length} must divide max_completion_length {self.max_completion_length}"
            )
        blocks = self.max_completion_length // self.block_length
        if self.diffusion_steps % blocks:
            raise ValueError(f"diffusion_steps {self.diffusion_steps} must be a multiple of the {blocks} blocks")
        if self.threshold is not None and self.remasking not in (None, "low_confidence"):
            raise ValueError("threshold is a confidence and belongs to remasking low_confidence")
        if self.diffusion_steps > self.max_completion_length:
            raise ValueError(
                f"diffusion_steps {self.diffusion_steps} exceeds max_completion_length {self.max_completion_length}: "
                "a step commits at least one token"
            )
        return self


class OptimizerSpec(Strict):
    """Learning rate linear from 0 over the warm-up, then constant or linear to 0 at the last step."""

    optimizer_type: Literal["adamw", "adafactor"] = Field(
        "adamw", description="adafactor keeps factored second moments and no first: little memory."
    )
    learning_rate: float = Field(5e-7, gt=0)
    warmup_steps: int = Field(0, ge=0)
    decay: Literal["none", "linear"] = "none"
    weight_decay: float = Field(0.0, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    epsilon: float = Field(1e-8, gt=0)
    max_grad_norm: float = Field(1.0, gt=0, description="Global gradient norm clip.")


class LoraSpec(Strict):
    """Low-rank adapters on the linear layers of the blocks (arXiv 2106.09685); everything else is frozen."""

    rank: int = Field(16, ge=1, le=1024)
    alpha: float = Field(32.0, gt=0, description="The adapter's output is scaled by alpha / rank.")
    targets: Literal["all", "attention"] = Field("all", description="Which linear layers, by the family's names.")
    checkpoints: Literal["merged", "adapter"] = Field(
        "merged", description="merged = whole weights beside the adapter; adapter = the adapter alone."
    )


class Training(Strict):
    """What every method shares."""

    optimizer: OptimizerSpec = Field(default_factory=OptimizerSpec)
    max_steps: int = Field(100, ge=1)
    micro_batch: int = Field(32, ge=1, description="Masked canvases per backward; never changes the gradient.")
    lora: LoraSpec | None = Field(None, description="Train adapters; null = all weights.")
    activation_checkpointing: bool = Field(False, description="Recompute each block in the backward pass.")


_ONLY_FOR = {
    "clip_epsilon": ("diffu_grpo", "espo"),
    "prompt_mask_probability": ("diffu_grpo",),
    "upper_bound_power": ("spg",),
    "upper_bound_mixture": ("spg",),
}


class Reinforcement(Training):
    """Policy optimization against a grader (Algorithm 1 of the paper)."""

    type: Literal["reinforcement"] = "reinforcement"
    algorithm: AlgorithmName = "bgpo"
    grader: GraderSpec
    rollout: RolloutSpec = Field(default_factory=RolloutSpec)
    max_steps: int = Field(100, ge=1, description="Rollout batches; each makes num_inner_updates optimizer steps.")
    batch_size: int = Field(16, ge=1, description="Prompts per rollout batch.")
    group_size: int = Field(8, ge=2, description="Responses per prompt (G).")
    num_inner_updates: int = Field(1, ge=1, description="Mini-batches per rollout batch; 1 = on-policy.")
    mc_samples: int = Field(16, ge=1, description="Monte Carlo samples per response (n_t).")
    estimator: EstimatorName = Field("importance", description="How masks are drawn and weighed.")
    advantage: Literal["z_score", "mean_only", "leave_one_out"] = "z_score"
    length_normalization: Literal["none", "length", "masked"] | None = Field(
        None, description="Divide the ELBO terms by a length; null = the algorithm's own (espo length, others none)."
    )
    clamp_log_ratio: float = Field(10.0, gt=0, le=80, description="Upper clamp of d_j where it is exponentiated.")
    clip_epsilon: float = Field(0.2, gt=0, lt=1, description="Ratio clip of diffu_grpo and espo.")
    prompt_mask_probability: float = Field(0.15, ge=0, lt=1, description="Masked prompt tokens in diffu_grpo.")
    upper_bound_power: float = Field(1.5, gt=1, description="Exponent of spg's evidence upper bound.")
    upper_bound_mixture: float = Field(0.5, ge=0, le=1, description="Weight of spg's upper bound against the ELBO.")
    kl_coefficient: float = Field(0.0, ge=0, description="Weight of the KL to the initial policy (k2); 0 = off.")
    dynamic_sampling_rounds: int = Field(
        0, ge=0, le=16, description="Further rollouts a step may make to replace groups without signal."
    )
    score_eos_padding: bool = Field(False, description="Also score the tokens after the first end token.")

    @property
    def normalization(self) -> Literal["none", "length", "masked"]:
        """length_normalization with the algorithm's own in place of null."""
        return self.length_normalization or ("length" if self.algorithm == "espo" else "none")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.batch_size % self.num_inner_updates:
            raise ValueError(
                f"num_inner_updates {self.num_inner_updates} must divide batch_size {self.batch_size} (prompts)"
            )
        for name, algorithms in _ONLY_FOR.items():
            default = type(self).model_fields[name].default
            if getattr(self, name) != default and self.algorithm not in algorithms:
                raise ValueError(f"{name} belongs to {' and '.join(algorithms)}; {self.algorithm} does not use it")
        return self


class _GradedEvaluation(Training):
    """A method that trains on given answers and may also grade sampled ones."""

    grader: GraderSpec | None = Field(None, description="Scores sampled answers in evaluations, when given.")
    rollout: RolloutSpec | None = Field(None, description="How evaluations sample; needed with a grader.")

    @model_validator(mode="after")
    def _grader_and_rollout(self) -> Self:
        if (self.grader is None) != (self.rollout is None):
            raise ValueError("grader and rollout belong together: give both to score sampled answers, or neither")
        return self


class Supervised(_GradedEvaluation):
    """Masked-diffusion supervised fine-tuning (LLaDA's recipe): responses padded with end tokens, 1/t weighting."""

    type: Literal["supervised"] = "supervised"
    optimizer: OptimizerSpec = Field(default_factory=lambda: OptimizerSpec(learning_rate=1e-5))
    batch_size: int = Field(32, ge=1, description="Rows per optimizer step.")
    max_completion_length: int = Field(256, ge=1, description="Responses are padded with end tokens to this length.")


class Dpo(_GradedEvaluation):
    """Preference optimization on chosen and rejected answers (VRPO, arXiv 2505.19223)."""

    type: Literal["dpo"] = "dpo"
    batch_size: int = Field(8, ge=1, description="Pairs per optimizer step.")
    beta: float = Field(0.1, gt=0, description="Strength of the pull to the initial policy.")
    mc_samples: int = Field(8, ge=1, description="Monte Carlo samples per answer (n_t).")
    estimator: EstimatorName = "antithetic"
    max_completion_length: int = Field(256, ge=1, description="Longest answer in tokens.")


Method = Annotated[Reinforcement | Supervised | Dpo, Field(discriminator="type")]


class EvaluationSpec(Strict):
    """When and on how much of the validation file the policy is evaluated (always at the end)."""

    interval: int | None = Field(None, ge=1, description="Steps between evaluations; None = first and last only.")
    samples: int | None = Field(None, ge=1, description="Rows of the validation file used; None = all.")
    batch_size: int = Field(256, ge=1, description="Prompts decoded at once; never changes the result.")
    answers: int = Field(1, ge=1, description="Sampled answers per prompt, the k of pass@k.")
    at_start: bool = Field(True, description="Also before the first step.")


class CheckpointingSpec(Strict):
    """When checkpoints are written and how many local ones are kept."""

    every_steps: int | None = Field(None, ge=1, description="None = only the last step.")
    keep_last: int = Field(2, ge=1)
    keep_best: bool = Field(True, description="Also write and keep the checkpoint of the best evaluation so far.")
    best_metric: str | None = Field(
        None, description="Validation metric of the best; null = sampled_solved_rate, or loss without a grader."
    )


class GradingSpec(Strict):
    """What becomes of samples that the grader fails on, see `bgpo.training.grading`."""

    on_error: Literal["drop", "zero", "fail"] = Field(
        "drop",
        description="drop: the sample leaves its group; zero: its reward is 0; fail: the first error ends the run.",
    )
    # Half: a judge's bad minutes pass, while a grader that fails on every other sample has a fault of its own.
    max_error_rate: float = Field(
        0.5, ge=0, le=1, description="The run ends when the share of samples with an error reaches it and stays there."
    )

    @model_validator(mode="after")
    def _used(self) -> Self:
        if self.on_error == "fail" and self.max_error_rate != GradingSpec.model_fields["max_error_rate"].default:
            raise ValueError("max_error_rate says nothing beside on_error fail: the first error ends the run")
        return self


class EarlyStoppingSpec(Strict):
    """Finish before max_steps when evaluations no longer improve."""

    patience: int = Field(ge=1, description="Evaluations without improvement before the run finishes.")
    min_delta: float = Field(0.0, ge=0, description="A smaller change is no improvement.")
    warmup_evals: int = Field(0, ge=0, description="Evaluations at the start that do not count.")
    metric: str | None = Field(None, description="null = checkpointing.best_metric.")


class SinkSpec(Strict):
    """A metrics tracker that the run also writes to."""

    type: Literal["tensorboard", "mlflow", "wandb", "trackio"]
    location: str | None = Field(None, description="Directory (tensorboard, wandb) or tracking URI (mlflow).")
    project: str = "bgpo"
    run_name: str | None = None


class Recipe(Strict):
    """What is trained and how, without any path."""

    seed: int = Field(0, ge=0, le=2**31 - 1)
    precision: Literal["float32", "bfloat16"] = "float32"
    method: Method
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec)
    checkpointing: CheckpointingSpec = Field(default_factory=CheckpointingSpec)
    grading: GradingSpec = Field(default_factory=GradingSpec)
    early_stopping: EarlyStoppingSpec | None = None
    distributed: Literal["ddp", "fsdp2"] = Field(
        "ddp", description="How the processes of `accelerate launch` share the model; one process ignores it."
    )
    sample_log: int = Field(4, ge=0, description="Rollouts emitted as `sample` records each step.")

    @model_validator(mode="after")
    def _stops_by_evaluations(self) -> Self:
        if self.early_stopping is not None and self.evaluation.interval is None:
            raise ValueError("early_stopping needs evaluation.interval: it looks at evaluations during the run")
        return self

    @model_validator(mode="after")
    def _grades(self) -> Self:
        default = GradingSpec()
        if self.method.grader is None and self.grading != default:
            raise ValueError("grading is about a grader, and the method has none")
        if self.method.type != "reinforcement" and self.grading.max_error_rate != default.max_error_rate:
            raise ValueError("grading.max_error_rate is about rewards of training steps; evaluations only count errors")
        return self


class RunSpec(Recipe):
    """A recipe with the paths and device of one run."""

    model: str = Field(description="Directory of the checkpoint to start from.")
    adapter_base: str | None = Field(
        None, description="Directory of the base model, where `model` holds a LoRA adapter only: they are merged."
    )
    train_data: str = Field(description="JSONL file.")
    validation_data: str | None = None
    output_dir: str = Field(description="Checkpoints go to <output_dir>/checkpoints/step-NNNNNN.")
    resume_from: str | None = Field(None, description="Checkpoint directory with trainer state to continue from.")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    threads: int | None = Field(None, ge=1, description="CPU threads of the trainer; None = torch's default.")
    sinks: list[SinkSpec] = Field(default_factory=list)
    graders: GraderSettings = Field(default_factory=GraderSettings)

    @model_validator(mode="after")
    def _evaluates(self) -> Self:
        if self.early_stopping is not None and self.validation_data is None:
            raise ValueError("early_stopping needs validation_data: it looks at evaluations")
        return self

    def recipe(self) -> Recipe:
        """This run's recipe, without the paths."""
        return Recipe.model_validate({name: getattr(self, name) for name in Recipe.model_fields})


def parse_run_spec(source: Path | str | dict[str, Any]) -> RunSpec:
    """Read a run specification from a JSON file's path or a dict.

    Raises:
        SpecError: naming the first offending field by its dotted path.
    """
    try:
        text = json.dumps(source).encode() if isinstance(source, dict) else Path(source).read_bytes()
    except OSError as error:
        raise SpecError(f"cannot read the run specification {source}: {error.strerror}") from error
    try:
        return RunSpec.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = wire_path(first["loc"], json.loads(text)) if first["loc"] else ""
        if first["type"].startswith("union_tag"):
            path += ".type"
        raise SpecError(first["msg"].removeprefix("Value error, "), path or None) from error
