"""Which evaluation was the best, and for how long none was better."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bgpo.errors import SpecError
from bgpo.spec import Recipe
from bgpo.training.progress import Progress, best_of, patience_of


def watch(values: list[float], metric: str = "sampled_solved_rate", **fields: Any) -> tuple[Progress, list[bool]]:
    progress = Progress(metric, "field", **fields)
    return progress, [progress.observe(step, {metric: value}) for step, value in enumerate(values)]


def test_everything_but_a_loss_gets_better_by_rising() -> None:
    values = [0.5, 0.5, 0.6, 0.4, 0.59]
    progress, better = watch(values)
    assert better == [True, False, True, False, False]
    assert (progress.best, progress.best_step, progress.stale) == (0.6, 2, 2)
    progress, better = watch(values, "loss")
    assert better == [True, False, False, True, False]
    assert (progress.best, progress.best_step, progress.stale) == (0.4, 3, 1)


def test_small_changes_are_no_improvement_and_add_up_only_against_the_best() -> None:
    progress, better = watch([0.0, 0.04, 0.08, 0.12], min_delta=0.1)
    assert better == [True, False, False, True]
    assert progress.stale == 0


def test_evaluations_of_the_warmup_do_not_count() -> None:
    progress, better = watch([0.9, 0.8, 0.1, 0.05], warmup_evals=2)
    assert better == [False, False, True, False]
    assert (progress.best, progress.stale) == (0.1, 1)


def test_what_is_not_a_number_is_no_improvement() -> None:
    progress, better = watch([float("nan"), 0.1, float("inf")])
    assert better == [False, True, False]
    assert progress.stale == 1


def test_a_metric_that_no_evaluation_has_is_named_at_once() -> None:
    with pytest.raises(SpecError, match="only greedy_reward_mean, sampled_grader_errors") as caught:
        Progress("f1", "early_stopping.metric").observe(0, {"greedy_reward_mean": 1, "sampled_grader_errors": 0})
    assert caught.value.param == "early_stopping.metric"
    assert not Progress("f1", "x").observe(0, {"sampled_grader_errors": 8.0}), "nothing could be graded"


def test_the_state_goes_through_a_file() -> None:
    progress, _ = watch([0.5, 0.6, 0.4])
    again = Progress(progress.metric, "field")
    again.restore(json.loads(json.dumps(progress.state())))
    assert again == progress
    other = Progress("loss", "field")
    other.restore(progress.state())
    other.restore(None)
    assert other == Progress("loss", "field")


def test_the_recipe_chooses_the_metric() -> None:
    def recipe(**fields: Any) -> Recipe:
        return Recipe.model_validate({"method": {"type": "supervised"}, "evaluation": {"interval": 1}, **fields})

    assert best_of(recipe()).metric == "loss"
    assert patience_of(recipe()) is None
    stopping = {"patience": 2, "min_delta": 0.1, "warmup_evals": 3}
    watched = patience_of(recipe(early_stopping=stopping, checkpointing={"best_metric": "greedy_solved_rate"}))
    assert watched == Progress("greedy_solved_rate", "checkpointing.best_metric", min_delta=0.1, warmup_evals=3)
    watched = patience_of(recipe(early_stopping={**stopping, "metric": "m"}))
    assert watched is not None
    assert (watched.metric, watched.param) == ("m", "early_stopping.metric")
    rollout = {"max_completion_length": 8, "block_length": 4, "diffusion_steps": 4}
    grader = {"type": "string_check", "name": "g", "input": "a", "reference": "b", "operation": "eq"}
    graded = Recipe.model_validate({"method": {"type": "reinforcement", "grader": grader, "rollout": rollout}})
    assert best_of(graded).metric == "sampled_solved_rate"
