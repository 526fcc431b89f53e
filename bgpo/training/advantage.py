"""Group advantages: how much better a response is than its siblings for the same prompt."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

ZERO_SIGNAL_STD = 1e-6
"""A group whose rewards spread less than this teaches nothing; dividing by its std would amplify rounding."""


def group_advantages(
    rewards_PG: Tensor, valid_PG: Tensor, mode: Literal["z_score", "mean_only", "leave_one_out"]
) -> tuple[Tensor, Tensor]:
    """Advantages within each group of G responses to one of P prompts.

    Args:
        rewards_PG: rewards; ignored where not valid.
        valid_PG: False where grading failed: such a response leaves its group.
        mode: `z_score` = (r - mean) / std with the population std (paper); `mean_only` = r - mean; `leave_one_out` =
            r - mean of the other responses (RLOO, arXiv 2402.14740).

    Returns:
        advantages (P, G) float32, 0 for invalid responses and throughout zero-signal groups;
        zero_signal (P,) bool, True where no response of the group carries signal.
    """
    rewards = rewards_PG.double().masked_fill(~valid_PG, 0.0)
    count_P1 = valid_PG.sum(-1, keepdim=True).clamp(min=1)
    centred = (rewards - rewards.sum(-1, keepdim=True) / count_P1).masked_fill(~valid_PG, 0.0)
    std_P1 = (centred.square().sum(-1, keepdim=True) / count_P1).sqrt()
    zero_P1 = std_P1 <= ZERO_SIGNAL_STD
    if mode == "z_score":
        advantages = centred / std_P1.masked_fill(zero_P1, 1.0)
    elif mode == "leave_one_out":
        # r - (sum - r) / (n - 1) = (r - mean) * n / (n - 1). A response alone in its group has no signal anyway.
        advantages = centred * count_P1 / (count_P1 - 1).clamp(min=1)
    else:
        advantages = centred
    return advantages.masked_fill(zero_P1, 0.0).to(torch.float32), zero_P1[:, 0]
