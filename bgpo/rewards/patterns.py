"""Regular expressions that users write, matched within limits on time and memory.

Python's `re` cannot be stopped and backtracks without end on `(a+)+b`; PyPI's `regex` takes a time limit. What no time
limit covers is refused when a pattern is compiled: fixed repeats are unrolled then (`((a{1000}){1000}){1000}` takes all
memory), and patterns that call themselves grow a stack of gigabytes within that time. The time is processor time of
this process, checked now and then: a limit of 0.5 s may take a second.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import regex

MAX_PATTERN = 4_096
MAX_UNROLLED = 250_000
"""Elements of a pattern after unrolling; so many take about 100 MB for a moment."""
MATCH_SECONDS = 0.5

_REPEAT = re.compile(r"(.?)\{\s*([0-9]+)\s*(?:,\s*[0-9]*\s*)?\}", re.DOTALL)
_CALL = re.compile(r"\(\?(?:R|[+-]?[0-9]|&|P>)")


class PatternTimeout(Exception):
    """A match ran out of time."""


class Pattern:
    """A compiled pattern; `.` also matches line ends if asked for."""

    def __init__(self, text: str, *, dot_all: bool = False) -> None:
        """Compile.

        Raises:
            ValueError: it is no regular expression, or one that is refused.
        """
        self.text = text
        self._compiled = _compile(text, dot_all)

    def matches(self, text: str, *, whole: bool = False, seconds: float = MATCH_SECONDS) -> bool:
        """Whether the pattern is found in a text, or is the whole of it. Raises PatternTimeout."""
        method = self._compiled.fullmatch if whole else self._compiled.search
        try:
            return method(text, timeout=seconds) is not None
        except TimeoutError:
            raise PatternTimeout(f"the pattern took longer than {seconds:g} s") from None


def _compile(text: str, dot_all: bool) -> regex.Pattern[str]:
    import regex  # here: importing bgpo.rewards stays fast

    _check(text)
    try:
        return regex.compile(text, regex.DOTALL if dot_all else 0, cache_pattern=False)
    except regex.error as error:
        raise ValueError(f"not a regular expression: {error}") from error
    except RecursionError:
        raise ValueError("the regular expression is nested too deep") from None


def _check(text: str) -> None:
    if len(text) > MAX_PATTERN:
        raise ValueError(f"the pattern has {len(text)} characters, more than {MAX_PATTERN}")
    if _CALL.search(text):
        raise ValueError("the pattern calls itself or a group, such as (?R) or (?1): that is not allowed")
    if unrolled(text) > MAX_UNROLLED:
        raise ValueError(f"the pattern's repeats, such as {{1000}}, multiply to more than {MAX_UNROLLED} elements")


def unrolled(text: str) -> int:
    """An upper bound of a pattern's elements once its fixed repeats are unrolled.

    A repeat of a single element adds its count. One of what may be a group (anything that does not end like a letter, a
    class or a dot) multiplies everything there is, as if all such groups were nested.
    """
    single, grouped = 0, [1]
    for before, count in _REPEAT.findall(text):
        number = int(count[:12])
        if before.isalnum() or before in ("_", "]", "."):
            single += number
        else:
            grouped.append(max(number, 1))
    return (len(text) + single) * math.prod(grouped)
