"""Rollouts: G responses to each of P prompts, sampled from the policy and graded.

A prompt has a slot, its number within the step over all processes and rounds. Every random stream is named by the slot,
so which process rolls it out, and beside which others, changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bgpo.diffusion.elbo import Canvases, build_canvases
from bgpo.diffusion.rng import Purpose, stream_keys
from bgpo.diffusion.sampler import Rollouts, sample
from bgpo.models import Policy
from bgpo.rewards import Grade, Grader, Sample
from bgpo.spec import Reinforcement
from bgpo.training.data import Row
from bgpo.training.grade_metrics import compact


@dataclass(frozen=True)
class RolloutBatch:
    """Responses in prompt-major order: response r belongs to prompt r // G."""

    rows: Sequence[Row]
    """The P prompts."""
    rollouts: Rollouts
    texts: list[str]
    responses: list[list[int]]
    """Token ids the ELBO covers."""


def roll_out(
    policy: Policy,
    rows: Sequence[Row],
    method: Reinforcement,
    seed: int,
    step: int,
    slots: Sequence[int] | None = None,
) -> RolloutBatch:
    """Sample G responses to each row; each from a stream named by (seed, step, slot, sample).

    Args:
        slots: of the rows; None = their numbers.
    """
    group = method.group_size
    prompts = [row.prompt_ids for row in rows for _ in range(group)]
    slots = range(len(rows)) if slots is None else slots
    rollouts = sample(
        policy,
        prompts,
        method.rollout,
        response_keys(seed, Purpose.ROLLOUT, step, slots, group, policy.device),
        temperature=method.rollout.temperature,
    )
    ended = rollouts.responses()
    texts = [policy.decode(response) for response in ended]
    return RolloutBatch(rows, rollouts, texts, rollouts.tokens_BG.tolist() if method.score_eos_padding else ended)


def grade_rollouts(batch: RolloutBatch, grader: Grader, group_size: int) -> list[Grade]:
    """Grade every response against its prompt's row; small grades, which processes can exchange."""
    samples = [Sample(output_text=text) for text in batch.texts]
    items = [row.item for row in batch.rows for _ in range(group_size)]
    return [compact(grade) for grade in grader.grade_all(samples, items)]


def canvases_of(policy: Policy, batch: RolloutBatch, chosen: Sequence[int], group_size: int) -> Canvases:
    """Canvases of the chosen responses."""
    prompts = [batch.rows[r // group_size].prompt_ids for r in chosen]
    return build_canvases(prompts, [batch.responses[r] for r in chosen], policy.end_ids[0], policy.device)


def response_keys(
    seed: int, purpose: Purpose, step: int, slots: Sequence[int], group_size: int, device: torch.device
) -> Tensor:
    """Stream keys (P * G,) named by (seed, purpose, step, slot, sample)."""
    slots_P1 = torch.tensor(list(slots), dtype=torch.int64, device=device)[:, None]
    sample_G = torch.arange(group_size, device=device)
    return stream_keys(seed, purpose, step, slots_P1, sample_G, device=device).flatten()
