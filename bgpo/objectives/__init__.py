"""Policy objectives: pure functions from ELBO terms and advantages to per-sample contributions.

`objective(ell, ell_old, advantage) -> g` with `ell`, `ell_old` of shape (..., n_t) and `advantage` (...), so that
`g.sum(-1)` is the objective of one response, to be maximised. An objective is `linear` when g_j depends on the j-th
sample alone: then each sample is backpropagated by itself and memory does not grow with n_t.

A new objective is one file here and one line in `OBJECTIVES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from bgpo.objectives.bgpo import bgpo
from bgpo.objectives.elbo_ratio import elbo_ratio


@dataclass(frozen=True)
class Objective:
    """A named objective and whether it is a sum over samples."""

    name: str
    function: Callable[..., Tensor]
    """(ell, ell_old, advantage, *, clamp) -> g; `clamp` bounds what is exponentiated from above."""
    linear: bool


OBJECTIVES = {
    "bgpo": Objective("bgpo", bgpo, linear=True),
    "elbo_ratio": Objective("elbo_ratio", elbo_ratio, linear=False),
}

__all__ = ["OBJECTIVES", "Objective", "bgpo", "elbo_ratio"]
