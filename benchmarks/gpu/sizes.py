"""What `gpu_check` measures with: an 8B model on a GPU, or a tiny one anywhere to try the program itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sizes:
    """One preset."""

    model: dict[str, Any]
    """The keys of a LLaDA config.json."""
    prompt: int
    response: int
    """Tokens of the policy update."""
    n_t: tuple[int, ...]
    lora_rank: int
    rollout_batches: tuple[int, ...]
    rollout_response: int
    rollout_steps: int
    block: int
    rl_steps: int
    rl_prompts: int
    rl_group: int
    rl_rows: int
    """Training rows; a quarter as many are held out."""


LLADA_8B = {
    "d_model": 4096,
    "n_heads": 32,
    "n_kv_heads": 32,
    "n_layers": 32,
    "mlp_hidden_size": 12288,
    "embedding_size": 126464,
    "max_sequence_length": 4096,
    "mask_token_id": 126336,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "weight_tying": False,
}
"""The published shape of LLaDA-8B-Instruct."""

SIZES = {
    "h200": Sizes(
        model=LLADA_8B,
        prompt=200,
        response=512,
        n_t=(1, 2, 4, 8, 16, 32, 64),
        lora_rank=16,
        rollout_batches=(1, 16, 64),
        rollout_response=128,
        rollout_steps=64,
        block=32,
        rl_steps=28,
        rl_prompts=16,
        rl_group=8,
        rl_rows=2048,
    ),
    "tiny": Sizes(
        model=LLADA_8B
        | {
            "d_model": 32,
            "n_heads": 2,
            "n_kv_heads": 2,
            "n_layers": 2,
            "mlp_hidden_size": 48,
            "embedding_size": 512,
            "max_sequence_length": 64,
            "mask_token_id": 511,
        },
        prompt=8,
        response=8,
        n_t=(1, 2),
        lora_rank=2,
        rollout_batches=(1, 2),
        rollout_response=8,
        rollout_steps=4,
        block=4,
        rl_steps=1,
        rl_prompts=2,
        rl_group=4,
        rl_rows=16,
    ),
}
