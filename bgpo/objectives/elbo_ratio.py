"""The ELBO-ratio objective, called VRPO-OL in the paper: R = exp(mean_j d_j) * A with d_j = ell_j - ell_old_j.

The exponential of a mean is not a sum over samples: the gradient of every sample needs the terms of all, so all n_t
graphs are in memory at once. It is here as the yardstick that BGPO bounds from below.
"""

from __future__ import annotations

from torch import Tensor


def elbo_ratio(ell: Tensor, ell_old: Tensor, advantage: Tensor, *, clamp: float = 10.0) -> Tensor:
    """Contributions g (..., n_t), float32: R spread evenly over the samples, so that g.sum(-1) = R.

    Args:
        ell: ELBO terms under the policy (..., n_t).
        ell_old: the same terms under the rollout policy (..., n_t); no gradient flows into it.
        advantage: (...), one number a response.
        clamp: upper bound of mean_j d_j, against overflow off-policy.
    """
    d = (ell.float() - ell_old.detach().float()).mean(-1, keepdim=True)
    ratio = d.clamp(max=clamp).exp() * advantage.float().unsqueeze(-1)
    return ratio.expand_as(ell) / ell.shape[-1]
