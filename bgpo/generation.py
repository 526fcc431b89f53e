"""Text in, text out: the public `generate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bgpo.diffusion.rng import Purpose, stream_keys
from bgpo.diffusion.sampler import sample
from bgpo.models import Policy
from bgpo.spec import RolloutSpec


@dataclass(frozen=True)
class Generation:
    """One response."""

    text: str
    token_ids: list[int]
    """Up to and including the first end token."""


def generate(
    policy: Policy, prompts: Sequence[str | Sequence[Mapping[str, Any]]], config: RolloutSpec, *, seed: int = 0
) -> list[Generation]:
    """Generate one response for each prompt.

    Args:
        policy: from `load_policy`.
        prompts: user messages, or whole conversations in OpenAI's message form.
        config: sampler settings; temperature 0 is greedy.
        seed: names the random streams; the i-th prompt always draws from stream i.

    Raises:
        ValueError: there is no prompt, or one does not fit the model's context.
    """
    if not prompts:
        raise ValueError("prompts is empty")
    conversations = [[{"role": "user", "content": p}] if isinstance(p, str) else p for p in prompts]
    ids = [policy.encode_prompt(conversation) for conversation in conversations]
    check_context(policy, ids, config.max_completion_length)
    keys = stream_keys(seed, Purpose.GENERATE, torch.arange(len(ids)))
    rollouts = sample(policy, ids, config, keys, temperature=config.temperature)
    return [Generation(policy.decode(response), response) for response in rollouts.responses()]


def check_context(policy: Policy, prompts: Sequence[Sequence[int]], response_length: int) -> None:
    """Raise ValueError when a prompt and the response canvas exceed the model's context."""
    limit = policy.max_length
    for row, prompt in enumerate(prompts):
        if len(prompt) + response_length > limit:
            raise ValueError(
                f"prompt {row} has {len(prompt)} tokens; with {response_length} for the response that exceeds the "
                f"model's context of {limit}"
            )
