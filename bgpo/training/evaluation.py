"""Evaluation: every validation prompt answered at the training temperature (once or several times) and greedily.

The same sampler and grader as training. The random streams are named by (seed, row, answer) and not by the step, so two
evaluations of one run differ only by the policy, and a re-evaluation of a checkpoint gives the same numbers. The
processes of a run share the work; every one ends with the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bgpo.diffusion.rng import Purpose, stream_keys, substreams
from bgpo.diffusion.sampler import sample
from bgpo.errors import SpecError
from bgpo.models import Policy
from bgpo.rewards import Grade, Grader, Sample, compile_grader
from bgpo.spec import Recipe, RolloutSpec
from bgpo.training.cluster import Cluster
from bgpo.training.data import Row


def evaluate(policy: Policy, rows: Sequence[Row], recipe: Recipe, cluster: Cluster | None = None) -> dict[str, float]:
    """Metrics prefixed `sampled_` and `greedy_`: solved_rate, reward_mean, grader_errors and the grader's own.

    With k = `evaluation.answers` > 1 the sampled means run over all answers, and `sampled_pass_at_k` is the share of
    prompts of which at least one answer is solved. Responses that could not be graded are counted in grader_errors and
    left out of the means.

    Raises:
        SpecError: the recipe's method has no grader.
    """
    cluster = cluster or Cluster()
    rollout, answers = _rollout(recipe), recipe.evaluation.answers
    assert recipe.method.grader is not None
    grader = compile_grader(recipe.method.grader)
    sampled = _grade(policy, rows, answers, grader, rollout, recipe, cluster, rollout.temperature)
    greedy = _grade(policy, rows, 1, grader, rollout, recipe, cluster, 0.0)
    metrics = {f"sampled_{name}": value for name, value in summarize(sampled).items()}
    if answers > 1:
        tried = [[g for g in sampled[i : i + answers] if g.error is None] for i in range(0, len(sampled), answers)]
        graded = [group for group in tried if group]
        if graded:
            metrics["sampled_pass_at_k"] = sum(any(g.solved for g in group) for group in graded) / len(graded)
    return metrics | {f"greedy_{name}": value for name, value in summarize(greedy).items()}


def decode_settings(policy: Policy, recipe: Recipe, n_rows: int) -> dict[str, Any]:
    """How `evaluate` decodes, to be stored beside its numbers.

    Raises:
        SpecError: the recipe's method has no grader.
    """
    rollout = _rollout(recipe)
    remasking = rollout.remasking or ("low_confidence" if rollout.threshold is not None else policy.remasking)
    return rollout.model_dump(mode="json") | {
        "remasking": remasking,
        "precision": recipe.precision,
        "seed": recipe.seed,
        "rows": n_rows,
        "answers": recipe.evaluation.answers,
    }


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


def answer_keys(seed: int, slots: Sequence[int], answers: int) -> Tensor:
    """Stream keys of the answers numbered row * answers + answer."""
    slot = torch.tensor(slots, dtype=torch.int64)
    row, answer = slot // answers, slot % answers
    keys = stream_keys(seed, Purpose.EVALUATION, row)
    # The first answer's stream is the row's own. The others' names are negative: the sampler's own parts are not.
    return torch.where(answer == 0, keys, substreams(keys, -answer))


def _rollout(recipe: Recipe) -> RolloutSpec:
    if recipe.method.grader is None or recipe.method.rollout is None:
        raise SpecError("evaluating answers needs a grader and a rollout", "method.grader")
    return recipe.method.rollout


def _grade(
    policy: Policy,
    rows: Sequence[Row],
    answers: int,
    grader: Grader,
    rollout: RolloutSpec,
    recipe: Recipe,
    cluster: Cluster,
    temperature: float,
) -> list[Grade]:
    """Grades of `answers` responses to each row, in order, on every process."""
    mine = cluster.share(range(len(rows) * answers))
    found: list[tuple[int, Grade]] = []
    for first in range(0, len(mine), recipe.evaluation.batch_size):
        slots = mine[first : first + recipe.evaluation.batch_size]
        part = [rows[slot // answers] for slot in slots]
        keys = answer_keys(recipe.seed, slots, answers)
        with autocast(policy, recipe):
            rollouts = sample(policy, [row.prompt_ids for row in part], rollout, keys, temperature=temperature)
        texts = [policy.decode(response) for response in rollouts.responses()]
        graded = grader.grade_all([Sample(output_text=text) for text in texts], [row.item for row in part])
        found += zip(slots, graded, strict=True)
    return [grade for _, grade in sorted(cluster.gather(found), key=lambda pair: pair[0])]
