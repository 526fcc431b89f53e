"""The progress line, from metrics as the service gives them."""

from __future__ import annotations

import pytest

from cli.progress import Point, Progress, duration


def train(step: int, **values: float) -> Point:
    return Point(step, "train", {"reward_mean": 0.5, "solved_rate": 0.25, "seconds_step": 2.0, **values})


def test_before_the_first_step_it_says_what_is_waited_for() -> None:
    progress = Progress(10, None)
    assert progress.line("waiting_for_gpu") == "step 0/10  waiting for gpu"
    assert progress.line(None) == "step 0/10  waiting for a worker"


def test_line_of_a_running_job() -> None:
    progress = Progress(20, 10)
    progress.add([Point(0, "validation", {"sampled_solved_rate": 0.125, "seconds_evaluate": 3.0})])
    progress.add([train(1, seconds_rollout=1.0, seconds_reward=0.25, seconds_loss=0.5)])
    assert progress.line("training") == (
        "step 1/20  mean reward 0.50  solved 25.0%  rollout 1.0 s, grading 0.2 s, training 0.5 s, other 0.2 s  "
        "44 s left  held-out solved 12.5% at step 0"
    )


def test_what_is_no_part_of_a_step_is_said_between_steps() -> None:
    progress = Progress(20, 10)
    progress.add([train(1)])
    assert progress.line("retrying").startswith("step 1/20  retrying  mean reward 0.50")
    assert progress.line(None).startswith("step 1/20  mean reward 0.50")


def test_line_of_a_supervised_job() -> None:
    progress = Progress(20, None)
    progress.add([Point(1, "train", {"loss": 1.25, "token_accuracy": 0.5, "seconds_loss": 1.0, "seconds_step": 1.0})])
    assert progress.line("training").startswith("step 1/20  loss 1.250  token accuracy 50.0%  training 1.0 s")


@pytest.mark.parametrize(
    ("done", "total", "interval", "left"),
    [
        (1, 20, 10, 19 * 2 + 2 * 3),  # evaluations at 10 and 20
        (10, 20, 10, 10 * 2 + 2 * 3),  # the one at 10 is under way
        (1, 25, 10, 24 * 2 + 3 * 3),  # the last step is always evaluated
        (1, 20, None, 19 * 2 + 3),
        (20, 20, 10, 3),
    ],
)
def test_time_left_counts_steps_and_evaluations(done: int, total: int, interval: int | None, left: float) -> None:
    progress = Progress(total, interval)
    progress.add([Point(0, "validation", {"seconds_evaluate": 3.0})])
    progress.add([train(step) for step in range(1, done + 1)])
    assert progress.seconds_left() == pytest.approx(left)


def test_nothing_is_left_when_the_last_evaluation_is_in() -> None:
    progress = Progress(2, None)
    progress.add([Point(0, "validation", {"seconds_evaluate": 3.0}), train(1), train(2)])
    assert progress.seconds_left() == pytest.approx(3)
    progress.add([Point(2, "validation", {"seconds_evaluate": 3.0})])
    assert progress.seconds_left() == 0


def test_only_recent_steps_tell_the_pace() -> None:
    progress = Progress(100, None)
    progress.add([train(step, seconds_step=100.0) for step in range(1, 11)])
    progress.add([train(step, seconds_step=1.0) for step in range(11, 21)])
    assert progress.seconds_left() == pytest.approx(80)


def test_a_replayed_step_replaces_what_was_seen() -> None:
    progress = Progress(10, None)
    progress.add([train(5, reward_mean=0.1)])
    progress.add([train(5, reward_mean=0.9)])
    assert "mean reward 0.90" in progress.line("rollout")


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (75, "1 min 15 s"), (7300, "2 h 1 min"), (-3, "0 s")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
