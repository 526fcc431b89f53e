"""The metrics of a reinforcement step, from the records of all its groups and of all responses trained on.

Records come from every process and are put in the order of their slots first, so the numbers are the same everywhere
and do not depend on how the work was shared. docs/trainer.md defines each metric.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bgpo.training.grade_metrics import grader_seconds
from bgpo.training.grading import Grading
from bgpo.training.groups import GroupRecord
from bgpo.training.policy_gradient import Accumulated


@dataclass(frozen=True)
class ResponseRecord:
    """One response's part in a mini-batch."""

    slot: int
    row: int
    loss: float
    """-(objective - beta * KL)."""
    elbo: float
    kl: float
    d_mean: float | None
    """Over its samples; None where the rollout policy's terms were not needed."""
    d_max: float | None
    clamped: float
    finite: bool


def response_records(
    accumulated: Accumulated, places: Sequence[tuple[int, int]], kl_coefficient: float, *, d_known: bool
) -> list[ResponseRecord]:
    """Records of accumulated responses.

    Args:
        places: slot and row number of each.
        d_known: False where old terms were not computed although the policy has moved.
    """
    loss = (kl_coefficient * accumulated.kl_R - accumulated.objective_R).tolist()
    elbo, kl = accumulated.elbo_Rn.mean(-1).tolist(), accumulated.kl_R.tolist()
    d_mean, d_max = accumulated.d_Rn.mean(-1).tolist(), accumulated.d_max_Rn.amax(-1).tolist()
    clamped, finite = accumulated.clamped_Rn.mean(-1).tolist(), accumulated.finite_R.tolist()
    return [
        ResponseRecord(
            slot,
            row,
            loss[i],
            elbo[i],
            kl[i],
            d_mean[i] if d_known and not math.isnan(d_mean[i]) else None,
            d_max[i] if d_known and not math.isnan(d_max[i]) else None,
            clamped[i],
            finite[i],
        )
        for i, (slot, row) in enumerate(places)
    ]


def rollout_metrics(groups: Sequence[GroupRecord], grading: Grading, seconds: float) -> dict[str, float]:
    """What was sampled and how it was graded.

    Args:
        groups: all groups of the step, also those that dynamic sampling dropped.
        grading: what graded them.
        seconds: time spent on rollouts.
    """
    grades = [grade for group in groups for grade in group.grades]
    scores = [grade.score for grade in grades if grading.counts(grade)]
    lengths = [length for group in groups for length in group.lengths]
    return (
        grading.summarize(grades)
        | grader_seconds(grades)
        | ({"reward_std": statistics.pstdev(scores)} if scores else {})
        | {
            "frac_zero_signal_groups": statistics.fmean(not group.has_signal for group in groups),
            "response_length": statistics.fmean(lengths),
            "end_token_fraction": statistics.fmean(ended for group in groups for ended in group.ended),
            "entropy": statistics.fmean(entropy for group in groups for entropy in group.entropies),
            "tokens_per_second": sum(lengths) / seconds,
        }
    )


@dataclass(frozen=True)
class Update:
    """One mini-batch that made, or should have made, an optimizer step."""

    records: list[ResponseRecord]
    """Of all processes, in the order of slots."""
    n_responses: int
    norm: float
    """Gradient norm before clipping."""


def update_metrics(updates: Sequence[Update], mini_batches: int, *, kl: bool) -> dict[str, float]:
    """What the policy update did; only counts when no mini-batch had signal."""
    metrics = {"mini_batches_without_signal": float(mini_batches - len(updates))}
    norms = [update.norm for update in updates if math.isfinite(update.norm)]
    if norms:
        metrics["grad_norm"] = max(norms)
    if not updates:
        return metrics
    records = [record for update in updates for record in update.records]
    d_mean = [record.d_mean for record in records if record.d_mean is not None]
    d_max = [record.d_max for record in records if record.d_max is not None]
    metrics |= {
        "loss": statistics.fmean(sum(r.loss for r in update.records) / update.n_responses for update in updates),
        "elbo_mean": statistics.fmean(record.elbo for record in records),
        "clamped_fraction": statistics.fmean(record.clamped for record in records),
    }
    if d_mean:
        metrics |= {"d_mean": statistics.fmean(d_mean), "d_max": max(d_max)}
    if kl:
        metrics["kl"] = statistics.fmean(record.kl for record in records)
    return metrics
