"""Model families: networks that load and save the published checkpoint layouts."""

from bgpo.models.policy import (
    Policy,
    add_lora,
    load_adapter,
    load_policy,
    merge_lora,
    save_policy,
    set_activation_checkpointing,
)

__all__ = [
    "Policy",
    "add_lora",
    "load_adapter",
    "load_policy",
    "merge_lora",
    "save_policy",
    "set_activation_checkpointing",
]
