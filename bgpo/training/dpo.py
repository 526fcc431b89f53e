"""Preference optimization on chosen and rejected answers: VRPO (LLaDA 1.5, arXiv 2505.19223).

    loss = -log sigmoid(m),   m = beta * ((B(y_w) - B_ref(y_w)) - (B(y_l) - B_ref(y_l)))

y_w is the preferred answer, y_l the other one, B the mean of n_t ELBO terms, and policy and reference are scored on the
same masks, whose noise cancels in the differences. The loss is not linear in the terms, but its gradient is one number
a pair times a sum over them:

    d loss = -beta * sigmoid(-m) * mean_j (d ell_wj - d ell_lj)

So all terms are computed without a graph first, and with that number known each canvas is backpropagated by itself:
the exact gradient, in memory that does not depend on n_t, for one more forward pass.

Shapes: P pairs, R = 2 P answers (row 2 p is the preferred one of pair p, row 2 p + 1 the other), n samples, L length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bgpo.diffusion.elbo import Canvases, build_canvases, elbo_terms_of
from bgpo.diffusion.masking import draw_masks
from bgpo.diffusion.rng import Purpose, stream_keys
from bgpo.models import Policy
from bgpo.spec import Dpo, RunSpec
from bgpo.training.cluster import Cluster
from bgpo.training.data import Row, batch_indices
from bgpo.training.micro_batch import MicroBatch
from bgpo.training.optimizer import Optimizer
from bgpo.training.reference import Reference
from bgpo.training.reporter import Reporter, Stopwatch


@dataclass(frozen=True)
class Answers:
    """Both answers of P pairs with their Monte Carlo samples."""

    canvases: Canvases
    masks_RnL: Tensor
    weights_Rn: Tensor

    def terms(self, policy: Policy, flat: Tensor) -> Tensor:
        """ELBO terms (len(flat),) of the canvases numbered row * n + sample."""
        canvases = self.canvases.select(flat // self.weights_Rn.shape[1])
        masks = self.masks_RnL.flatten(0, 1)[flat, : canvases.response_length]
        return elbo_terms_of(policy, canvases, masks, self.weights_Rn.flatten()[flat])

    def parts(self, micro_batch: int) -> Sequence[Tensor]:
        """All canvases' numbers, `micro_batch` at a time."""
        parts: Sequence[Tensor] = torch.arange(self.weights_Rn.numel(), device=self.weights_Rn.device).split(
            micro_batch
        )
        return parts

    @torch.no_grad()
    def elbos(self, policy: Policy, micro_batch: int) -> Tensor:
        """ELBO estimates, float64 (P, 2)."""
        terms = torch.cat([self.terms(policy, part) for part in self.parts(micro_batch)])
        return terms.double().view_as(self.weights_Rn).mean(-1).view(-1, 2)


def draw_answers(policy: Policy, rows: Sequence[Row], keys_P2: Tensor, method: Dpo) -> Answers:
    """Lay out the answers of pairs and draw the masks of each answer from its own stream."""
    responses = [answer for row in rows for answer in (row.answer_ids, row.rejected_ids)]
    prompts = [row.prompt_ids for row in rows for _ in range(2)]
    canvases = build_canvases(prompts, responses, policy.end_ids[0], policy.device)
    keys = keys_P2.flatten().to(policy.device)
    masks, weights = draw_masks(keys, canvases.lengths_B, canvases.response_length, method.mc_samples, method.estimator)
    return Answers(canvases, masks, weights)


def rewards_of(elbos_P2: Tensor, reference_P2: Tensor, beta: float) -> Tensor:
    """The implicit rewards of both answers, (P, 2); their difference is the margin m."""
    return beta * (elbos_P2 - reference_P2)


