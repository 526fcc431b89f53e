"""A run's grader, and what becomes of the samples that it fails on (`bgpo.spec.GradingSpec`).

`drop`: the sample leaves its group. `zero`: its reward is 0. `fail`: the first error ends the run, also one of an
evaluation. Under the first two the steps of a reinforcement run are watched, evaluations only counted:

- the window is the latest steps, whole, as many as hold WINDOW samples;
- the run ends after a step whose share of errors has reached `max_error_rate` when that of the window has too. The
  window forgives a bad step, the step lets a run go on whose grader has recovered;
- until a window is full only a grader that has failed on each of at least FEWEST samples ends the run. What there is
  after the last step is judged like a full one, so that a short run does not pass for a success.

The window is part of a checkpoint, so a resumed run ends where an undisturbed one does. What is said of errors
(`tell`) is a sample: metrics have all counts. All of it follows from grades that every process has, so the processes of
a run end together, and with the same words.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import torch

from bgpo.errors import GraderError, SpecError
from bgpo.rewards import Grade, GradeErrorInfo, Grader, Resources, compile_grader
from bgpo.rewards.settings import GraderSettings, RewardModel
from bgpo.spec import GradingSpec, Recipe
from bgpo.training.error_events import ErrorEvents
from bgpo.training.grade_metrics import counts, errors_of, summarize
from bgpo.training.reporter import Reporter

WINDOW = 128
FEWEST = 16
_NAMED = 3


class _Step(NamedTuple):
    """What counts of a step, or of several."""

    errors: int
    samples: int


class Grading:
    """A compiled grader and its error policy. One for all of a run; closed at its end."""

    def __init__(self, grader: Grader, spec: GradingSpec, reporter: Reporter | None = None) -> None:
        self.grader, self.on_error = grader, spec.on_error
        self._limit = spec.max_error_rate
        self._events = ErrorEvents(grader.name, reporter) if reporter is not None else None
        self._window: deque[_Step] = deque()

    def counts(self, grade: Grade) -> bool:
        """Whether a sample has a reward."""
        return counts(grade, self.on_error)

    def summarize(self, grades: Sequence[Grade]) -> dict[str, float]:
        """See `bgpo.training.grade_metrics.summarize`."""
        return summarize(grades, self.grader.name, self.on_error)

    def tell(self, step: int, grades: Sequence[Grade], rows: Sequence[int], *, evaluation: bool = False) -> None:
        """Report errors of a step or of an evaluation at it.

        Args:
            rows: number of the row that each grade is about.

        Raises:
            GraderError: there are some, and the first was to end the run.
        """
        if self._events is not None:
            self._events.report(step, grades, rows, "validation" if evaluation else "train")
        failed = [grade for grade in grades if grade.error is not None]
        if failed and self.on_error == "fail":
            of = "evaluation" if evaluation else "step"
            why = f"{len(failed)} of the {len(grades)} samples of the {of} could not be graded (on_error is fail)"
            raise self._error(why, failed)

    def judge(self, grades: Sequence[Grade], *, last: bool) -> None:
        """Take in all grades of a training step.

        Args:
            last: no step follows.

        Raises:
            GraderError: too many errors.
        """
        failed = [grade for grade in grades if grade.error is not None]
        step = _Step(len(failed), len(grades))
        self._window.append(step)
        while sum(each.samples for each in self._window) - self._window[0].samples >= WINDOW:
            self._window.popleft()
        errors, samples = (sum(counts) for counts in zip(*self._window, strict=True))
        if samples >= WINDOW or last:
            over = self._over(step) and self._over(_Step(errors, samples))
        else:
            over = samples >= FEWEST and errors == samples
        if over:
            rate = f"{errors / samples:.0%}, max_error_rate {self._limit:g}"
            of = f"of the last {len(self._window)} steps" if len(self._window) > 1 else "of the step"
            raise self._error(f"{errors} of the {samples} samples {of} could not be graded ({rate})", failed)

    def state(self) -> list[list[int]]:
        """Errors and samples of the steps in the window, for a checkpoint."""
        return [list(step) for step in self._window]

    def restore(self, state: Sequence[Sequence[int]] | None) -> None:
        """Inverse of `state`; None = a checkpoint that has none."""
        self._window = deque(_Step(errors, samples) for errors, samples in state or ())

    def close(self) -> None:
        """Give back what the grader holds."""
        self.grader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _over(self, seen: _Step) -> bool:
        return seen.errors > 0 and seen.errors >= self._limit * seen.samples

    def _error(self, why: str, failed: Sequence[Grade]) -> GraderError:
        """With the latest errors, the most frequent ones first, and the traceback of the first that has one."""
        found: Counter[tuple[str, str]] = Counter()
        first: dict[tuple[str, str], GradeErrorInfo] = {}
        details: dict[tuple[str, str], str] = {}
        for name, error in (pair for grade in failed for pair in errors_of(grade, self.grader.name)):
            found[name, error.kind] += 1
            first.setdefault((name, error.kind), error)
            if error.details is not None:
                details.setdefault((name, error.kind), error.details)
        ranked = [key for key, _ in found.most_common()]
        named = "; ".join(
            f"{key[0]}: {key[1]} on {found[key]} samples, such as: {first[key].message}" for key in ranked[:_NAMED]
        )
        traceback = next((details[key] for key in ranked if key in details), None)
        return GraderError(f"{why}. The latest: {named}", "method.grader", traceback)


def open_grading(
    recipe: Recipe,
    settings: GraderSettings,
    secrets: Mapping[str, str],
    device: torch.device | str,
    reporter: Reporter | None = None,
) -> Grading | None:
    """The grading of a recipe; None without a grader.

    Args:
        secrets: see `bgpo.rewards.settings.Resources`.
        device: where reward models compute.

    Raises:
        SpecError: the grader may not or cannot run here.
    """
    spec = recipe.method.grader
    if spec is None:
        return None

    def load(directory: str) -> RewardModel:
        from bgpo.models.reward_model import load_reward_model  # only runs with such a grader need it

        return load_reward_model(directory, device)

    try:
        grader = compile_grader(spec, Resources(settings, secrets, load))
    except SpecError as error:
        raise SpecError(error.message, f"method.grader.{error.param}" if error.param else "method.grader") from error
    return Grading(grader, recipe.grading, reporter)
