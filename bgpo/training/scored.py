"""Responses to be trained on, their samples, and their log-likelihood terms under a policy.

Old and reference terms are computed once and stored: n_t numbers a response (or one a token, for an objective that sees
log-probabilities), only for the responses whose gradient depends on them.

Shapes: R responses, n samples each, L the padded response length, P the padded prompt length, N canvases of a pass.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bgpo.diffusion.elbo import Canvases, masked_log_probs
from bgpo.diffusion.masking import draw_masks
from bgpo.diffusion.rng import uniform
from bgpo.models import Policy
from bgpo.objectives import OBJECTIVES, Objective, Samples
from bgpo.spec import Reinforcement

UNKNOWN = torch.inf
"""Stands for terms that nobody computed because nothing depends on them; no log-probability is positive."""


@dataclass(frozen=True)
class Scored:
    """R responses with advantages and their samples."""

    canvases: Canvases
    advantages_R: Tensor
    masks_RnL: Tensor
    weights_Rn: Tensor
    scale_Rn: Tensor | None = None
    """1 / length of the length normalisation; None = 1."""
    prompt_masks_RP: Tensor | None = None
    """True where a prompt token is masked; None = nowhere."""

    @property
    def n_samples(self) -> int:
        return self.weights_Rn.shape[1]

    def samples(self, flat: Tensor, length: int, together: int) -> Samples:
        """The samples numbered row * n + sample, `together` of them a response, cut to `length` tokens."""
        scale = torch.ones_like(self.weights_Rn) if self.scale_Rn is None else self.scale_Rn
        return Samples(
            self.masks_RnL.flatten(0, 1)[flat, :length].view(-1, together, length),
            self.weights_Rn.flatten()[flat].view(-1, together),
            scale.flatten()[flat].view(-1, together),
            self.canvases.lengths_B[flat.view(-1, together)[:, 0] // self.n_samples],
        )


def draw_samples(canvases: Canvases, advantages_R: Tensor, keys_R: Tensor, spec: Reinforcement) -> Scored:
    """Draw the masks of each response from its own stream."""
    if OBJECTIVES[spec.algorithm].fully_masked:
        return _fully_masked(canvases, advantages_R, keys_R, spec.prompt_mask_probability)
    masks, weights = draw_masks(keys_R, canvases.lengths_B, canvases.response_length, spec.mc_samples, spec.estimator)
    scale = None
    if spec.normalization == "length":
        scale = (1 / canvases.lengths_B[:, None].float()).expand_as(weights)
    elif spec.normalization == "masked":
        # w_j * (masked tokens) is the sample's own estimate of the length. An empty mask has term 0 whatever its scale.
        scale = 1 / (weights * masks.sum(-1).clamp(min=1))
    return Scored(canvases, advantages_R, masks, weights, scale)


def _fully_masked(canvases: Canvases, advantages_R: Tensor, keys_R: Tensor, probability: float) -> Scored:
    """One sample a response: everything masked, and prompt tokens at random."""
    device = keys_R.device
    masks_R1L = (torch.arange(canvases.response_length, device=device) < canvases.lengths_B[:, None])[:, None]
    # Numbered from the prompt's end, so that padding on the left changes no draw.
    draws_RP = uniform(keys_R, canvases.prompt_length).flip(-1)
    weights = torch.ones((len(keys_R), 1), device=device)
    return Scored(canvases, advantages_R, masks_R1L, weights, prompt_masks_RP=draws_RP < probability)


def log_probs(policy: Policy, scored: Scored, flat: Tensor) -> Tensor:
    """log p of the masked tokens (N, L'), 0 elsewhere, of the canvases numbered row * n + sample.

    L' is the longest response among them.
    """
    rows = flat // scored.n_samples
    canvases = scored.canvases.select(rows)
    if scored.prompt_masks_RP is not None:
        tokens = canvases.tokens_BT.clone()
        prompt = tokens[:, : canvases.prompt_length]
        prompt.masked_fill_(scored.prompt_masks_RP[rows], policy.mask_id)
        canvases = replace(canvases, tokens_BT=tokens)
    masks = scored.masks_RnL.flatten(0, 1)[flat, : canvases.response_length]
    return masked_log_probs(policy, canvases, masks)


def values_of(policy: Policy, scored: Scored, flat: Tensor, objective: Objective) -> Tensor:
    """What the objective sees of those canvases: ELBO terms (N,), or log-probabilities (N, L')."""
    found = log_probs(policy, scored, flat)
    if objective.per_token:
        return found
    return scored.samples(flat, found.shape[1], 1).elbo(found[:, None])[:, 0]


@torch.no_grad()
def stored_values(policy: Policy, scored: Scored, spec: Reinforcement, needed_R: Tensor | None = None) -> Tensor | None:
    """What the objective sees of all samples, (R, n) or (R, n, L), UNKNOWN in rows not needed.

    Args:
        policy: whose terms: the rollout's, or the reference.
        scored: the responses.
        spec: names the objective; its micro_batch canvases go through the network at once.
        needed_R: True for the responses to compute; None = all.

    Returns:
        None when no row is needed.
    """
    objective = OBJECTIVES[spec.algorithm]
    n, length = scored.n_samples, scored.masks_RnL.shape[-1]
    flat = torch.arange(scored.weights_Rn.numel(), device=scored.weights_Rn.device)
    if needed_R is not None:
        flat = flat[needed_R.repeat_interleave(n)]
    if not len(flat):
        return None
    shape = (scored.weights_Rn.numel(), length) if objective.per_token else (scored.weights_Rn.numel(),)
    stored = torch.full(shape, UNKNOWN, device=flat.device)
    for part in flat.split(spec.micro_batch):
        found = values_of(policy, scored, part, objective)
        if objective.per_token:
            found = torch.nn.functional.pad(found, (0, length - found.shape[1]))
        stored[part] = found.float()
    return stored.view(*scored.weights_Rn.shape, *shape[1:])


def old_values(policy: Policy, scored: Scored, spec: Reinforcement) -> Tensor | None:
    """`stored_values` under the rollout policy, of the responses whose gradient depends on them."""
    return stored_values(policy, scored, spec, OBJECTIVES[spec.algorithm].needs_old(scored.advantages_R))
