"""What an objective may know of the Monte Carlo samples beside their terms."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Samples:
    """n samples of each response; log-probabilities are (..., n, L), 0 where a token is not masked."""

    masks: Tensor
    """True where a response token is masked: (..., n, L)."""
    weights: Tensor
    """w_j of each sample (..., n): the mean over j of w_j * (sum of log p over the mask) estimates the ELBO."""
    scale: Tensor
    """1 / length of the length normalisation, (..., n)."""
    lengths: Tensor
    """Response lengths (...)."""

    def elbo(self, log_probs: Tensor) -> Tensor:
        """The terms ell_j (..., n), float32, of log-probabilities (..., n, L)."""
        return log_probs.float().masked_fill(~self.masks, 0.0).sum(-1) * self.weights * self.scale