def accumulate_gradient(
    policy: Policy, answers: Answers, reference_P2: Tensor, beta: float, n_pairs: int, micro_batch: int
) -> Tensor:
    """Backpropagate the summed loss of the pairs, divided by n_pairs, into the parameters' gradients.

    Args:
        answers: P pairs, P at least 1.
        reference_P2: their ELBO estimates under the reference policy, on the same samples.
        n_pairs: pairs the mean runs over; more than P where other processes hold the rest.

    Returns:
        the ELBO estimates under the policy, float64 (P, 2).
    """
    elbos_P2 = answers.elbos(policy, micro_batch)
    chosen_P, rejected_P = rewards_of(elbos_P2, reference_P2, beta).unbind(-1)
    pull_P = beta * torch.sigmoid(rejected_P - chosen_P) / n_pairs
    n = answers.weights_Rn.shape[1]
    slope_R = (torch.stack((-pull_P, pull_P), dim=-1).flatten() / n).float()
    for part in answers.parts(micro_batch):
        (answers.terms(policy, part) * slope_R[part // n]).sum().backward()
    return elbos_P2


class DpoTrainer:
    """Holds what a step needs; all progress lives in policy and optimizer."""

    def __init__(
        self,
        policy: Policy,
        optimizer: Optimizer,
        rows: Sequence[Row],
        spec: RunSpec,
        method: Dpo,
        reporter: Reporter,
        cluster: Cluster,
    ) -> None:
        self._policy, self._optimizer, self._rows = policy, optimizer, rows
        self._spec, self._method, self._reporter = spec, method, reporter
        self._cluster = cluster
        self._reference = Reference.of(policy, spec)
        self._micro_batch = MicroBatch(method.micro_batch, optimizer, reporter)

    def step(self, step: int, watch: Stopwatch) -> dict[str, float]:
        """Run one step and return its metrics. Raises NonFiniteError, OutOfMemory."""
        method = self._method
        picked = batch_indices(self._spec.seed, len(self._rows), method.batch_size, step)
        keys_P2 = self._keys(Purpose.PREFERENCE, len(picked), step)
        # Policy and reference, each of both answers: summed over processes that each fill in their own pairs.
        elbos_2P2 = torch.zeros(2, len(picked), 2, dtype=torch.float64)
        self._reporter.enter("training", step)
        with watch.measure("loss"):
            if mine := self._cluster.share(range(len(picked))):
                rows = [self._rows[picked[slot]] for slot in mine]
                answers = draw_answers(self._policy, rows, keys_P2[mine], method)
                elbos_2P2[:, mine] = self._micro_batch.run(lambda size: self._accumulate(answers, len(picked), size))
            elbos_2P2 = self._cluster.sum(elbos_2P2)
        rewards_P2 = rewards_of(elbos_2P2[0], elbos_2P2[1], method.beta)
        margin_P = rewards_P2[:, 0] - rewards_P2[:, 1]
        broken = sorted(picked[slot] for slot in (~margin_P.isfinite()).nonzero().flatten().tolist())
        if broken:
            self._reporter.log("warn", f"step {step}: the loss is not finite at training rows {broken}")
        learning_rate = self._optimizer.learning_rate
        with watch.measure("optimizer"):
            norm = self._optimizer.step(suspects=broken)
        chosen, rejected = rewards_P2.mean(0).tolist()
        elbo_chosen, elbo_rejected = elbos_2P2[0].mean(0).tolist()
        return {
            "loss": float(F.softplus(-margin_P).mean()),
            "accuracy": float((margin_P > 0).double().mean()),
            "margin": float(margin_P.mean()),
            "reward_chosen": chosen,
            "reward_rejected": rejected,
            "elbo_mean": (elbo_chosen + elbo_rejected) / 2,
            "elbo_chosen": elbo_chosen,
            "elbo_rejected": elbo_rejected,
            "grad_norm": norm,
            "learning_rate": learning_rate,
        }

    def validation_loss(self, rows: Sequence[Row]) -> float:
        """Mean loss over pairs, each with its own fixed masks; the same on every process."""
        keys_P2 = self._keys(Purpose.EVALUATION, len(rows))
        loss_P = torch.zeros(len(rows), dtype=torch.float64)
        mine = self._cluster.share(range(len(rows)))
        for first in range(0, len(mine), self._method.batch_size):
            slots = mine[first : first + self._method.batch_size]
            answers = draw_answers(self._policy, [rows[slot] for slot in slots], keys_P2[slots], self._method)
            elbos_P2 = answers.elbos(self._policy, self._micro_batch.size)
            rewards_P2 = rewards_of(elbos_P2, self._reference_elbos(answers, self._micro_batch.size), self._method.beta)
            loss_P[slots] = F.softplus(rewards_P2[:, 1] - rewards_P2[:, 0]).cpu()
        return float(self._cluster.sum(loss_P).mean())

    def _keys(self, purpose: Purpose, pairs: int, *parts: int) -> Tensor:
        """A stream for each answer of each pair, (P, 2)."""
        return stream_keys(self._spec.seed, purpose, *parts, torch.arange(pairs)[:, None], torch.arange(2))

    def _reference_elbos(self, answers: Answers, micro_batch: int) -> Tensor:
        with self._reference.policy() as frozen:
            return answers.elbos(frozen, micro_batch)

    def _accumulate(self, answers: Answers, n_pairs: int, micro_batch: int) -> Tensor:
        """ELBO estimates of policy and reference, (2, P, 2)."""
        reference_P2 = self._reference_elbos(answers, micro_batch)
        beta = self._method.beta
        elbos_P2 = accumulate_gradient(self._policy, answers, reference_P2, beta, n_pairs, micro_batch)
        return torch.stack((elbos_P2, reference_P2)).cpu()
