"""`length`: how far a text is from a band of lengths, a soft target for a reward.

1 within the band, and falling in a straight line to 0 at `margin` units outside of it; without a margin it is 0 there
at once. Words are what white space separates, lines what line ends do, characters are Unicode code points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bgpo.rewards.grade import Grade, Grader, Sample, rendered
from bgpo.rewards.spec import LengthSpec
from bgpo.rewards.templates import parse_template

_UNITS: dict[str, Callable[[str], int]] = {
    "characters": len,
    "words": lambda text: len(text.split()),
    "lines": lambda text: len(text.splitlines()),
}


class LengthGrader(Grader):
    """Compiled `length`. Metric `length` is the length in the specification's unit; solved: within the band."""

    metric_names = ("solved", "length")

    def __init__(self, spec: LengthSpec) -> None:
        self.name, self.type = spec.name, spec.type
        self._input = parse_template(spec.input)
        self._count = _UNITS[spec.unit]
        self._minimum, self._maximum, self._margin = spec.minimum, spec.maximum, spec.margin

    def _grade(self, sample: Sample, item: Mapping[str, Any]) -> Grade:
        length = self._count(rendered(self._input, sample, item))
        score = self._score(length)
        return Grade(score, solved=score == 1.0, metrics={"solved": float(score == 1.0), "length": float(length)})

    def _score(self, length: int) -> float:
        above = 0 if self._maximum is None else length - self._maximum
        outside = max(self._minimum - length, above, 0)
        if outside == 0:
            return 1.0
        return max(0.0, 1.0 - outside / self._margin) if self._margin else 0.0
