"""diffu-GRPO of d1 (arXiv 2504.12216): a mean-field likelihood from one pass with the response fully masked.

    r_i = exp(log p(y_i | x', all masked) - log p_old(y_i | x', all masked))
    R = 1/L * sum_i min(r_i * A, clip(r_i, 1 - eps, 1 + eps) * A)

x' is the prompt with each token masked with `prompt_mask_probability`, drawn once a response: old, new and reference
terms see the same x'. One canvas a response; `mc_samples` and `estimator` play no part.

Differences from the publication: a response is trained on once a rollout, so there is one x' (there: several passes
over a batch, a new x' for each, with its own old terms); advantages are as configured (there: mean only); KL is
optional and by the k2 estimator (there: part of the objective).
"""

from __future__ import annotations

from torch import Tensor

from bgpo.objectives.clipping import clipped_surrogate
from bgpo.objectives.samples import Samples


def diffu_grpo(
    log_probs: Tensor,
    log_probs_old: Tensor,
    advantage: Tensor,
    *,
    samples: Samples,
    clip: float = 0.2,
    clamp: float = 10.0,
) -> Tensor:
    """Contributions g (..., n, L) of the tokens, float32; their sum is R, averaged over the n passes.

    Args:
        log_probs: of each response token under the policy (..., n, L); what lies beyond a response plays no part.
        log_probs_old: the same under the rollout policy; no gradient flows into it.
        advantage: (...), one number a response.
        samples: masks and lengths of the responses.
        clip: eps.
        clamp: upper bound of the log-ratio, against overflow.
    """
    log_ratio = log_probs.float() - log_probs_old.detach().float()
    surrogate = clipped_surrogate(log_ratio, advantage.float()[..., None, None], clip=clip, clamp=clamp)
    return surrogate * samples.masks / (samples.lengths[..., None, None] * log_probs.shape[-2])
