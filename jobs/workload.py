"""How much a job has to compute, from its recipe: steps, tokens, passes through the network. Pure functions.

A pass is one token that goes through the network once; training one costs three, since the backward pass is twice the
forward one. Bookkeeping, loading and checkpoints are left out: rates of finished attempts hold them, formulas do not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bgpo.spec import Dpo, Recipe, Reinforcement, RolloutSpec
from jobs.footprint import Range

_TRAINED = 3


@dataclass(frozen=True)
class Work:
    """What a job comes to; ranges, because early stopping and dynamic sampling depend on what is learned."""

    steps: Range
    evaluations: Range
    graded_answers: Range
    generated_tokens: Range
    """At most that many: answers may end early, and their canvas is computed all the same."""
    trained_tokens: Range
    """Of prompts and answers that were trained on, once each."""
    passes: Range


def work_of(recipe: Recipe, prompt_tokens: Range, validation_rows: int | None) -> Work:
    """The work of a whole job."""
    method = recipe.method
    steps = Range(_fewest_steps(recipe), method.max_steps)
    evaluations = _evaluations(recipe, steps, validation_rows)
    rows = min(recipe.evaluation.samples or (validation_rows or 0), validation_rows or 0)
    answers = rows * recipe.evaluation.answers if method.rollout is not None else 0
    rounds = Range(1, 1)
    sampled = trained = 0
    if isinstance(method, Reinforcement):
        sampled = trained = method.batch_size * method.group_size
        rounds = Range(1, 1 + method.dynamic_sampling_rounds)
    else:
        trained = method.batch_size * (2 if isinstance(method, Dpo) else 1)
    graded = _add(_scale(_times(steps, rounds), sampled), _scale(evaluations, answers))
    length = _answer_tokens(recipe)
    whole = Range(prompt_tokens.low + length, prompt_tokens.high + length)
    return Work(
        steps=steps,
        evaluations=evaluations,
        graded_answers=graded,
        generated_tokens=_scale(graded, length),
        trained_tokens=_scale(_times(steps, whole), trained),
        passes=_add(
            _scale(_times(steps, whole), trained * _passes_of_training(recipe)),
            _scale(_times(graded, whole), _denoising_steps(method.rollout)),
        ),
    )


def passes_of_step(recipe: Recipe, prompt_tokens: float) -> float:
    """Passes of one step, evaluations left out."""
    method = recipe.method
    whole = prompt_tokens + _answer_tokens(recipe)
    if isinstance(method, Reinforcement):
        each = _passes_of_training(recipe) + _denoising_steps(method.rollout)
        return method.batch_size * method.group_size * whole * each
    return method.batch_size * (2 if isinstance(method, Dpo) else 1) * whole * _passes_of_training(recipe)


def _passes_of_training(recipe: Recipe) -> int:
    """Of each token of a sequence that is trained on in one step."""
    method = recipe.method
    if isinstance(method, Reinforcement):
        scored = (method.num_inner_updates > 1) + (method.kl_coefficient > 0)
        return method.mc_samples * (_TRAINED + scored)
    if isinstance(method, Dpo):
        return method.mc_samples * (_TRAINED + 1)  # and the policy it began with
    return _TRAINED


def _denoising_steps(rollout: RolloutSpec | None) -> int:
    return 0 if rollout is None else rollout.diffusion_steps


def _answer_tokens(recipe: Recipe) -> int:
    method = recipe.method
    return method.rollout.max_completion_length if isinstance(method, Reinforcement) else method.max_completion_length


def _fewest_steps(recipe: Recipe) -> int:
    stopping, interval = recipe.early_stopping, recipe.evaluation.interval
    if stopping is None or interval is None:
        return recipe.method.max_steps
    # The evaluation before the first step may be the best there ever is.
    return min(recipe.method.max_steps, interval * (stopping.warmup_evals + stopping.patience))


def _evaluations(recipe: Recipe, steps: Range, validation_rows: int | None) -> Range:
    """Before the first step if asked for, each interval, and after the last."""
    if not validation_rows:
        return Range(0, 0)
    interval, first = recipe.evaluation.interval, int(recipe.evaluation.at_start)
    bounds = (steps.low, steps.high)
    return Range(*(first + (1 if interval is None else math.ceil(count / interval)) for count in bounds))


def _times(one: Range, other: Range) -> Range:
    return Range(one.low * other.low, one.high * other.high)


def _scale(one: Range, factor: float) -> Range:
    return Range(one.low * factor, one.high * factor)


def _add(one: Range, other: Range) -> Range:
    return Range(one.low + other.low, one.high + other.high)
