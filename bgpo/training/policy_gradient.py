"""The policy update's gradient (Algorithm 1, inner loop): accumulate -(R - beta * KL) / (P * G) over responses.

For a linear objective every masked canvas is backpropagated by itself (or a few at a time, `micro_batch`): activation
memory depends on the micro-batch only, never on n_t. For a non-linear one all canvases of a response are held together.
The objective is a function of the terms alone, so it is differentiated by them first and the terms by the parameters
after: the slopes tell which samples a clamp or a clip has cut off.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bgpo.models import Policy
from bgpo.objectives import OBJECTIVES, Objective, Samples
from bgpo.spec import Reinforcement
from bgpo.training.scored import UNKNOWN, Scored, values_of


@dataclass(frozen=True)
class Accumulated:
    """What the responses of one `accumulate_gradient` gave; nothing carries a gradient. R responses, n samples."""

    loss: Tensor
    """(): -sum over responses of (objective - beta * KL), divided by the number that the mean runs over."""
    elbo_Rn: Tensor
    """Terms before length normalisation."""
    objective_R: Tensor
    kl_R: Tensor
    d_Rn: Tensor
    """Log-ratio to the rollout policy (per token: its mean over the response's); NaN where it was not needed."""
    d_max_Rn: Tensor
    """The same but the largest over tokens."""
    clamped_Rn: Tensor
    """Share of the sample that has no gradient because of a clamp or clip: 0 or 1, or between for tokens."""
    finite_R: Tensor
    """False where a term or a contribution is NaN or infinite: the gradient is then NaN."""


def accumulate_gradient(
    policy: Policy,
    scored: Scored,
    spec: Reinforcement,
    n_responses: int,
    old: Tensor | None = None,
    reference: Tensor | None = None,
) -> Accumulated:
    """Backpropagate -sum_r (R_r - beta * KL_r) / n_responses into the parameters' gradients.

    Args:
        scored: responses with signal (advantage not 0).
        n_responses: P * G, the responses the mean runs over, those without signal included.
        old: stored values under the rollout policy, (R, n) or (R, n, L); None = on-policy: they equal the policy's own.
        reference: stored values under the reference policy; None = no KL.
    """
    objective = OBJECTIVES[spec.algorithm]
    n = scored.n_samples
    # A linear objective sees each sample alone, (rows, 1); any other all samples of a response, (rows, n).
    together = 1 if objective.linear else n
    per_backward = max(spec.micro_batch // together, 1) * together
    parts = []
    for flat in torch.arange(scored.weights_Rn.numel(), device=scored.weights_Rn.device).split(per_backward):
        values = values_of(policy, scored, flat, objective)
        length = scored.masks_RnL.shape[-1] if values.ndim == 1 else values.shape[1]
        part = _Part(
            objective,
            spec,
            values.detach().view(-1, together, *values.shape[1:]),
            scored.samples(flat, length, together),
            scored.advantages_R[flat.view(-1, together)[:, 0] // n],
            _rows(old, flat, values),
            _rows(reference, flat, values),
        )
        slopes, statistics = part.evaluate(together / n)
        values.backward(slopes.view_as(values) / n_responses)
        parts.append(statistics)
    objective_N, kl_N, elbo_N, d_N, d_max_N, clamped_N, finite_N = (
        torch.cat(found) for found in zip(*parts, strict=True)
    )
    objective_R, kl_R = objective_N.view(-1, n).sum(-1), kl_N.view(-1, n).sum(-1)
    return Accumulated(
        (spec.kl_coefficient * kl_R - objective_R).sum() / n_responses,
        elbo_N.view(-1, n),
        objective_R,
        kl_R,
        d_N.view(-1, n),
        d_max_N.view(-1, n),
        clamped_N.view(-1, n),
        finite_N.view(-1, n).all(-1),
    )


def _rows(stored: Tensor | None, flat: Tensor, values: Tensor) -> Tensor | None:
    """The stored values of the canvases, cut to the length of `values`."""
    if stored is None:
        return None
    rows = stored.flatten(0, 1)[flat]
    return rows if values.ndim == 1 else rows[:, : values.shape[1]]


@dataclass(frozen=True)
class _Part:
    """The canvases of one backward pass: rows of J samples, values (rows, J) or (rows, J, L)."""

    objective: Objective
    spec: Reinforcement
    values: Tensor
    samples: Samples
    advantages: Tensor
    old: Tensor | None
    reference: Tensor | None

    def evaluate(self, share: float) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Slopes of the loss by the values, and the statistics of each sample.

        Args:
            share: J / n, what the part's mean over its J samples is of the response's mean over n.
        """
        leaf = self.values.clone().requires_grad_()
        stored = self.values if self.old is None else self.old.view_as(self.values)
        old = torch.where(stored == UNKNOWN, self.values, stored)
        g = self.objective.contributions(self.spec, leaf, old, self.advantages, self.samples) * share
        (slopes,) = torch.autograd.grad(g.sum(), leaf)
        cut = slopes == 0
        kl = torch.zeros_like(g)
        if self.reference is not None:
            kl = self.objective.kl(leaf, self.reference.view_as(self.values), self.samples) * share
            (kl_slopes,) = torch.autograd.grad(kl.sum(), leaf)
            slopes = slopes - self.spec.kl_coefficient * kl_slopes
        g, kl = _per_sample(g.detach()), _per_sample(kl.detach())
        finite = g.isfinite() & kl.isfinite()
        # Whatever the backward pass would make of it: an update on such terms must not happen.
        bad = ~finite.view(finite.shape + (1,) * (slopes.ndim - 2))
        slopes = slopes.masked_fill(bad, torch.nan)
        return -slopes, tuple(x.flatten() for x in (g, kl, *self._statistics(old, stored, cut), finite))

    def _statistics(self, old: Tensor, stored: Tensor, cut: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """ELBO term before normalisation, mean and largest log-ratio, share cut off: each (rows, J)."""
        d = self.values - old
        if not self.objective.per_token:
            d = d.masked_fill(stored == UNKNOWN, torch.nan)
            return self.values / self.samples.scale, d, d, cut.float()
        masks = self.samples.masks
        count = masks.sum(-1).clamp(min=1)
        mean = d.sum(-1) / count  # 0 where not masked
        largest = d.masked_fill(~masks, -torch.inf).amax(-1).masked_fill(~masks.any(-1), 0.0)
        unscaled = self.samples.elbo(self.values) / self.samples.scale
        return unscaled, mean, largest, (cut & masks).sum(-1) / count


def _per_sample(contributions: Tensor) -> Tensor:
    """Sums over tokens where contributions are per token: (rows, J, L) -> (rows, J)."""
    return contributions.sum(-1) if contributions.ndim == 3 else contributions
