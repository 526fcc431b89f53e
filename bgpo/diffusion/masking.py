"""The forward process: which response tokens are masked in each Monte Carlo sample, and with which weight.

A draw of n samples for one response of length L gives masks m_j and weights w_j with
E[mean_j w_j * sum_{i in m_j} log p(y_i | x, y_masked)] = ELBO (paper, Setting). Estimators:

* `exact_count`: k of L positions without replacement, weight L / k, k stratified over the n samples
  (LLaDA, arXiv 2502.09992, Eq. 14). Never empty, lower variance.
* `bernoulli`: t ~ U(t_min, 1), each position masked with probability t, weight 1 / t; the paper's literal form.
  An empty mask contributes 0.

Shapes: N rows, n samples, L the padded response length; lengths_N holds each row's true length.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bgpo.diffusion.rng import substreams, uniform
from bgpo.spec import EstimatorName

BERNOULLI_T_MIN = 1e-3
"""1/t is unbounded at 0; the floor biases the ELBO by less than t_min times the sum's size."""


def draw_masks(
    keys_N: Tensor, lengths_N: Tensor, max_length: int, n_samples: int, estimator: EstimatorName
) -> tuple[Tensor, Tensor]:
    """Draw masks for each row from its own stream.

    Args:
        keys_N: int64 stream keys, one a row.
        lengths_N: int64 response lengths, 1 <= length <= max_length.
        max_length: L, the padded length.
        n_samples: n_t.
        estimator: which scheme.

    Returns:
        masks (N, n, L) bool, False beyond a row's length; weights (N, n) float32.
    """
    # A stream for each sample, its level first: then the padding max_length brings changes no row's masks.
    keys_Nn = substreams(keys_N[:, None], torch.arange(n_samples, device=keys_N.device))
    numbers = uniform(keys_Nn, max_length + 1)
    level_Nn, order_NnL = numbers[..., 0], numbers[..., 1:]
    inside_N1L = torch.arange(max_length, device=keys_N.device) < lengths_N[:, None, None]
    lengths_N1 = lengths_N[:, None].to(torch.float64)
    if estimator == "bernoulli":
        t_Nn = BERNOULLI_T_MIN + (1 - BERNOULLI_T_MIN) * level_Nn
        return (order_NnL < t_Nn[..., None]) & inside_N1L, (1 / t_Nn).float()
    stratum_n = torch.arange(n_samples, dtype=torch.float64, device=keys_N.device)
    position_Nn = (stratum_n + level_Nn) / n_samples
    # The mean over j of P(k_j = k) is 1/L for each k, because position is uniform on (0, 1) over the strata.
    count_Nn = (position_Nn * lengths_N1).floor().clamp(max=lengths_N1 - 1).to(torch.int64) + 1
    order_NnL = order_NnL.masked_fill(~inside_N1L, 2.0)
    rank_NnL = order_NnL.argsort(-1).argsort(-1)
    return rank_NnL < count_Nn[..., None], (lengths_N1 / count_Nn).float()
