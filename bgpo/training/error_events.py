"""What the user hears of grading errors: a few log records a step, and none twice without saying how often.

An error is the same as another when grader, kind and message are. It is told when it is new; after that it is counted,
and told again with the count when REPEAT steps have passed since. Of the new ones a step tells the MOST frequent, so
that messages which quote the sample do not flood the log; the others wait for the next step they occur in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bgpo.records import Split
from bgpo.rewards import Grade, GradeErrorInfo
from bgpo.training.grade_metrics import errors_of
from bgpo.training.reporter import Reporter

MOST = 3
"""Log records a step."""
REPEAT = 10
"""Steps before an error is told again."""
_REMEMBERED = 256

_Key = tuple[str, str, str]


@dataclass
class _Told:
    """An error that the user has heard of."""

    step: int
    """When."""
    since: int = 0
    """How often it has occurred since."""


@dataclass
class _Found:
    error: GradeErrorInfo
    row: int
    """Of the first sample."""
    count: int = 0


class ErrorEvents:
    """Remembers what was told. Nothing of it is part of a checkpoint: a resumed run tells again."""

    def __init__(self, grader: str, reporter: Reporter) -> None:
        """`grader`: name of the one that gives the grades."""
        self._grader, self._reporter = grader, reporter
        self._told: dict[_Key, _Told] = {}

    def report(self, step: int, grades: Sequence[Grade], rows: Sequence[int], split: Split) -> None:
        """Tell of the errors of a step, or of an evaluation at it.

        Args:
            rows: number in the split's file of the row that each grade is about.
        """
        due = []
        for key, found in self._found(grades, rows).items():
            told = self._told.get(key)
            if told is not None:
                told.since += found.count
            if told is None or step - told.step >= REPEAT:
                due.append((key, found))
        due.sort(key=lambda pair: -pair[1].count)  # stable: ties as they occurred
        for key, found in due[:MOST]:
            self._tell(step, key, found, len(grades), split)

    def _tell(self, step: int, key: _Key, found: _Found, samples: int, split: Split) -> None:
        grader, kind, message = key
        told = self._told.pop(key, None)
        if told is None:
            count, often = found.count, f"on {found.count} of {samples} samples"
        else:
            count, often = told.since, f"{told.since} more times since step {told.step}"
        self._told[key] = _Told(step)
        while len(self._told) > _REMEMBERED:
            del self._told[next(iter(self._told))]
        where = f"step {step}" if split == "train" else f"evaluation at step {step}"
        data = {"grader": grader, "kind": kind, "step": step, "split": split, "count": count}
        self._reporter.log(
            "warn",
            f"{where}: grader {grader!r} failed {often}, now on row {found.row}: {kind}: {message}",
            data | {"row": found.row, "message": message, "traceback": found.error.details},
        )

    def _found(self, grades: Sequence[Grade], rows: Sequence[int]) -> dict[_Key, _Found]:
        """The errors by what makes them the same, with how often they occurred."""
        found: dict[_Key, _Found] = {}
        for grade, row in zip(grades, rows, strict=True):
            for name, error in errors_of(grade, self._grader):
                found.setdefault((name, error.kind, error.message), _Found(error, row)).count += 1
        return found
