"""PPO's clipped surrogate (arXiv 1707.06347), shared by the objectives with a clipped ratio."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_surrogate(log_ratio: Tensor, advantage: Tensor, *, clip: float, clamp: float) -> Tensor:
    """min(r * A, clip(r, 1 - clip, 1 + clip) * A) with r = exp(log_ratio), elementwise.

    Args:
        log_ratio: float32.
        advantage: broadcasts with it.
        clip: half-width of the interval in which the ratio has a gradient whatever the advantage.
        clamp: upper bound of log_ratio inside exp: for A < 0 the ratio is not clipped from above.
    """
    ratio = log_ratio.clamp(max=clamp).exp()
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
