"""One line about a running job, from its metrics: step, reward, solved rate, seconds by phase, time left."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_RECENT = 10
# What a person wants to know, by the trainer's names; the rest of a step is "other".
_PHASES = (("rollout", "seconds_rollout"), ("grading", "seconds_reward"), ("training", "seconds_loss"))
_STEP_PHASES = ("rollout", "grading", "training")
# The loss of a policy gradient tells people nothing.
_VALUES = (("reward_mean", "mean reward {:.2f}"), ("solved_rate", "solved {:.1%}"))
_SUPERVISED_VALUES = (
    ("loss", "loss {:.3f}"),
    ("accuracy", "preferred {:.1%}"),
    ("token_accuracy", "token accuracy {:.1%}"),
)
_SHOWN_FROM_S = 0.05


@dataclass(frozen=True)
class Point:
    """The values of one step, as the metrics endpoint gives them."""

    step: int
    split: str
    values: dict[str, float]


class Progress:
    """Fed with metric values as they come; steps may be repeated after a resume."""

    def __init__(self, total_steps: int, eval_interval: int | None, done: int = 0) -> None:
        """`done` steps were made elsewhere, before any value given here."""
        self._total, self._done = total_steps, done
        self._interval = eval_interval or total_steps
        self._train: dict[int, dict[str, float]] = {}
        self._validation: dict[int, dict[str, float]] = {}

    @property
    def step(self) -> int:
        """The last step that is done."""
        return max(self._train, default=self._done)

    def add(self, points: Iterable[Point]) -> None:
        """Take in values; a step seen before is replaced."""
        for point in points:
            (self._train if point.split == "train" else self._validation)[point.step] = point.values

    def evaluations(self) -> list[tuple[int, dict[str, float]]]:
        """Validation metrics by step, in order."""
        return sorted(self._validation.items())

    def seconds_left(self) -> float | None:
        """An estimate, None before the first step is done."""
        recent = [self._train[step] for step in sorted(self._train)[-_RECENT:]]
        durations = [values["seconds_step"] for values in recent if "seconds_step" in values]
        if not durations:
            return None
        left = self._total - self.step
        done = self.evaluations()
        each = next((v["seconds_evaluate"] for _, v in reversed(done) if "seconds_evaluate" in v), 0.0)
        due = {*range(self._interval, self._total + 1, self._interval), self._total}
        evaluations = sum(step >= self.step and step not in self._validation for step in due)
        seconds: float = left * sum(durations) / len(durations) + evaluations * each
        return seconds

    def line(self, phase: str | None, standing: str | None = None) -> str:
        """The line; `standing` says why nothing moves, if so."""
        train = self._train.get(self.step)
        evaluations = self.evaluations()
        parts = [f"step {self.step}/{self._total}"]
        if standing is not None:
            parts.append(standing)
        elif train is None or phase not in _STEP_PHASES:
            parts.append((phase or ("" if train else "waiting for a worker")).replace("_", " "))
        if train is not None:
            shown = _VALUES if "reward_mean" in train else _SUPERVISED_VALUES
            parts += [form.format(train[name]) for name, form in shown if name in train]
        if train is not None and standing is None:
            parts.append(self._phases(train))
            left = self.seconds_left()
            parts.append(f"{duration(left)} left" if left is not None else "")
        if evaluations and "sampled_solved_rate" in evaluations[-1][1]:
            step, values = evaluations[-1]
            parts.append(f"held-out solved {values['sampled_solved_rate']:.1%} at step {step}")
        return "  ".join(part for part in parts if part)

    def _phases(self, train: dict[str, float]) -> str:
        seconds = {words: train[name] for words, name in _PHASES if name in train}
        if seconds and "seconds_step" in train:
            seconds["other"] = train["seconds_step"] - sum(seconds.values())
        return ", ".join(f"{words} {value:.1f} s" for words, value in seconds.items() if value >= _SHOWN_FROM_S)


def duration(seconds: float) -> str:
    """`75` -> "1 min 15 s"."""
    whole = max(round(seconds), 0)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
