"""Masked-diffusion supervised fine-tuning, LLaDA's recipe (arXiv 2502.09992, Algorithm 2).

Answers are padded with end tokens to the response length, so that the model learns where to stop; the loss is the
negative ELBO per response token, with one mask draw a row.
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
from bgpo.training.data import Row, batch_indices
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
    ) -> None:
        self._policy, self._optimizer, self._rows = policy, optimizer, rows
        self._spec, self._method, self._reporter = spec, method, reporter

    def step(self, step: int, watch: Stopwatch) -> dict[str, float]:
        """Run one step and return its metrics. Raises NonFiniteError, see the optimizer."""
        method = self._method
        picked = batch_indices(self._spec.seed, len(self._rows), method.batch_size, step)
        rows = [self._rows[i] for i in picked]
        self._reporter.enter("training", step)
        with watch.measure("loss"):
            keys = stream_keys(self._spec.seed, Purpose.SUPERVISED, step, torch.arange(len(rows)))
            loss = torch.zeros(())
            correct = masked = 0.0
            for first in range(0, len(rows), method.micro_batch):
                part = slice(first, first + method.micro_batch)
                part_loss, part_correct, part_masked = self.loss(rows[part], keys[part])
                part_loss = part_loss / len(rows)
                part_loss.backward()
                loss += part_loss.detach().cpu()
                correct += part_correct
                masked += part_masked
        learning_rate = self._optimizer.learning_rate
        with watch.measure("optimizer"):
            norm = self._optimizer.step()
        return {
            "loss": float(loss),
            "token_probability": correct / max(masked, 1.0),
            "grad_norm": norm,
            "learning_rate": learning_rate,
        }

    def loss(self, rows: Sequence[Row], keys: Tensor) -> tuple[Tensor, float, float]:
        """Negative ELBO per token summed over rows, the summed probability of the masked tokens, and their number."""
        length = self._method.max_completion_length
        pad = self._policy.end_ids[0]
        answers = [row.answer_ids + [pad] * (length - len(row.answer_ids)) for row in rows]
        canvases = build_canvases([row.prompt_ids for row in rows], answers, pad, self._policy.device)
        masks, weights = draw_masks(keys.to(self._policy.device), canvases.lengths_B, length, 1, "exact_count")
        log_probs = masked_log_probs(self._policy, canvases, masks[:, 0])
        loss = -(log_probs.sum(-1) * weights[:, 0]).sum() / length
        probability = float(log_probs.detach().exp()[masks[:, 0]].sum())
        return loss, probability, float(masks.sum())

    @torch.no_grad()
    def validation_loss(self, rows: Sequence[Row]) -> float:
        """Mean loss over rows, each with its own fixed mask."""
        keys = stream_keys(self._spec.seed, Purpose.EVALUATION, torch.arange(len(rows)))
        size = self._method.micro_batch
        parts = [self.loss(rows[i : i + size], keys[i : i + size])[0] for i in range(0, len(rows), size)]
        return float(torch.stack(parts).sum()) / len(rows)
