"""BGPO's Taylor branch for every advantage, an ablation of the paper (arXiv 2510.11683, Table 3).

    g_j = (1 + d_j) * A / n_t,    d_j = ell_j - ell_old_j

The first order of exp(mean d) * A at d = 0: a lower bound of it for A >= 0 (e^z >= 1 + z), an upper bound for A < 0.
The gradient A * grad ell_j / n_t does not know the old terms: off-policy it is that of an on-policy step.
"""

from __future__ import annotations

from torch import Tensor


def taylor_only(ell: Tensor, ell_old: Tensor, advantage: Tensor) -> Tensor:
    """Per-sample contributions g (..., n_t), float32. Arguments as in `bgpo`."""
    d = ell.float() - ell_old.detach().float()
    return (1 + d) * advantage.float().unsqueeze(-1) / ell.shape[-1]
