"""What a run starts from: the policy with its adapter and precision, and the rows it trains on and is judged by."""

from __future__ import annotations

import torch

from bgpo.models import Policy, add_lora, load_adapter, load_policy, merge_lora, set_activation_checkpointing
from bgpo.spec import Dpo, Recipe, Reinforcement, RunSpec, Supervised
from bgpo.task_spec import Task
from bgpo.training.cluster import Cluster
from bgpo.training.data import Row, load_prompts, load_rows
from bgpo.training.preferences import load_pairs


def weights_dtype(recipe: Recipe) -> torch.dtype:
    """Of the weights in memory. Trained ones are float32 always, also under bfloat16 compute; frozen ones need not."""
    frozen = recipe.method.lora is not None
    return torch.bfloat16 if frozen and recipe.precision == "bfloat16" else torch.float32


def device_of(spec: RunSpec | Task, cluster: Cluster) -> torch.device | str:
    """Where this process computes."""
    # A relative device name keeps specs portable; only the trainer knows what the machine has.
    device = ("cuda" if torch.cuda.is_available() else "cpu") if spec.device == "auto" else spec.device
    return cluster.device or device


def start_policy(spec: RunSpec, cluster: Cluster) -> Policy:
    """The policy at the run's first step, or as its checkpoint left it.

    A run with LoRA goes on from the base model and the checkpoint's adapter, never from merged weights: their sum is
    rounded.

    Raises:
        ModelError: a directory cannot be loaded or does not fit.
    """
    lora = spec.method.lora
    where = device_of(spec, cluster)
    if lora is None and spec.resume_from is not None:
        policy = load_policy(spec.resume_from, dtype=weights_dtype(spec), device=where)
    else:
        policy = first_policy(spec, weights_dtype(spec), where)
    if lora is not None:
        add_lora(policy, lora, seed=spec.seed)
        if spec.resume_from is not None:
            load_adapter(policy, spec.resume_from)
    set_activation_checkpointing(policy, spec.method.activation_checkpointing)
    return policy


def first_policy(spec: RunSpec, dtype: torch.dtype, device: torch.device | str) -> Policy:
    """The policy a run began with, without an adapter of its own. Raises ModelError."""
    policy = load_policy(spec.model, dtype=dtype, device=device, base=spec.adapter_base)
    if spec.adapter_base is not None:
        merge_lora(policy)
    return policy


def training_rows(spec: RunSpec, policy: Policy) -> list[Row]:
    """The training file. Raises DataError."""
    return _answered_rows(spec, policy, spec.train_data, "train_data")


def validation_rows(spec: RunSpec, policy: Policy) -> list[Row]:
    """The part of the validation file that evaluations use; empty without one.

    With a grader the rows are prompts to answer, else of the form that the method trains on.

    Raises:
        DataError: a line cannot be used.
    """
    if spec.validation_data is None:
        return []
    method = spec.method
    if method.rollout is not None:
        length = method.rollout.max_completion_length
        rows = load_prompts(spec.validation_data, policy, length, param="validation_data")
    else:
        rows = _answered_rows(spec, policy, spec.validation_data, "validation_data")
    return rows[: spec.evaluation.samples]


def _answered_rows(spec: RunSpec, policy: Policy, path: str, param: str) -> list[Row]:
    """Rows of the form that the method trains on."""
    method = spec.method
    if isinstance(method, Dpo):
        return load_pairs(path, policy, method.max_completion_length, param=param)
    length = (method.rollout if isinstance(method, Reinforcement) else method).max_completion_length
    return load_rows(path, policy, length, answers=isinstance(method, Supervised), param=param)
