"""Scoring given responses: the public `elbo_terms`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from bgpo.diffusion.elbo import build_canvases, elbo_terms_of
from bgpo.diffusion.masking import draw_masks
from bgpo.diffusion.rng import Purpose, stream_keys
from bgpo.models import Policy
from bgpo.spec import EstimatorName


def elbo_terms(
    policy: Policy,
    prompt_ids: Sequence[Sequence[int]],
    response_ids: Sequence[Sequence[int]],
    *,
    n_samples: int,
    estimator: EstimatorName = "importance",
    seed: int = 0,
) -> Tensor:
    """ELBO terms ell_j (paper, Setting), float32 (B, n_samples), differentiable.

    The mean over the last dimension estimates each response's ELBO, without bias unless `quadrature` is asked for. The
    same seed draws the same masks, whatever the policy: terms of two policies can be subtracted sample by sample.

    Args:
        policy: from `load_policy`.
        prompt_ids: B prompts as token ids, never masked.
        response_ids: B responses as token ids, each at least one token.
        n_samples: n_t, Monte Carlo samples a response.
        estimator: how masks are drawn, see `bgpo.diffusion.estimators`.
        seed: names the random streams; the i-th response always draws from stream i.

    Raises:
        ValueError: a response is empty, the lists are empty or differ in length, or there is no such estimator.
    """
    if len(prompt_ids) != len(response_ids):
        raise ValueError(f"{len(prompt_ids)} prompts for {len(response_ids)} responses")
    if not response_ids:
        raise ValueError("there are no responses")
    if n_samples < 1:
        raise ValueError(f"n_samples must be at least 1, got {n_samples}")
    if estimator not in get_args(EstimatorName):
        raise ValueError(f"estimator {estimator!r} is none of {', '.join(get_args(EstimatorName))}")
    canvases = build_canvases(prompt_ids, response_ids, policy.end_ids[0], policy.device)
    rows = torch.arange(len(prompt_ids), device=policy.device)
    keys = stream_keys(seed, Purpose.ELBO, rows, device=policy.device)
    masks, weights = draw_masks(keys, canvases.lengths_B, canvases.response_length, n_samples, estimator)
    repeated = canvases.select(rows.repeat_interleave(n_samples))
    terms = elbo_terms_of(policy, repeated, masks.flatten(0, 1), weights.flatten())
    return terms.view(len(prompt_ids), n_samples)
