"""Policy objectives: pure functions from log-likelihood terms and advantages to contributions, to be maximised.

`function(values, values_old, advantage, ...) -> g` with one advantage a response, shape (...). `values` are ELBO terms
ell_j (..., n_t), or log-probabilities of masked tokens (..., n_t, L) for an objective with `per_token`. The sum of g
over everything but the leading dimensions is the objective of a response. docs/objectives.md has the equations side by
side.

An objective is `linear` when its contributions depend on one sample each: then every sample is backpropagated by itself
and memory does not grow with n_t. A new objective is one file here and one entry in `OBJECTIVES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from bgpo.objectives.bgpo import bgpo
from bgpo.objectives.diffu_grpo import diffu_grpo
from bgpo.objectives.elbo_ratio import elbo_ratio
from bgpo.objectives.espo import espo
from bgpo.objectives.jensen_only import jensen_only
from bgpo.objectives.kl import k2_elbo, k2_samples, k2_sequence, k2_tokens
from bgpo.objectives.samples import Samples
from bgpo.objectives.spg import spg
from bgpo.objectives.taylor_only import taylor_only
from bgpo.spec import Reinforcement


@dataclass(frozen=True)
class Objective:
    """A named objective and what it needs."""

    name: str
    function: Callable[..., Tensor]
    linear: bool
    """A sum over samples."""
    old: Literal["never", "negative", "always"]
    """For which advantages the gradient depends on the terms under the rollout policy."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """The function's keyword arguments and the fields of the specification that they come from."""
    per_token: bool = False
    """It takes log-probabilities (..., n, L) and `samples`, not ELBO terms."""
    fully_masked: bool = False
    """It scores one canvas a response, all of it masked, with part of the prompt masked; no Monte Carlo samples."""
    kl: Callable[[Tensor, Tensor, Samples], Tensor] = k2_samples
    """(values, values under the reference, samples) -> contributions to the KL."""

    def contributions(
        self, spec: Reinforcement, values: Tensor, old: Tensor, advantage: Tensor, samples: Samples
    ) -> Tensor:
        """`function` with the specification's settings."""
        settings = {argument: getattr(spec, name) for argument, name in self.settings.items()}
        if self.per_token:
            return self.function(values, old, advantage, samples=samples, **settings)
        return self.function(values, old, advantage, **settings)

    def needs_old(self, advantage: Tensor) -> Tensor:
        """True for the responses whose gradient depends on their terms under the rollout policy."""
        if self.old == "negative":
            return advantage < 0
        return torch.full_like(advantage, self.old == "always", dtype=torch.bool)


_CLAMP = {"clamp": "clamp_log_ratio"}
_CLIP = _CLAMP | {"clip": "clip_epsilon"}
_SPG = {"power": "upper_bound_power", "mixture": "upper_bound_mixture"}

OBJECTIVES = {
    objective.name: objective
    for objective in (
        Objective("bgpo", bgpo, linear=True, old="negative", settings=_CLAMP),
        Objective("elbo_ratio", elbo_ratio, linear=False, old="always", settings=_CLAMP),
        Objective("taylor_only", taylor_only, linear=True, old="never"),
        Objective("jensen_only", jensen_only, linear=True, old="always", settings=_CLAMP),
        Objective(
            "diffu_grpo",
            diffu_grpo,
            linear=True,
            old="always",
            settings=_CLIP,
            per_token=True,
            fully_masked=True,
            kl=k2_tokens,
        ),
        Objective("espo", espo, linear=False, old="always", settings=_CLIP, kl=k2_sequence),
        Objective("spg", spg, linear=False, old="never", settings=_SPG, per_token=True, kl=k2_elbo),
    )
}

__all__ = [
    "OBJECTIVES",
    "Objective",
    "Samples",
    "bgpo",
    "diffu_grpo",
    "elbo_ratio",
    "espo",
    "jensen_only",
    "spg",
    "taylor_only",
]
