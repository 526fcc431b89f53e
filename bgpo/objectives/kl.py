"""The KL divergence to a reference policy by the k2 estimator, on the samples that the objective uses anyway.

k2 of a log-ratio d = log p - log p_ref is d^2 / 2: never negative, without an exponential, and its gradient
d * grad log p has the expectation of the reverse KL's gradient (J. Schulman, "Approximating KL divergence"). Each
function gives contributions that sum to the estimate of one response; the reference's terms carry no gradient.
"""

from __future__ import annotations

from torch import Tensor

from bgpo.objectives.samples import Samples


def k2_samples(ell: Tensor, ell_reference: Tensor, samples: Samples) -> Tensor:
    """(..., n): (ell_j - ell_ref_j)^2 / 2 / n of ELBO terms (..., n). A sum over samples."""
    return 0.5 * (ell.float() - ell_reference.detach().float()).square() / ell.shape[-1]


def k2_sequence(ell: Tensor, ell_reference: Tensor, samples: Samples) -> Tensor:
    """(..., n), equal shares of (B - B_ref)^2 / (2 L), B the mean of the terms before length normalisation.

    ESPO's form (arXiv 2512.03759): the square of a mean, not a sum over samples.
    """
    difference = ((ell.float() - ell_reference.detach().float()) / samples.scale).mean(-1, keepdim=True)
    return (0.5 * difference.square() / samples.lengths[..., None]).expand_as(ell) / ell.shape[-1]


def k2_tokens(log_probs: Tensor, log_probs_reference: Tensor, samples: Samples) -> Tensor:
    """(..., n, L): (log p_i - log p_ref_i)^2 / 2 of each token, divided by n and the response's length."""
    k2 = 0.5 * (log_probs.float() - log_probs_reference.detach().float()).square()
    return k2 / (samples.lengths[..., None, None] * log_probs.shape[-2])


def k2_elbo(log_probs: Tensor, log_probs_reference: Tensor, samples: Samples) -> Tensor:
    """`k2_samples` for an objective that sees log-probabilities (..., n, L)."""
    return k2_samples(samples.elbo(log_probs), samples.elbo(log_probs_reference), samples)
