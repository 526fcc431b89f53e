"""Numbers as people and models write them: thousand separators, decimals, fractions, percent, currency, light LaTeX.

`parse_number` is exact (`Fraction`) and bounded: no exponent or digit string is long enough to cost anything. What it
does not read, from `\\sqrt{2}` to intervals, is left to math-verify.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_LENGTH = 200

_DROPPED = re.compile(r"\\left|\\right|\\[!,;: ]|\\displaystyle|\^\{?\\circ\}?|[°~]")
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_UNIT = re.compile(r"(?<=[0-9.%])(?: (?!(?:pi|ln|log|sin|cos|tan|sqrt|over|or|and|to)\b)[A-Za-z]{2,})+")
_DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,100})(?:\.[0-9]{0,100})?|\.[0-9]{1,100}"
_PLAIN = re.compile(rf"({_DECIMAL})(?:[eE]([-+]?[0-9]{{1,2}}))?")
_RATIO = re.compile(rf"({_DECIMAL}) ?/ ?({_DECIMAL})")
_FRAC = re.compile(rf"\\frac(?:\{{ ?([-+]?)({_DECIMAL}) ?\}}|()([0-9]))(?:\{{ ?({_DECIMAL}) ?\}}| ?([0-9]))")
_MIXED = re.compile(r"([0-9]{1,100}) ?(?: ([0-9]{1,100})/([0-9]{1,100})|\\frac\{([0-9]{1,100})\}\{([0-9]{1,100})\})")


@dataclass(frozen=True, slots=True)
class Number:
    """A number as written; `percent` when a percent sign follows it."""

    value: Fraction
    percent: bool = False

    def equals(self, other: Number) -> bool:
        """Equal in value. A percent sign may be a unit (50% for "how many percent": 50) or hundredths (50% for 0.5)."""
        if self.percent == other.percent or self.value == other.value:
            return self.value == other.value
        return self.value == other.value * 100 if self.percent else self.value * 100 == other.value


def simplify(text: str) -> str:
    """A text without the markup that never changes a value: spacing commands, `$`, `\\left`, variants of `\\frac`."""
    text = text.replace("{,}", ",").replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("\u2212", "-")
    text = _DROPPED.sub("", text.replace("\\%", "%").replace("\\$", "$"))
    return " ".join(text.replace("$", " ").split()).rstrip(".").strip()


def parse_number(text: str) -> Number | None:
    """The number that a whole text is, a unit behind it aside; None when it is anything else."""
    if len(text) > MAX_LENGTH:
        return None
    text = simplify(text)
    unit = _TEXT_COMMAND.search(text)
    if unit is not None and unit.start() > 0 and unit.end() == len(text):
        text = text[: unit.start()].strip()
    unit = _UNIT.search(text)
    if unit is not None and unit.end() == len(text):
        text = text[: unit.start()]
    text = text.strip("\u20ac\u00a3 ")
    percent = text.endswith("%")
    text = text.removesuffix("%").strip()
    negative = text.startswith("-")
    value = _unsigned(text.removeprefix("-").removeprefix("+").strip("\u20ac\u00a3 "))
    return None if value is None else Number(-value if negative else value, percent)


def _unsigned(text: str) -> Fraction | None:
    if match := _PLAIN.fullmatch(text):
        return _fraction(match[1]) * Fraction(10) ** int(match[2] or 0)
    if match := _RATIO.fullmatch(text):
        return _divided(_fraction(match[1]), _fraction(match[2]))
    if match := _FRAC.fullmatch(text):
        value = _divided(_fraction(match[2] or match[4]), _fraction(match[5] or match[6]))
        return -value if value is not None and match[1] == "-" else value
    if match := _MIXED.fullmatch(text):
        part = _divided(_fraction(match[2] or match[4]), _fraction(match[3] or match[5]))
        return None if part is None else _fraction(match[1]) + part
    return None


def _fraction(text: str) -> Fraction:
    return Fraction(text.replace(",", "").rstrip("."))


def _divided(numerator: Fraction, denominator: Fraction) -> Fraction | None:
    return numerator / denominator if denominator else None


def plain_words(text: str) -> str:
    """A text answer to compare letter by letter: no text commands, spaces, case or parentheses around one letter."""
    text = _TEXT_COMMAND.sub(r"\1", simplify(text))
    text = "".join(text.split()).casefold()
    return text[1:-1] if len(text) == 3 and text[0] == "(" and text[2] == ")" else text
