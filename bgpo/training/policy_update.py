"""The policy update of a step: the mini-batches of one rollout batch, each with one optimizer step.

The first mini-batch that updates is exactly on-policy: its old terms are its own, no second pass. Later ones use terms
computed under the rollout policy before the first update, where the objective needs them.

Each process trains the groups that it rolled out. Whether a mini-batch makes an update is decided from the records of
all processes, so a process without signal takes part in the optimizer's step all the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from bgpo.diffusion.elbo import build_canvases
from bgpo.diffusion.rng import Purpose
from bgpo.errors import OutOfMemory
from bgpo.models import Policy
from bgpo.objectives import OBJECTIVES
from bgpo.spec import Reinforcement, RunSpec
from bgpo.training.cluster import Cluster
from bgpo.training.groups import Collected
from bgpo.training.guards import check_gradient
from bgpo.training.micro_batch import MicroBatch, does_not_fit
from bgpo.training.optimizer import Optimizer
from bgpo.training.policy_gradient import Accumulated, accumulate_gradient
from bgpo.training.reference import Reference
from bgpo.training.reporter import Reporter, Stopwatch
from bgpo.training.rollout import response_keys
from bgpo.training.scored import Scored, draw_samples, old_values, stored_values
from bgpo.training.step_metrics import ResponseRecord, Update, response_records

T = TypeVar("T")


@dataclass(frozen=True)
class _Share:
    """This process's responses with signal in a mini-batch."""

    scored: Scored
    places: list[tuple[int, int]]
    """Slot and training row of each."""


class PolicyUpdate:
    """Turns collected groups into optimizer steps."""

    def __init__(
        self,
        policy: Policy,
        optimizer: Optimizer,
        spec: RunSpec,
        method: Reinforcement,
        reporter: Reporter,
        cluster: Cluster,
    ) -> None:
        self._policy, self._optimizer, self._seed = policy, optimizer, spec.seed
        self._method, self._reporter, self._cluster = method, reporter, cluster
        self._reference = Reference.of(policy, spec) if method.kl_coefficient > 0 else None
        self._micro_batch = MicroBatch(method.micro_batch, optimizer, reporter, self._out_of_memory)

    def run(self, step: int, collected: Collected, watch: Stopwatch) -> list[Update]:
        """Train on the collected groups; one result for each mini-batch with signal."""
        size = len(collected.batch) // self._method.num_inner_updates
        parts = [collected.batch[first : first + size] for first in range(0, len(collected.batch), size)]
        signal = {record.slot for record in collected.records if record.has_signal}
        parts = [part for part in parts if not signal.isdisjoint(part)]
        with watch.measure("loss"):
            shares = [self._share(step, collected, part) for part in parts]
            old = [None if i == 0 or share is None else self._old(share) for i, share in enumerate(shares)]
        n_responses = size * self._method.group_size
        updates: list[Update] = []
        for share, values in zip(shares, old, strict=True):
            with watch.measure("loss"):
                own: list[ResponseRecord] = []
                if share is not None:
                    accumulated = self._accumulate(share, n_responses, values)
                    d_known = not updates or values is not None
                    own = response_records(accumulated, share.places, self._method.kl_coefficient, d_known=d_known)
                records = sorted(self._cluster.gather(own), key=lambda record: record.slot)
            with watch.measure("optimizer"):
                updates.append(self._step(records, n_responses))
        return updates

    def _share(self, step: int, collected: Collected, part: Sequence[int]) -> _Share | None:
        """This process's responses of a mini-batch that carry signal; None when there is none."""
        method, policy = self._method, self._policy
        purpose = Purpose.PROMPT_MASK if OBJECTIVES[method.algorithm].fully_masked else Purpose.ELBO
        prompts, responses, advantages, places, keys = [], [], [], [], []
        for group in (collected.own[slot] for slot in part if slot in collected.own):
            slot = group.record.slot
            keys_G = response_keys(self._seed, purpose, step, [slot], method.group_size, policy.device)
            for index, advantage in enumerate(group.advantages):
                if advantage != 0:
                    prompts.append(group.prompt_ids)
                    responses.append(group.responses[index])
                    advantages.append(advantage)
                    places.append((slot, group.record.row))
                    keys.append(keys_G[index])
        if not places:
            return None
        canvases = build_canvases(prompts, responses, policy.end_ids[0], policy.device)
        signal = torch.tensor(advantages, device=policy.device)
        return _Share(draw_samples(canvases, signal, torch.stack(keys), method), places)

    def _old(self, share: _Share) -> Tensor | None:
        """Terms under the rollout policy, which is still the policy."""
        return self._within_memory(lambda method: old_values(self._policy, share.scored, method))

    def _accumulate(self, share: _Share, n_responses: int, old: Tensor | None) -> Accumulated:
        def work(method: Reinforcement) -> Accumulated:
            reference = None
            if self._reference is not None:
                with self._reference.policy() as frozen:
                    reference = stored_values(frozen, share.scored, method)
            return accumulate_gradient(self._policy, share.scored, method, n_responses, old, reference)

        return self._within_memory(work)

    def _step(self, records: list[ResponseRecord], n_responses: int) -> Update:
        """The optimizer's step, and what is wrong with it."""
        rows = sorted({record.row for record in records if not record.finite})
        norm = self._optimizer.step(rows)
        update = Update(records, n_responses, norm)
        if not math.isfinite(norm):
            where = f"training rows {rows}" if rows else "in the backward pass, all losses were finite"
            self._reporter.log("warn", f"an update was skipped: loss or gradient is not finite ({where})")
        check_gradient(update)
        return update

    def _within_memory(self, work: Callable[[Reinforcement], T]) -> T:
        """Do work with the micro-batch that fits."""
        return self._micro_batch.run(lambda size: work(self._method.model_copy(update={"micro_batch": size})))

    def _out_of_memory(self, micro_batch: int) -> OutOfMemory:
        method = self._method
        if OBJECTIVES[method.algorithm].linear or micro_batch > method.mc_samples:
            return does_not_fit(micro_batch)
        return OutOfMemory(
            f"{method.algorithm} holds the {method.mc_samples} samples of a response in memory at once, and they "
            "do not fit; lower mc_samples, or use a linear algorithm such as bgpo",
            "method.mc_samples",
        )
