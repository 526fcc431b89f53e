"""ESPO, ELBO-based sequence-level policy optimization (arXiv 2512.03759).

    r = exp((B - B_old) / L),    R = min(r * A, clip(r, 1 - eps, 1 + eps) * A)

B is the mean of the n_t terms: one ratio for the whole response, length-normalised. The division by L is in the terms
(`length_normalization`, which is `length` for this algorithm unless set otherwise). The mean stands inside the
exponential and the clip, so that all samples of a response are in memory together, as with the ELBO ratio.

Differences from the publication: the samples are those of the configured estimator (there: complement pairs, our
`antithetic`); L counts the tokens up to the end token unless `score_eos_padding` (there: the whole canvas); advantages
are as configured (there: leave-one-out); KL is optional, in the published form (`bgpo.objectives.kl.k2_sequence`).
"""

from __future__ import annotations

from torch import Tensor

from bgpo.objectives.clipping import clipped_surrogate


def espo(ell: Tensor, ell_old: Tensor, advantage: Tensor, *, clip: float = 0.2, clamp: float = 10.0) -> Tensor:
    """Contributions g (..., n_t), float32: R spread evenly over the samples, so that g.sum(-1) = R.

    Args:
        ell: length-normalised ELBO terms under the policy (..., n_t).
        ell_old: the same terms under the rollout policy; no gradient flows into it.
        advantage: (...), one number a response.
        clip: eps.
        clamp: upper bound of the log-ratio, against overflow.
    """
    log_ratio = (ell.float() - ell_old.detach().float()).mean(-1, keepdim=True)
    surrogate = clipped_surrogate(log_ratio, advantage.float().unsqueeze(-1), clip=clip, clamp=clamp)
    return surrogate.expand_as(ell) / ell.shape[-1]
