"""The groups of a step: prompts rolled out and graded, and those replaced that teach nothing (dynamic sampling).

A step begins with `batch_size` prompts. While fewer than that carry signal, and for at most
`dynamic_sampling_rounds` rounds, further prompts are rolled out in place of the others (DAPO, arXiv 2503.14476, without
its bound). Which prompts a round may use is a pure function of (seed, step, round), so a resumed run draws the same
ones; how many of them it uses is as many as are missing. If groups without signal are left in the end, they stay in the
batch, so that the mean runs over the same number of responses as ever.

Everything here is per group of G responses to one prompt; a group lives on the process that rolled it out, and the
others know its `GroupRecord`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from bgpo.diffusion.rng import Purpose, stream_keys, uniform
from bgpo.models import Policy
from bgpo.rewards import Grade
from bgpo.spec import Reinforcement
from bgpo.training.advantage import group_advantages
from bgpo.training.cluster import Cluster
from bgpo.training.data import Row, batch_indices
from bgpo.training.grading import Grading
from bgpo.training.reporter import Reporter, Stopwatch
from bgpo.training.rollout import RolloutBatch, grade_rollouts, roll_out


@dataclass(frozen=True)
class GroupRecord:
    """What every process knows of a group, in lists over its G responses."""

    slot: int
    row: int
    """Number of the training row."""
    grades: list[Grade]
    lengths: list[int]
    entropies: list[float]
    ended: list[bool]
    has_signal: bool
    first_text: str


@dataclass(frozen=True)
class Group:
    """A group on its own process."""

    record: GroupRecord
    prompt_ids: list[int]
    responses: list[list[int]]
    """Token ids the ELBO covers."""
    advantages: list[float]


@dataclass(frozen=True)
class Collected:
    """The groups of one step."""

    own: dict[int, Group]
    """This process's, by slot."""
    records: list[GroupRecord]
    """All that were rolled out, on all processes, by slot."""
    batch: list[int]
    """Slots that are trained on, in order."""
    rounds: int
    """Rounds made beyond the first."""


class Collector:
    """Rolls out and grades the groups of a step."""

    def __init__(
        self,
        policy: Policy,
        rows: Sequence[Row],
        grading: Grading,
        method: Reinforcement,
        seed: int,
        reporter: Reporter,
        cluster: Cluster,
    ) -> None:
        self._policy, self._rows, self._grading, self._method = policy, rows, grading, method
        self._seed, self._reporter, self._cluster = seed, reporter, cluster

    def collect(self, step: int, watch: Stopwatch) -> Collected:
        """The step's groups."""
        method = self._method
        size = method.batch_size // method.num_inner_updates
        # Each mini-batch is shared among the processes by itself, so that each has work in each.
        shared = [self._cluster.share(range(i, i + size)) for i in range(0, method.batch_size, size)]
        picked = batch_indices(self._seed, len(self._rows), method.batch_size, step)
        own = self._groups(step, {slot: picked[slot] for part in shared for slot in part}, watch)
        records = self._gather(own)
        rounds = 0
        while rounds < method.dynamic_sampling_rounds:
            missing = method.batch_size - sum(record.has_signal for record in records)
            if missing == 0:
                break
            rounds += 1
            candidates = further_rows(self._seed, len(self._rows), method.batch_size, step, rounds)
            first = rounds * method.batch_size
            slots = self._cluster.share(range(first, first + missing))
            fresh = self._groups(step, {slot: candidates[slot - first] for slot in slots}, watch)
            own |= fresh
            records += self._gather(fresh)
        kept = sorted(records, key=lambda record: not record.has_signal)[: method.batch_size]
        return Collected(own, records, sorted(record.slot for record in kept), rounds)

    def _gather(self, own: dict[int, Group]) -> list[GroupRecord]:
        records = self._cluster.gather([group.record for group in own.values()])
        return sorted(records, key=lambda record: record.slot)

    def _groups(self, step: int, picked: Mapping[int, int], watch: Stopwatch) -> dict[int, Group]:
        """Roll out and grade row numbers by slot."""
        self._reporter.enter("rollout", step)
        if not picked:
            return {}
        method = self._method
        rows = [self._rows[row] for row in picked.values()]
        with watch.measure("rollout"):
            batch = roll_out(self._policy, rows, method, self._seed, step, list(picked))
        self._reporter.enter("grading", step)
        # A reward model computes in its own precision, as it does in the threads of evaluations.
        with watch.measure("reward"), torch.autocast(self._policy.device.type, enabled=False):
            grades = grade_rollouts(batch, self._grading.grader, method.group_size)
        return self._sorted_out(picked, batch, grades)

    def _sorted_out(self, picked: Mapping[int, int], batch: RolloutBatch, grades: Sequence[Grade]) -> dict[int, Group]:
        """A batch by its groups, with advantages."""
        size = self._method.group_size
        rewards = torch.tensor([grade.score for grade in grades]).view(-1, size)
        valid = torch.tensor([self._grading.counts(grade) for grade in grades]).view_as(rewards)
        advantages, zero_signal = group_advantages(rewards, valid, self._method.advantage)
        rollouts = batch.rollouts
        lengths, entropies = rollouts.lengths_B.tolist(), rollouts.entropy_B.tolist()
        end_ids = torch.tensor(self._policy.end_ids, device=rollouts.tokens_BG.device)
        ended = torch.isin(rollouts.tokens_BG, end_ids).any(-1).tolist()
        groups = {}
        for index, (slot, row) in enumerate(picked.items()):
            part = slice(index * size, (index + 1) * size)
            record = GroupRecord(
                slot,
                row,
                list(grades[part]),
                lengths[part],
                entropies[part],
                ended[part],
                not bool(zero_signal[index]),
                batch.texts[part.start],
            )
            groups[slot] = Group(
                record, batch.rows[index].prompt_ids, batch.responses[part], advantages[index].tolist()
            )
        return groups


def further_rows(seed: int, n_rows: int, batch_size: int, step: int, round_: int) -> list[int]:
    """The `batch_size` row numbers that round `round_` (from 1) of a step may use: a function of its arguments alone.

    One shuffled order a step, without the step's own prompts while there are others; the rounds read it one after the
    other, from the start again when it ends.
    """
    first = set(batch_indices(seed, n_rows, batch_size, step))
    order = uniform(stream_keys(seed, Purpose.DATA_ORDER, step), n_rows).argsort().tolist()
    others = [row for row in order if row not in first] or order
    start = (round_ - 1) * batch_size
    return [others[position % len(others)] for position in range(start, start + batch_size)]
