"""What a job computes, counted step by step instead of by formula."""

from __future__ import annotations

from typing import Any

import pytest

from bgpo.spec import Recipe
from jobs.footprint import Range
from jobs.workload import passes_of_step, work_of

GRADER = {
    "type": "string_check",
    "name": "g",
    "input": "{{ sample.output_text }}",
    "reference": "a",
    "operation": "eq",
}
ROLLOUT = {"max_completion_length": 8, "block_length": 4, "diffusion_steps": 4}
RL = {"type": "reinforcement", "grader": GRADER, "rollout": ROLLOUT}
SIZES = {"batch_size": 4, "group_size": 2, "mc_samples": 3, "max_steps": 10}


def recipe(method: dict[str, Any], **more: Any) -> Recipe:
    return Recipe.model_validate({"method": method, **more})


def count(recipe_: Recipe, prompt: int, rows: int) -> dict[str, float]:
    """The work of a job that runs to its end, one answer at a time."""
    method: Any = recipe_.method
    seen = dict.fromkeys(("generated", "trained", "passes", "graded"), 0.0)
    rl = method.type == "reinforcement"
    length = method.rollout.max_completion_length if rl else method.max_completion_length
    whole = prompt + length

    def sample() -> None:
        seen["graded"] += 1
        seen["generated"] += length
        for _ in range(method.rollout.diffusion_steps):
            seen["passes"] += whole

    def evaluate() -> None:
        for _ in range(min(recipe_.evaluation.samples or rows, rows)):
            for _ in range(recipe_.evaluation.answers if method.rollout else 0):
                sample()

    if rows and recipe_.evaluation.at_start:
        evaluate()
    for step in range(1, method.max_steps + 1):
        for _ in range(method.batch_size):
            for _ in range(method.group_size if rl else 2 if method.type == "dpo" else 1):
                if rl:
                    sample()
                seen["trained"] += whole
                for _ in range(getattr(method, "mc_samples", 1)):
                    seen["passes"] += 3 * whole  # forward, and backward at twice its cost
                    if method.type == "dpo":
                        seen["passes"] += whole
                    if rl and method.kl_coefficient:
                        seen["passes"] += whole
                    if rl and method.num_inner_updates > 1:
                        seen["passes"] += whole
        interval = recipe_.evaluation.interval
        if rows and (step == method.max_steps or (interval and step % interval == 0)):
            evaluate()
    return seen


@pytest.mark.parametrize(
    ("method", "more", "rows"),
    [
        (RL | SIZES, {}, 0),
        (RL | SIZES | {"num_inner_updates": 2, "kl_coefficient": 0.1}, {"evaluation": {"interval": 3}}, 5),
        (RL | SIZES, {"evaluation": {"interval": 5, "samples": 2, "answers": 4}}, 5),
        (RL | SIZES, {"evaluation": {"interval": 5, "at_start": False}}, 5),
        ({"type": "supervised", "batch_size": 4, "max_steps": 7, "max_completion_length": 6}, {}, 5),
        ({"type": "dpo", "batch_size": 2, "mc_samples": 3, "max_steps": 7, "max_completion_length": 6}, {}, 0),
        ({"type": "supervised", "max_steps": 4, "grader": GRADER, "rollout": ROLLOUT | {"max_completion_length": 4}}
         | {"max_completion_length": 4}, {}, 3),
    ],
)  # fmt: skip
def test_it_is_the_sum_of_its_steps(method: dict[str, Any], more: dict[str, Any], rows: int) -> None:
    chosen = recipe(method, **more)
    expected = count(chosen, 12, rows)
    work = work_of(chosen, Range(12, 12), rows or None)
    assert work.steps == Range(chosen.method.max_steps, chosen.method.max_steps)
    assert work.generated_tokens == Range(expected["generated"], expected["generated"])
    assert work.trained_tokens == Range(expected["trained"], expected["trained"])
    assert work.passes == Range(expected["passes"], expected["passes"])
    assert work.graded_answers == Range(expected["graded"], expected["graded"])
    if not rows:
        assert passes_of_step(chosen, 12) * chosen.method.max_steps == expected["passes"]


def test_what_depends_on_learning_is_a_range() -> None:
    rounds = work_of(recipe(RL | SIZES | {"dynamic_sampling_rounds": 3}), Range(1, 2), None)
    assert rounds.graded_answers == Range(80, 320)
    assert rounds.trained_tokens == Range(80 * 9, 320 * 10 / 4)
    stopping = {"evaluation": {"interval": 2}, "early_stopping": {"patience": 2, "warmup_evals": 1}}
    assert work_of(recipe(RL | SIZES, **stopping), Range(1, 1), 5).steps == Range(6, 10)
    assert work_of(recipe(RL | SIZES, **stopping), Range(1, 1), 5).evaluations == Range(4, 6)
