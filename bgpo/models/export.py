"""Weights for use elsewhere: a checkpoint's whole model in another precision, or its LoRA adapter alone.

An adapter is folded into the base model's weights in float32 and rounded once, to the precision asked for. Merged
weights come in the layout they were loaded from, which the model's original code opens; an adapter in PEFT's.
The whole model is in memory meanwhile, in float32.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from bgpo.errors import ModelError
from bgpo.models.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS, find_adapter
from bgpo.models.policy import load_policy, merge_lora, save_policy


def export_merged(source: Path, directory: Path, dtype: torch.dtype, *, base: Path | None = None) -> None:
    """Write whole weights.

    Args:
        base: directory of the base model, to fold the adapter of `source` into; None = the whole weights of `source`.

    Raises:
        ModelError: `source` or `base` cannot be loaded, or a weight is too large for `dtype`.
    """
    policy = load_policy(source, dtype=torch.float32, base=base)
    if policy.lora is not None:
        merge_lora(policy)
    for name, value in policy.model.state_dict().items():
        _require_range(name, value, dtype)
    policy.model.to(dtype)
    save_policy(policy, directory)


def export_adapter(source: Path, directory: Path, dtype: torch.dtype, *, base_name: str) -> None:
    """Write the LoRA adapter alone; its config names `base_name` as the base model.

    Raises:
        ModelError: `source` has none, it cannot be read, or a weight is too large for `dtype`.
    """
    adapter = find_adapter(source)
    if adapter is None:
        raise ModelError("the checkpoint has no LoRA adapter", "content")
    try:
        config = json.loads((adapter / ADAPTER_CONFIG).read_text("utf-8"))
        tensors = load_file(adapter / ADAPTER_WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"the adapter in {adapter} cannot be read: {error}") from error
    for name, value in tensors.items():
        _require_range(name, value, dtype)
    directory.mkdir(parents=True, exist_ok=True)
    rounded = {name: value.to(dtype) for name, value in tensors.items()}
    save_file(rounded, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config |= {"base_model_name_or_path": base_name}
    (directory / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def _require_range(name: str, value: Tensor, dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    if value.is_floating_point() and value.numel() and float(value.abs().max()) > largest:
        raise ModelError(f"{name} has values beyond {largest:g}, the largest of {dtype}: take bfloat16", "dtype")
