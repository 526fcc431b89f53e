"""Reading what somebody else answered: JSON and numbers that are exactly that."""

from __future__ import annotations

import json
import math
from typing import Any

_KINDS = {bool: "a boolean", str: "a text", list: "a list", dict: "an object", type(None): "null"}


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; NaN and Infinity become floats, for `finite_number` to refuse.

    Raises:
        ValueError: it is none, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def finite_number(value: Any) -> float:
    """A JSON number as a float.

    Raises:
        ValueError: it is no number (a boolean and a text are none), or not a finite one.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"it is {_KINDS.get(type(value), 'something else')}, not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError("it is not a finite number")
    return number
