"""Masked-diffusion supervised fine-tuning, LLaDA's recipe (arXiv 2502.09992, Algorithm 2).

Answers are padded with end tokens to the response length, so that the model learns where to stop; the loss is the
negative ELBO per response token, with one mask draw a row. Each process of a run works on its share of a step's rows;
masks are named by a row's place in the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bgpo.diffusion.elbo import build_canvases, masked_log_probs
from bgpo.diffusion.masking import draw_masks
from bgpo.diffusion.rng import Purpose, stream_keys
from bgpo.models import Policy
from bgpo.spec import RunSpec, Supervised
from bgpo.training.cluster import Cluster
from bgpo.training.data import Row, batch_indices
from bgpo.training.micro_batch import MicroBatch
from bgpo.training.optimizer import Optimizer
from bgpo.training.reporter import Reporter, Stopwatch


class SupervisedTrainer:
    """Holds what a step needs; all progress lives in policy and optimizer."""

    def __init__(
        self,
        policy: Policy,
        optimizer: Optimizer,
        rows: Sequence[Row],
        spec: RunSpec,
        method: Supervised,
        reporter: Reporter,
        cluster: Cluster,
    ) -> None:
        self._policy, self._optimizer, self._rows = policy, optimizer, rows
        self._spec, self._method, self._reporter = spec, method, reporter
        self._cluster = cluster
        self._micro_batch = MicroBatch(method.micro_batch, optimizer, reporter)

    def step(self, step: int, watch: Stopwatch) -> dict[str, float]:
        """Run one step and return its metrics. Raises NonFiniteError and OutOfMemory, see optimizer and MicroBatch."""
        method = self._method
        picked = batch_indices(self._spec.seed, len(self._rows), method.batch_size, step)
        self._reporter.enter("training", step)
        with watch.measure("loss"):
            keys = stream_keys(self._spec.seed, Purpose.SUPERVISED, step, torch.arange(len(picked)))
            rows = [self._rows[index] for index in picked]
            loss_B, hits = self._micro_batch.run(lambda size: self._accumulate(rows, keys, size))
            loss_B, hits = self._cluster.sum(loss_B), self._cluster.sum(hits)
        learning_rate = self._optimizer.learning_rate
        broken = [picked[slot] for slot in (~loss_B.isfinite()).nonzero().flatten().tolist()]
        with watch.measure("optimizer"):
            norm = self._optimizer.step(suspects=broken)
        if broken:
            self._reporter.log("warn", f"step {step}: the loss is not finite at training rows {sorted(broken)}")
        return {
            "loss": float(loss_B.mean()),
            "token_probability": float(hits[0] / hits[1].clamp(min=1.0)),
            "grad_norm": norm,
            "learning_rate": learning_rate,
        }

    def _accumulate(self, rows: Sequence[Row], keys_B: Tensor, micro_batch: int) -> tuple[Tensor, Tensor]:
        """Backpropagate this process's share of the mean loss; losses (B,), 0 at the others' rows, and hits (2,)."""
        loss_B = torch.zeros(len(rows), dtype=torch.float64)
        hits = torch.zeros(2, dtype=torch.float64)
        for slots in _chunks(self._cluster.share(range(len(rows))), micro_batch):
            losses, part_hits = self.losses([rows[slot] for slot in slots], keys_B[slots])
            (losses.sum() / len(rows)).backward()
            loss_B[slots] = losses.detach().cpu().double()
            hits += part_hits.cpu()
        return loss_B, hits

    def losses(self, rows: Sequence[Row], keys: Tensor) -> tuple[Tensor, Tensor]:
        """Negative ELBO per token of each row, and (summed probability of the masked tokens, their number)."""
        length = self._method.max_completion_length
        pad = self._policy.end_ids[0]
        answers = [row.answer_ids + [pad] * (length - len(row.answer_ids)) for row in rows]
        canvases = build_canvases([row.prompt_ids for row in rows], answers, pad, self._policy.device)
        masks, weights = draw_masks(keys.to(self._policy.device), canvases.lengths_B, length, 1, "exact_count")
        log_probs = masked_log_probs(self._policy, canvases, masks[:, 0])
        losses = -log_probs.sum(-1) * weights[:, 0] / length
        probability = log_probs.detach().double().exp()[masks[:, 0]].sum()
        return losses, torch.stack((probability, masks.sum().double()))

    @torch.no_grad()
    def validation_loss(self, rows: Sequence[Row]) -> float:
        """Mean loss over rows, each with its own fixed mask; the same on every process."""
        keys = stream_keys(self._spec.seed, Purpose.EVALUATION, torch.arange(len(rows)))
        loss_B = torch.zeros(len(rows), dtype=torch.float64)
        for slots in _chunks(self._cluster.share(range(len(rows))), self._micro_batch.size):
            loss_B[slots] = self.losses([rows[slot] for slot in slots], keys[slots])[0].cpu().double()
        return float(self._cluster.sum(loss_B).mean())


def _chunks(items: list[int], size: int) -> list[list[int]]:
    return [items[first : first + size] for first in range(0, len(items), size)]
