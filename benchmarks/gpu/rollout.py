"""Tokens a second of the sampler, by batch size and temperature, with a random bfloat16 model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.device import device, peak_bytes, random_policy, random_tokens, release, seconds
from benchmarks.gpu.sizes import Sizes
from bgpo.diffusion.rng import Purpose, stream_keys
from bgpo.diffusion.sampler import Rollouts, sample
from bgpo.spec import RolloutSpec


def measure(sizes: Sizes, emit: Callable[[dict[str, Any]], None]) -> None:
    """A row for each batch and temperature."""
    policy = random_policy(sizes, torch.bfloat16)
    spec = RolloutSpec(
        max_completion_length=sizes.rollout_response, block_length=sizes.block, diffusion_steps=sizes.rollout_steps
    )
    found: list[Rollouts] = []

    def run(batch: int, temperature: float) -> None:
        prompts = [random_tokens(sizes, sizes.prompt, row) for row in range(batch)]
        keys = stream_keys(0, Purpose.ROLLOUT, torch.arange(batch))
        found.append(sample(policy, prompts, spec, keys, temperature=temperature))

    for batch in sizes.rollout_batches:
        for temperature in (0.0, 1.0):
            row: dict[str, Any] = {"batch": batch, "temperature": temperature}
            release()
            try:
                if not found:
                    run(batch, temperature)  # warms up
                elapsed = seconds(partial(run, batch, temperature))
            except torch.OutOfMemoryError:
                emit(row | {"error": "out of memory"})
                continue
            tokens = int(found[-1].lengths_B.sum())
            emit(
                row
                | {
                    "response_tokens": tokens,
                    "diffusion_steps": sizes.rollout_steps,
                    "forward_rows": found[-1].forward_rows,
                    "seconds": round(elapsed, 3),
                    "tokens_per_second": round(tokens / elapsed, 1),
                    "peak_bytes": peak_bytes(),
                    "device": device().type,
                }
            )
