"""The policy update's gradient (Algorithm 1, inner loop): accumulate -R / (P * G) over a batch of responses.

For a linear objective every masked canvas is backpropagated by itself (or a few at a time, `micro_batch`): activation
memory depends on the micro-batch only, never on n_t. For a non-linear one all n_t canvases of a response are held
together. Responses with advantage 0 cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bgpo.diffusion.elbo import Canvases, elbo_terms_of
from bgpo.diffusion.masking import draw_masks
from bgpo.models import Policy
from bgpo.objectives import OBJECTIVES
from bgpo.spec import Reinforcement


@dataclass(frozen=True)
class Scored:
    """Responses with advantages and their Monte Carlo samples. R rows; P * G of them went into the mean."""

    canvases: Canvases
    advantages_R: Tensor
    masks_RnL: Tensor
    weights_Rn: Tensor


def draw_samples(canvases: Canvases, advantages_R: Tensor, keys_R: Tensor, spec: Reinforcement) -> Scored:
    """Draw the n_t masks of each response from its own stream."""
    masks, weights = draw_masks(keys_R, canvases.lengths_B, canvases.response_length, spec.mc_samples, spec.estimator)
    if spec.length_normalization == "length":
        weights = weights / canvases.lengths_B[:, None]
    return Scored(canvases, advantages_R, masks, weights)


def terms(policy: Policy, scored: Scored, flat: Tensor) -> Tensor:
    """ELBO terms (len(flat),) of the canvases numbered row * n_t + sample."""
    n = scored.weights_Rn.shape[1]
    canvases = scored.canvases.select(flat // n)
    masks = scored.masks_RnL.flatten(0, 1)[flat, : canvases.response_length]
    return elbo_terms_of(policy, canvases, masks, scored.weights_Rn.flatten()[flat])


@torch.no_grad()
def old_terms(policy: Policy, scored: Scored, micro_batch: int) -> Tensor:
    """ELBO terms (R, n_t) under the rollout policy, for mini-batches trained after the first optimizer step."""
    flat = torch.arange(scored.weights_Rn.numel(), device=scored.weights_Rn.device)
    return torch.cat([terms(policy, scored, part) for part in flat.split(micro_batch)]).view_as(scored.weights_Rn)


def accumulate_gradient(
    policy: Policy, scored: Scored, spec: Reinforcement, n_responses: int, old_Rn: Tensor | None = None
) -> tuple[float, Tensor]:
    """Backpropagate -sum_r R_r / n_responses into the parameters' gradients.

    Args:
        scored: responses with signal (advantage not 0).
        n_responses: P * G, the responses the mean runs over, those without signal included.
        old_Rn: terms under the rollout policy; None = on-policy, where they equal the policy's own.

    Returns:
        the loss value, and the detached ELBO terms (R, n_t).
    """
    objective = OBJECTIVES[spec.algorithm]
    n = spec.mc_samples
    device = scored.weights_Rn.device
    flat = torch.arange(scored.weights_Rn.numel(), device=device)
    # A linear objective sees each sample alone, (rows, 1); any other all samples of a response, (rows, n_t).
    together = 1 if objective.linear else n
    per_backward = max(spec.micro_batch // together, 1) * together
    loss = torch.zeros((), device=device)
    collected = []
    for part in flat.split(per_backward):
        ell = terms(policy, scored, part).view(-1, together)
        old = ell.detach() if old_Rn is None else old_Rn.flatten()[part].view(-1, together)
        advantage = scored.advantages_R[part.view(-1, together)[:, 0] // n]
        g = objective.function(ell, old, advantage, clamp=spec.clamp_log_ratio)
        part_loss = -g.sum() * (together / n) / n_responses
        part_loss.backward()
        loss += part_loss.detach()
        collected.append(ell.detach().flatten())
    return float(loss), torch.cat(collected).view(-1, n)
