"""Countdown: an expression that uses each given number exactly once and equals the target (the rule of d1).

`+ - * /`, signs and parentheses only, own parser with caps on length and depth, exact rational arithmetic, and nothing
is evaluated before the numbers used are known to be the given ones; `99**98**97` is a parse error. The answer is
looked for in the last `<answer>` tag, else the last `\\boxed{}`, else the whole text; there, the last expression that
uses the given numbers counts, and what a model claims after `=` does not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from bgpo.rewards.extract import answer_text, boxed
from bgpo.rewards.grade import Grade, GradeFault, Grader, Sample, rendered
from bgpo.rewards.spec import CountdownSpec
from bgpo.rewards.templates import parse_template

MAX_LENGTH = 256
MAX_DEPTH = 32
MAX_NUMBERS = 16

_LATEX = (
    (r"\times", "*"),
    (r"\cdot", "*"),
    (r"\ast", "*"),
    (r"\*", "*"),
    (r"\div", "/"),
    (r"\left", ""),
    (r"\right", ""),
)
_MARKUP = re.compile(r"\\[,;:!()\[\]]")
_SYMBOLS = str.maketrans("\u00d7\u00b7\u22c5\u2217\u2715\u00f7\u2215\u2212\u2013\u2010\u2011[]$", "*****//----() ")
_BRACES = str.maketrans("{}", "()")
_TIMES = re.compile(r"(?<=[0-9)])([ \t]*)[xX](?=[ \t]*[0-9(])")
_BOLD = re.compile(r"(?<![\w)*])\*\*(?=\S)((?:[^*\n]|\*(?!\*)){1,256}?)(?<=\S)\*\*(?![\w(*])")
_FRACTION = re.compile(r"\\d?frac\{([^{}]*)\}\{([^{}]*)\}")
# The characters of wrong arithmetic (^ % . ! **) are in the run too, so that it fails as a whole: in "2^3+5" the
# answer is not "3+5". A letter that touches a run ("sqrt(9)+3") spoils it for the same reason.
_RUN = re.compile(r"[-+*/().^%!0-9 \t]+")
_BULLET = re.compile(r"^[ \t]*(?:[-*]|[0-9]{1,2}[.)])[ \t]+", re.MULTILINE)
_TOKEN = re.compile(r"\s*([0-9]+|[-+*/()])")
_NUMBER = re.compile(r"[0-9]+")
_ITEM_NUMBERS = re.compile(r"[\[(]?\s*([0-9]{1,9}(?:[\s,]+[0-9]{1,9})*)\s*[\])]?")
_ITEM_TARGET = re.compile(r"\s*(-?[0-9]{1,12})\s*")


class ExpressionError(ValueError):
    """Not an arithmetic expression of the allowed kind, or without a value."""


class CountdownGrader(Grader):
    """Compiled `countdown`. Metric `valid_expression`: the numbers are used right, whatever the value."""

    metric_names = ("solved", "valid_expression")

    def __init__(self, spec: CountdownSpec) -> None:
        self.name, self.type = spec.name, spec.type
        self._numbers = parse_template(spec.numbers)
        self._target = parse_template(spec.target)
        self._input = parse_template(spec.input)

    def _grade(self, sample: Sample, item: Mapping[str, Any]) -> Grade:
        numbers = _item_numbers(rendered(self._numbers, sample, item))
        target = _item_target(rendered(self._target, sample, item))
        value = last_value(rendered(self._input, sample, item), numbers)
        solved = value == target
        metrics = {"solved": float(solved), "valid_expression": float(value is not None)}
        return Grade(float(solved), solved=solved, metrics=metrics)


def _item_numbers(text: str) -> list[int]:
    match = _ITEM_NUMBERS.fullmatch(text.strip())
    numbers = [int(number) for number in _NUMBER.findall(match[1])] if match else []
    if not 2 <= len(numbers) <= MAX_NUMBERS:
        raise GradeFault(f"numbers must be 2 to {MAX_NUMBERS} non-negative integers, got {text[:80]!r}")
    return numbers


def _item_target(text: str) -> int:
    match = _ITEM_TARGET.fullmatch(text)
    if match is None:
        raise GradeFault(f"target must be an integer, got {text[:80]!r}")
    return int(match[1])


def last_value(text: str, numbers: list[int]) -> Fraction | None:
    """The value of the last expression in a completion that uses exactly these numbers; None without one."""
    text = answer_text(text)
    text = boxed(text) or text
    wanted = sorted(numbers)
    for candidate in reversed(_candidates(_plain(text))):
        if len(candidate) > MAX_LENGTH:
            continue
        if sorted(map(int, _NUMBER.findall(candidate))) != wanted:
            continue
        try:
            return evaluate(candidate)
        except ExpressionError:
            continue
    return None


def _plain(text: str) -> str:
    """LaTeX, Markdown and typographic arithmetic as plain characters."""
    if "\\" not in text:
        text = text.translate(_BRACES)
    else:
        for command, symbol in _LATEX:
            text = text.replace(command, symbol)
        text = _MARKUP.sub(" ", text)
        for _ in range(4):  # nested fractions, innermost first
            text = _FRACTION.sub(r"((\1)/(\2))", text)
    return _TIMES.sub(r"\1*", _BOLD.sub(r" \1 ", text.translate(_SYMBOLS)))


def _candidates(text: str) -> list[str]:
    """Every stretch of arithmetic in a text, in order, without list markers."""
    text = _BULLET.sub("", text)
    found = []
    for run in _RUN.finditer(text):
        before, after = text[max(run.start() - 1, 0) : run.start()], text[run.end() : run.end() + 1]
        touches_word = (before.isalpha() and not run[0][0].isspace()) or (after.isalpha() and not run[0][-1].isspace())
        if not touches_word:
            found.append(run[0].strip().rstrip("."))
    return found


def evaluate(text: str) -> Fraction:
    """The exact value of an arithmetic expression. Raises ExpressionError."""
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"expression has {len(text)} characters, more than {MAX_LENGTH}")
    tokens = []
    position, end = 0, len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None:
            raise ExpressionError(f"unexpected {text[position]!r} at character {position}")
        tokens.append(match[1])
        position = match.end()
    return _Parser(tokens).parse()


class _Parser:
    """Recursive descent over tokens, computing as it goes; depth is capped, so Python's stack is safe."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = [*tokens, ""]
        self._index = 0
        self._depth = 0

    def parse(self) -> Fraction:
        value = self._sum()
        if self._tokens[self._index]:
            raise ExpressionError(f"unexpected {self._tokens[self._index]!r}")
        return value

    def _next(self) -> str:
        token = self._tokens[self._index]
        self._index += 1
        return token

    def _sum(self) -> Fraction:
        value = self._product()
        while self._tokens[self._index] in ("+", "-"):
            value = value + self._product() if self._next() == "+" else value - self._product()
        return value

    def _product(self) -> Fraction:
        value = self._signed()
        while self._tokens[self._index] in ("*", "/"):
            if self._next() == "*":
                value *= self._signed()
            elif divisor := self._signed():
                value /= divisor
            else:
                raise ExpressionError("division by zero")
        return value

    def _signed(self) -> Fraction:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ExpressionError(f"nested deeper than {MAX_DEPTH}")
        symbol = self._next()
        if symbol in ("+", "-"):
            value = self._signed()
            value = -value if symbol == "-" else value
        elif symbol == "(":
            value = self._sum()
            if self._next() != ")":
                raise ExpressionError("unclosed parenthesis")
        elif symbol.isdigit():
            value = Fraction(int(symbol))
        else:
            raise ExpressionError(f"unexpected {symbol!r}" if symbol else "unexpected end")
        self._depth -= 1
        return value
