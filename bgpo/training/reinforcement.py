"""Reinforcement: one step of Algorithm 1 (arXiv 2510.11683).

    rollout -> reward -> group advantage -> for each mini-batch: backward sample by sample, one optimizer step

The first mini-batch after a rollout is exactly on-policy: its old terms are its own, no second pass. Later ones use
terms computed under the rollout policy before the first update. Groups without signal are skipped and counted;
responses whose grading failed leave their group.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bgpo.diffusion.rng import Purpose
from bgpo.errors import GraderError, OutOfMemory
from bgpo.models import Policy
from bgpo.rewards import Grade, compile_grader
from bgpo.spec import Reinforcement, RunSpec
from bgpo.training.advantage import group_advantages
from bgpo.training.data import Row, batch_indices
from bgpo.training.evaluation import summarize
from bgpo.training.optimizer import Optimizer
from bgpo.training.policy_gradient import Scored, accumulate_gradient, draw_samples, old_terms
from bgpo.training.reporter import Reporter, Stopwatch
from bgpo.training.rollout import RolloutBatch, canvases_of, grade_rollouts, response_keys, roll_out


class ReinforcementTrainer:
    """Holds what a step needs; all progress lives in policy and optimizer."""

    def __init__(
        self,
        policy: Policy,
        optimizer: Optimizer,
        rows: Sequence[Row],
        spec: RunSpec,
        method: Reinforcement,
        reporter: Reporter,
    ) -> None:
        self._policy, self._optimizer, self._rows = policy, optimizer, rows
        self._spec, self._method, self._reporter = spec, method, reporter
        self._grader = compile_grader(method.grader)

    def step(self, step: int, watch: Stopwatch) -> dict[str, float]:
        """Run one step and return its metrics.

        Raises:
            GraderError: no response of the whole batch could be graded.
            NonFiniteError, OutOfMemory: see the optimizer and `_update`.
        """
        method = self._method
        picked = batch_indices(self._spec.seed, len(self._rows), method.batch_size, step)
        self._reporter.enter("rollout", step)
        with watch.measure("rollout"):
            batch = roll_out(self._policy, [self._rows[i] for i in picked], method, self._spec.seed, step)
        self._reporter.enter("grading", step)
        with watch.measure("reward"):
            grades = grade_rollouts(batch, self._grader, method.group_size)
        if all(grade.error for grade in grades):
            raise GraderError(f"no response could be graded: {grades[0].error}", "method.grader")
        rewards = torch.tensor([grade.score for grade in grades]).view(-1, method.group_size)
        valid = torch.tensor([grade.error is None for grade in grades]).view_as(rewards)
        advantages, zero_signal = group_advantages(rewards, valid, method.advantage)
        self._log_samples(step, batch, grades)
        self._reporter.enter("training", step)
        metrics = self._update(step, batch, advantages, watch)
        lengths = batch.rollouts.lengths_B.double()
        ended = torch.isin(batch.rollouts.tokens_BG, torch.tensor(self._policy.end_ids, device=lengths.device))
        return (
            metrics
            | summarize(grades)
            | {
                "reward_std": float(rewards[valid].std(unbiased=False)),
                "frac_zero_signal_groups": float(zero_signal.double().mean()),
                "response_length": float(lengths.mean()),
                "end_token_fraction": float(ended.any(-1).double().mean()),
                "entropy": float(batch.rollouts.entropy_B.mean()),
                "tokens_per_second": float(lengths.sum()) / watch.seconds["rollout"],
            }
        )

    def _update(self, step: int, batch: RolloutBatch, advantages: Tensor, watch: Stopwatch) -> dict[str, float]:
        """The mini-batches of one rollout batch, each with one optimizer step."""
        method, policy = self._method, self._policy
        learning_rate = self._optimizer.learning_rate
        keys = response_keys(self._spec.seed, Purpose.ELBO, step, len(batch.rows), method.group_size, policy.device)
        with watch.measure("loss"):
            parts = [self._scored(batch, part, advantages, keys) for part in self._mini_batches(len(batch.rows))]
            old = [
                None if i == 0 or p is None else old_terms(policy, p, method.micro_batch) for i, p in enumerate(parts)
            ]
        losses, norms, elbos = [], [], []
        responses = advantages.numel() // method.num_inner_updates
        for scored, old_Rn in zip(parts, old, strict=True):
            if scored is None:
                continue
            with watch.measure("loss"):
                loss, ell = self._accumulate(scored, responses, old_Rn)
            with watch.measure("optimizer"):
                norms.append(self._optimizer.step())
            losses.append(loss)
            elbos.append(ell.mean())
        if not norms:
            return {"learning_rate": learning_rate}
        return {
            "loss": sum(losses) / len(losses),
            "grad_norm": max(norms),
            "elbo_mean": float(torch.stack(elbos).mean()),
            "learning_rate": learning_rate,
        }

    def _mini_batches(self, n_prompts: int) -> list[range]:
        """Response numbers of each mini-batch: whole groups, in order."""
        size = n_prompts * self._method.group_size // self._method.num_inner_updates
        return [range(first, first + size) for first in range(0, n_prompts * self._method.group_size, size)]

    def _scored(self, batch: RolloutBatch, part: range, advantages: Tensor, keys: Tensor) -> Scored | None:
        """The responses of a mini-batch that carry signal; None when there is none."""
        flat = advantages.flatten()
        chosen = [r for r in part if flat[r] != 0]
        if not chosen:
            return None
        canvases = canvases_of(self._policy, batch, chosen, self._method.group_size)
        return draw_samples(canvases, flat[chosen].to(keys.device), keys[chosen], self._method)

    def _accumulate(self, scored: Scored, responses: int, old_Rn: Tensor | None) -> tuple[float, Tensor]:
        """Accumulate gradients; on running out of memory halve the micro-batch once and try again."""
        try:
            return accumulate_gradient(self._policy, scored, self._method, responses, old_Rn)
        except torch.OutOfMemoryError:
            self._optimizer.discard_gradients()
            self._method = self._method.model_copy(update={"micro_batch": max(self._method.micro_batch // 2, 1)})
            self._reporter.log("warn", f"out of memory: micro_batch is now {self._method.micro_batch}")
        try:
            return accumulate_gradient(self._policy, scored, self._method, responses, old_Rn)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(
                f"the policy update does not fit with micro_batch {self._method.micro_batch}; lower micro_batch or "
                "max_completion_length",
                "method.micro_batch",
            ) from error

    def _log_samples(self, step: int, batch: RolloutBatch, grades: Sequence[Grade]) -> None:
        """The first response of the first few prompts."""
        for index, row in enumerate(batch.rows[: self._spec.sample_log]):
            first = index * self._method.group_size
            grade = grades[first]
            self._reporter.sample(
                step=step,
                split="train",
                index=index,
                prompt=next(m["content"] for m in reversed(row.item["messages"]) if m["role"] == "user"),
                completion=batch.texts[first],
                reward=None if grade.error else grade.score,
                scores=dict(grade.sub_scores),
                error=None if grade.error is None else f"{grade.error.kind}: {grade.error.message}",
            )
