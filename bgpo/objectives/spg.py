"""SPG, sandwiched policy gradient (arXiv 2510.09541): the log-likelihood from below where it shall rise, from above
where it shall fall.

    A >= 0:  R = A * B,                             B = mean_j ell_j, the ELBO
    A <  0:  R = A * (omega * U + (1 - omega) * B)
    U = 1/beta * sum_i log( mean_j w_j * 1[i in m_j] * p(y_i | x, y_masked_j)^beta )

U estimates the evidence upper bound up to a constant (the Renyi bound of order beta > 1, `upper_bound_power`; omega is
`upper_bound_mixture`, 1 = the bound alone). There is no ratio and no clipping: old terms are never needed, and a
mini-batch after the first is simply off-policy. The logarithm of a mean over samples is not a sum over samples: all
samples of a response are in memory together. A token that no sample masks contributes nothing to U.

Differences from the publication: masks are those of the configured estimator (there: block-wise masks); the prompt is
never masked (there: 15 %); each response counts the same and its bounds are not divided by its length unless
`length_normalization` says so (there: per-token bounds weighted by length, which is the same up to a factor common to
the batch); advantages are as configured (there: mean only).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bgpo.objectives.samples import Samples


def spg(
    log_probs: Tensor,
    log_probs_old: Tensor,
    advantage: Tensor,
    *,
    samples: Samples,
    power: float = 1.5,
    mixture: float = 0.5,
) -> Tensor:
    """Contributions g (..., n), float32, whose sum is R; the upper bound is spread evenly over the samples.

    Args:
        log_probs: log p of the masked tokens (..., n, L), 0 elsewhere.
        log_probs_old: not used.
        advantage: (...), one number a response.
        samples: masks, weights, scale.
        power: beta.
        mixture: omega.
    """
    a = advantage.float().unsqueeze(-1)
    n = log_probs.shape[-2]
    lower = samples.elbo(log_probs) / n
    upper = evidence_upper_bound(log_probs, samples, power) * samples.scale.mean(-1)
    sandwich = mixture * upper.unsqueeze(-1) / n + (1 - mixture) * lower
    return torch.where(a >= 0, lower, sandwich) * a


def evidence_upper_bound(log_probs: Tensor, samples: Samples, power: float) -> Tensor:
    """U (...), float32, of log-probabilities (..., n, L)."""
    # log-sum-exp over the samples that mask the token. A token no sample masks would be log 0, whose gradient is NaN:
    # it gets one harmless entry and is left out of the sum.
    covered = samples.masks.any(-2, keepdim=True)
    logs = power * log_probs.float() + samples.weights.clamp(min=torch.finfo(torch.float32).tiny).log().unsqueeze(-1)
    logs = torch.where(samples.masks, logs, torch.where(covered, -torch.inf, 0.0))
    bound = logs.logsumexp(-2) - math.log(log_probs.shape[-2])
    return torch.where(covered.squeeze(-2), bound, 0.0).sum(-1) / power
