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
from bgpo.rewards.spec import GraderSpec, wire_path


class Strict(BaseModel):
    """Base of all specs: immutable, exact types, unknown fields rejected, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class RolloutSpec(Strict):
    """Block-wise semi-autoregressive sampling (LLaDA), see `bgpo.diffusion.sampler`."""

    max_completion_length: int = Field(256, ge=1, le=32768, description="Response canvas in tokens.")
    diffusion_steps: int = Field(128, ge=1, description="Denoising steps over all blocks.")
    block_length: int = Field(32, ge=1, description="Tokens per block; divides max_completion_length.")
    temperature: float = Field(1.0, ge=0, le=10, description="0 = greedy; else softmax temperature of the draw.")
    remasking: Literal["low_confidence", "random"] = "low_confidence"
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
        if self.threshold is not None and self.remasking == "random":
            raise ValueError("threshold is a confidence and belongs to remasking low_confidence")
        if self.diffusion_steps > self.max_completion_length:
            raise ValueError(
                f"diffusion_steps {self.diffusion_steps} exceeds max_completion_length {self.max_completion_length}: "
                "a step commits at least one token"
            )
        return self


class OptimizerSpec(Strict):
    """AdamW; learning rate linear from 0 over the warm-up, then constant or linear to 0 at the last step."""

    learning_rate: float = Field(5e-7, gt=0)
    warmup_steps: int = Field(0, ge=0)
    decay: Literal["none", "linear"] = "none"
    weight_decay: float = Field(0.0, ge=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    epsilon: float = Field(1e-8, gt=0)
    max_grad_norm: float = Field(1.0, gt=0, description="Global gradient norm clip.")


class Reinforcement(Strict):
    """Policy optimization against a grader (Algorithm 1 of the paper)."""

    type: Literal["reinforcement"] = "reinforcement"
    algorithm: Literal["bgpo", "elbo_ratio"] = "bgpo"
    grader: GraderSpec
    rollout: RolloutSpec = Field(default_factory=RolloutSpec)
    optimizer: OptimizerSpec = Field(default_factory=OptimizerSpec)
    max_steps: int = Field(100, ge=1, description="Rollout batches; each makes num_inner_updates optimizer steps.")
    batch_size: int = Field(16, ge=1, description="Prompts per rollout batch.")
    group_size: int = Field(8, ge=2, description="Responses per prompt (G).")
    num_inner_updates: int = Field(1, ge=1, description="Mini-batches per rollout batch; 1 = on-policy.")
    mc_samples: int = Field(16, ge=1, description="Monte Carlo samples per response (n_t).")
    estimator: Literal["exact_count", "bernoulli"] = "exact_count"
    micro_batch: int = Field(32, ge=1, description="Masked canvases per backward; never changes the gradient.")
    advantage: Literal["z_score", "mean_only"] = "z_score"
    length_normalization: Literal["none", "length"] = "none"
    clamp_log_ratio: float = Field(10.0, gt=0, le=80, description="Upper clamp of d_j where it is exponentiated.")
    score_eos_padding: bool = Field(False, description="Also score the tokens after the first end token.")

    @model_validator(mode="after")
    def _mini_batches(self) -> Self:
        if self.batch_size % self.num_inner_updates:
            raise ValueError(
                f"num_inner_updates {self.num_inner_updates} must divide batch_size {self.batch_size} (prompts)"
            )
        return self


class Supervised(Strict):
    """Masked-diffusion supervised fine-tuning (LLaDA's recipe): responses padded with end tokens, 1/t weighting."""

    type: Literal["supervised"] = "supervised"
    optimizer: OptimizerSpec = Field(default_factory=lambda: OptimizerSpec(learning_rate=1e-5))
    max_steps: int = Field(100, ge=1)
    batch_size: int = Field(32, ge=1, description="Rows per optimizer step.")
    micro_batch: int = Field(32, ge=1, description="Rows per backward; never changes the gradient.")
    max_completion_length: int = Field(256, ge=1, description="Responses are padded with end tokens to this length.")
    grader: GraderSpec | None = Field(None, description="Scores sampled answers in evaluations, when given.")
    rollout: RolloutSpec | None = Field(None, description="How evaluations sample; needed with a grader.")

    @model_validator(mode="after")
    def _grader_and_rollout(self) -> Self:
        if (self.grader is None) != (self.rollout is None):
            raise ValueError("grader and rollout belong together: give both to score sampled answers, or neither")
        return self


Method = Annotated[Reinforcement | Supervised, Field(discriminator="type")]


class EvaluationSpec(Strict):
    """When and on how much of the validation file the policy is evaluated (always at step 0 and at the end)."""

    interval: int | None = Field(None, ge=1, description="Steps between evaluations; None = first and last only.")
    samples: int | None = Field(None, ge=1, description="Rows of the validation file used; None = all.")
    batch_size: int = Field(256, ge=1, description="Prompts decoded at once; never changes the result.")


class CheckpointingSpec(Strict):
    """When checkpoints are written and how many local ones are kept."""

    every_steps: int | None = Field(None, ge=1, description="None = only the last step.")
    keep_last: int = Field(2, ge=1)


class Recipe(Strict):
    """What is trained and how, without any path."""

    seed: int = Field(0, ge=0, le=2**31 - 1)
    precision: Literal["float32", "bfloat16"] = "float32"
    method: Method
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec)
    checkpointing: CheckpointingSpec = Field(default_factory=CheckpointingSpec)
    sample_log: int = Field(4, ge=0, description="Rollouts emitted as `sample` records each step.")


class RunSpec(Recipe):
    """A recipe with the paths and device of one run."""

    model: str = Field(description="Directory of the checkpoint to start from.")
    train_data: str = Field(description="JSONL file.")
    validation_data: str | None = None
    output_dir: str = Field(description="Checkpoints go to <output_dir>/checkpoints/step-NNNNNN.")
    resume_from: str | None = Field(None, description="Checkpoint directory with trainer state to continue from.")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    threads: int | None = Field(None, ge=1, description="CPU threads of the trainer; None = torch's default.")

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
