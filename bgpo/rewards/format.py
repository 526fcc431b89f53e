"""`format`: whether a text matches a regular expression, or is structured by tags, on as many lines as it likes.

A pattern runs within the limits of `patterns`; one that runs out of time on a sample is an error of that sample. Tags
are exact: `<answer>`, closed by `</answer>`, each once, one behind the other in the order of the specification. They
are looked for one by one, without any pattern, so a text of any length costs little.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bgpo.rewards.grade import Grade, GradeFault, Grader, Sample, rendered
from bgpo.rewards.patterns import Pattern, PatternTimeout
from bgpo.rewards.spec import FormatSpec
from bgpo.rewards.templates import parse_template

MAX_TEXT = 262_144
"""Characters; a longer text matches no pattern."""


class FormatGrader(Grader):
    """Compiled `format`."""

    metric_names = ("solved",)

    def __init__(self, spec: FormatSpec) -> None:
        self.name, self.type = spec.name, spec.type
        self._input = parse_template(spec.input)
        self._pattern = Pattern(spec.pattern, dot_all=True) if spec.pattern is not None else None
        self._whole = spec.match == "full"
        self._tags = tuple(spec.tags or ())
        self._strict = spec.strict
        self._fraction = spec.reward == "fraction"

    def _grade(self, sample: Sample, item: Mapping[str, Any]) -> Grade:
        text = rendered(self._input, sample, item)
        right = self._matches(text) if self._pattern is not None else tags_right(text, self._tags, self._strict)
        solved = right == 1.0
        return Grade(right if self._fraction else float(solved), solved=solved, metrics={"solved": float(solved)})

    def _matches(self, text: str) -> float:
        assert self._pattern is not None
        if len(text) > MAX_TEXT:
            return 0.0
        try:
            return float(self._pattern.matches(text.strip() if self._whole else text, whole=self._whole))
        except PatternTimeout as timeout:
            raise GradeFault(str(timeout)) from timeout


def tags_right(text: str, tags: tuple[str, ...], strict: bool) -> float:
    """The share of tags that are there once, closed, behind the ones before; strict counts stray text as one more.

    Stray text can only be right when every tag is: an empty text has earned nothing.
    """
    end, right, outside = 0, 0, []
    for tag in tags:
        opening, closing = f"<{tag}>", f"</{tag}>"
        if text.count(opening) != 1 or text.count(closing) != 1:
            continue
        start, close = text.index(opening), text.index(closing)
        if end <= start < close:
            right += 1
            outside.append(text[end:start])
            end = close + len(closing)
    if not strict:
        return right / len(tags)
    clean = right == len(tags) and not "".join([*outside, text[end:]]).strip()
    return (right + clean) / (len(tags) + 1)
