"""The forward process: which response tokens are masked in each Monte Carlo sample, and with which weight.

A draw of n samples for one response gives masks m_j and weights w_j with
E[mean_j w_j * sum_{i in m_j} log p(y_i | x, y_masked)] = ELBO (paper, Setting). How the samples of a response are
chosen is the estimator's affair (`bgpo.diffusion.estimators`, docs/estimators.md); all have one weight a sample, so a
sample's term is a number of its own and BGPO's bound holds for each of them.

Shapes: N rows, n samples, L the padded response length; lengths_N holds each row's true length.
"""

from __future__ import annotations

from torch import Tensor

from bgpo.diffusion.estimators import ESTIMATORS
from bgpo.diffusion.uniforms import Uniforms
from bgpo.spec import EstimatorName


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
    masks, weights = ESTIMATORS[estimator](Uniforms.drawn(keys_N, lengths_N, max_length, n_samples))
    return masks, weights.float()
