"""Arithmetic formulas over named scores: the `calculate_output` of a multi grader.

`+ - * / ^`, parentheses, `min max abs floor ceil exp sqrt log` (natural), float arithmetic throughout. A formula comes
from a user, so it has its own tokenizer and parser with caps on length, depth and exponent, is compiled once to
postfix code, and runs on a stack without recursion. `^` binds tighter than a sign and to the right, as in Python.
Not covered: comparison, conditionals, variables other than the given names.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

MAX_LENGTH = 2_000
MAX_DEPTH = 50
MAX_EXPONENT = 64.0

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?)|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<symbol>[-+*/^(),]))"
)
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class FormulaError(ValueError):
    """A formula does not parse, or has no finite value for these scores."""


def _power(base: float, exponent: float) -> float:
    if abs(exponent) > MAX_EXPONENT:
        raise FormulaError(f"exponent {exponent:g} is larger than {MAX_EXPONENT:g}")
    return math.pow(base, exponent)


_BINARY: dict[str, Callable[..., float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "^": _power,
}
_UNARY_FUNCTIONS: dict[str, Callable[..., float]] = {
    "abs": abs,
    "floor": lambda x: float(math.floor(x)),
    "ceil": lambda x: float(math.ceil(x)),
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}
_VARIADIC_FUNCTIONS: dict[str, Callable[..., float]] = {
    "min": lambda *values: min(values),
    "max": lambda *values: max(values),
}
FUNCTIONS = frozenset(_UNARY_FUNCTIONS | _VARIADIC_FUNCTIONS)


@dataclass(frozen=True, slots=True)
class _Apply:
    symbol: str
    function: Callable[..., float]
    arity: int


_Code = float | str | _Apply
"""One postfix instruction: push a number, push the score of that name, or apply a function to the stack's top."""


@dataclass(frozen=True, slots=True)
class Formula:
    """A compiled formula; `names` are the scores it reads."""

    text: str
    names: frozenset[str]
    code: tuple[_Code, ...]

    def evaluate(self, scores: Mapping[str, float]) -> float:
        """The value for these scores, always finite. Raises FormulaError."""
        stack: list[float] = []
        for step in self.code:
            if isinstance(step, float):
                stack.append(step)
            elif isinstance(step, str):
                stack.append(float(scores[step]))
            else:
                arguments = stack[-step.arity :]
                del stack[-step.arity :]
                stack.append(_call(step, arguments))
        return stack[0]


def _call(step: _Apply, arguments: list[float]) -> float:
    try:
        value = step.function(*arguments)
    except FormulaError:
        raise
    except (ArithmeticError, ValueError) as error:  # division by zero, overflow, sqrt(-1), log(0)
        raise FormulaError(f"'{step.symbol}' of {_listing(arguments)}: {error}") from error
    if not math.isfinite(value):
        raise FormulaError(f"'{step.symbol}' of {_listing(arguments)} is not finite")
    return value


def _listing(arguments: list[float]) -> str:
    return ", ".join(f"{argument:g}" for argument in arguments)


def is_name(text: str) -> bool:
    """Whether `text` can name a score in a formula."""
    return _IDENTIFIER.fullmatch(text) is not None and text not in FUNCTIONS


def compile_formula(text: str, names: Collection[str]) -> Formula:
    """Compile a formula over these names.

    Raises:
        FormulaError: saying what is wrong and at which character.
    """
    if len(text) > MAX_LENGTH:
        raise FormulaError(f"formula has {len(text)} characters, more than {MAX_LENGTH}")
    code = _Parser(_tokenize(text), frozenset(names)).parse()
    return Formula(text, frozenset(step for step in code if isinstance(step, str)), tuple(code))


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    position: int


def _tokenize(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    position, end = 0, len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None or match.lastgroup is None:
            raise FormulaError(f"formula: unexpected {text[position:].lstrip()[0]!r} at character {position}")
        kind = match.lastgroup
        tokens.append(_Token(match[kind] if kind == "symbol" else kind, match[kind], match.start(kind)))
        position = match.end()
    tokens.append(_Token("end", "end of the formula", end))
    return tokens


class _Parser:
    """Recursive descent that emits postfix code; `_depth` counts every nested parse."""

    def __init__(self, tokens: list[_Token], names: frozenset[str]) -> None:
        self._tokens = tokens
        self._names = names
        self._index = 0
        self._depth = 0
        self._code: list[_Code] = []

    def parse(self) -> list[_Code]:
        self._sum()
        self._expect("end")
        return self._code

    def _next(self) -> _Token:
        token = self._tokens[self._index]
        self._index += 1
        return token

    def _peek(self) -> str:
        return self._tokens[self._index].kind

    def _expect(self, kind: str) -> None:
        token = self._next()
        if token.kind != kind:
            raise FormulaError(f"formula: unexpected '{token.text}' at character {token.position}, expected '{kind}'")

    def _binary(self, symbol: str) -> None:
        self._code.append(_Apply(symbol, _BINARY[symbol], 2))

    def _sum(self) -> None:
        self._product()
        while self._peek() in ("+", "-"):
            symbol = self._next().kind
            self._product()
            self._binary(symbol)

    def _product(self) -> None:
        self._signed()
        while self._peek() in ("*", "/"):
            symbol = self._next().kind
            self._signed()
            self._binary(symbol)

    def _signed(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise FormulaError(f"formula is nested deeper than {MAX_DEPTH}")
        if self._peek() in ("+", "-"):
            symbol = self._next().kind
            self._signed()
            if symbol == "-":
                self._code.append(_Apply("-", operator.neg, 1))
        else:
            self._power()
        self._depth -= 1

    def _power(self) -> None:
        self._atom()
        if self._peek() == "^":
            self._next()
            self._signed()
            self._binary("^")

    def _atom(self) -> None:
        token = self._next()
        if token.kind == "number":
            self._number(token)
        elif token.kind == "(":
            self._sum()
            self._expect(")")
        elif token.kind == "name" and token.text in FUNCTIONS:
            self._function(token)
        elif token.kind == "name":
            if token.text not in self._names:
                known = ", ".join(sorted(self._names)) or "none"
                raise FormulaError(f"formula: unknown name '{token.text}' at character {token.position} ({known})")
            self._code.append(token.text)
        else:
            raise FormulaError(f"formula: unexpected '{token.text}' at character {token.position}")

    def _number(self, token: _Token) -> None:
        value = float(token.text)
        if not math.isfinite(value):
            raise FormulaError(f"formula: number '{token.text}' at character {token.position} is too large")
        self._code.append(value)

    def _function(self, token: _Token) -> None:
        self._expect("(")
        self._sum()
        arity = 1
        while self._peek() == "," and token.text in _VARIADIC_FUNCTIONS:
            self._next()
            self._sum()
            arity += 1
        self._expect(")")
        self._code.append(_Apply(token.text, (_UNARY_FUNCTIONS | _VARIADIC_FUNCTIONS)[token.text], arity))
