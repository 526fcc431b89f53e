"""Evaluation: every validation prompt answered twice, sampled at the training temperature and greedily, and graded.

The same sampler and grader as training. The random streams are named by (seed, row) and not by the step, so two
evaluations of one run differ only by the policy, and a re-evaluation of a checkpoint gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bgpo.diffusion.rng import Purpose, stream_keys
from bgpo.diffusion.sampler import sample
from bgpo.errors import SpecError
from bgpo.models import Policy
from bgpo.rewards import Grade, Grader, Sample, compile_grader, grade_batch
from bgpo.spec import Recipe, RolloutSpec
from bgpo.training.data import Row


def evaluate(policy: Policy, rows: Sequence[Row], recipe: Recipe) -> dict[str, float]:
    """Metrics prefixed `sampled_` and `greedy_`: solved_rate, reward_mean, grader_errors and the grader's own.

    Responses that could not be graded are counted in grader_errors and left out of the means.

    Raises:
        SpecError: the recipe's method has no grader.
    """
    rollout, batch_size = recipe.method.rollout, recipe.evaluation.batch_size
    if recipe.method.grader is None or rollout is None:
        raise SpecError("evaluating answers needs a grader and a rollout", "method.grader")
    grader = compile_grader(recipe.method.grader)
    metrics: dict[str, float] = {}
    for mode, temperature in (("sampled", rollout.temperature), ("greedy", 0.0)):
        grades: list[Grade] = []
        for first in range(0, len(rows), batch_size):
            part = rows[first : first + batch_size]
            keys = stream_keys(recipe.seed, Purpose.EVALUATION, torch.arange(first, first + len(part)))
            with autocast(policy, recipe):
                grades += _answer(policy, part, grader, rollout, keys, temperature)
        metrics |= {f"{mode}_{name}": value for name, value in summarize(grades).items()}
    return metrics


def autocast(policy: Policy, recipe: Recipe) -> torch.autocast:
    """bfloat16 compute over float32 weights, where the recipe asks for it: at RL learning rates bfloat16 weights would
    not move."""
    return torch.autocast(policy.device.type, dtype=torch.bfloat16, enabled=recipe.precision == "bfloat16")


def summarize(grades: Sequence[Grade]) -> dict[str, float]:
    """Means over the responses that were graded."""
    graded = [grade for grade in grades if grade.error is None]
    summary = {"grader_errors": float(len(grades) - len(graded))}
    if graded:
        summary["solved_rate"] = sum(grade.solved for grade in graded) / len(graded)
        summary["reward_mean"] = sum(grade.score for grade in graded) / len(graded)
        for name in sorted({name for grade in graded for name in grade.metrics} - {"solved"}):
            values = [grade.metrics[name] for grade in graded if name in grade.metrics]
            summary[name] = sum(values) / len(values)
    return summary


def _answer(
    policy: Policy,
    rows: Sequence[Row],
    grader: Grader,
    rollout: RolloutSpec,
    keys: torch.Tensor,
    temperature: float,
) -> list[Grade]:
    rollouts = sample(policy, [row.prompt_ids for row in rows], rollout, keys, temperature=temperature)
    texts = [policy.decode(response) for response in rollouts.responses()]
    return grade_batch(grader, [Sample(output_text=text) for text in texts], [row.item for row in rows])
