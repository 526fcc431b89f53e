"""BGPO's Jensen branch for every advantage, an ablation of the paper (arXiv 2510.11683, Table 3).

    g_j = exp(d_j) * A / n_t,    d_j = ell_j - ell_old_j

A lower bound of exp(mean d) * A for A < 0 (exp(mean d) <= mean exp(d)), an upper bound for A >= 0.
"""

from __future__ import annotations

from torch import Tensor


def jensen_only(ell: Tensor, ell_old: Tensor, advantage: Tensor, *, clamp: float = 10.0) -> Tensor:
    """Per-sample contributions g (..., n_t), float32. Arguments as in `bgpo`."""
    d = ell.float() - ell_old.detach().float()
    return d.clamp(max=clamp).exp() * advantage.float().unsqueeze(-1) / ell.shape[-1]
