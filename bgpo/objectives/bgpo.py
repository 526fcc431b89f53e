"""BGPO's lower bound of the ELBO-ratio objective (arXiv 2510.11683, "The bound").

With d_j = ell_j - ell_old_j, the same (t_j, y_t_j) on both sides:

    A >= 0:  g_j = (1 + d_j) * A / n_t     (Taylor: exp(z) >= 1 + z)
    A <  0:  g_j = exp(d_j) * A / n_t      (Jensen: exp(mean d) <= mean exp(d), times a negative A)

    sum_j g_j <= exp(mean_j d_j) * A

Each g_j depends on sample j alone. On-policy (d_j = 0) value and gradient equal those of the right-hand side.
"""

from __future__ import annotations

import torch
from torch import Tensor


def bgpo(ell: Tensor, ell_old: Tensor, advantage: Tensor, *, clamp: float = 10.0) -> Tensor:
    """Per-sample contributions g (..., n_t), float32.

    Args:
        ell: ELBO terms under the policy (..., n_t).
        ell_old: the same terms under the rollout policy (..., n_t); no gradient flows into it.
        advantage: (...), one number a response.
        clamp: upper bound of d_j inside exp, against overflow off-policy.
    """
    d = ell.float() - ell_old.detach().float()
    a = advantage.float().unsqueeze(-1)
    bound = torch.where(a >= 0, 1 + d, d.clamp(max=clamp).exp())
    return bound * a / ell.shape[-1]
