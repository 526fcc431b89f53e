"""JSON that a model wrote, read strictly: what two readers could take for different values is not accepted.

Refused beyond the standard library's parser: NaN and infinities, numbers beyond a double's range, keys that repeat in
an object, nesting deeper than MAX_DEPTH and texts longer than MAX_TEXT. The last two also bound the work of whoever
walks the value.
"""

from __future__ import annotations

import json
import math
from typing import Any

MAX_TEXT = 65_536
MAX_DEPTH = 64
_MAX_DIGITS = 320
"""More than any double has before its point, and little enough to convert at once."""


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON, or refused.
    """
    if len(text) > MAX_TEXT:
        raise ValueError(f"the text has {len(text)} characters, more than {MAX_TEXT}")
    try:
        value = json.loads(
            text, parse_constant=_constant, parse_float=_float, parse_int=_int, object_pairs_hook=_unique
        )
    except RecursionError:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH}") from None
    check_depth(value, MAX_DEPTH)
    return value


def check_depth(value: Any, limit: int) -> None:
    """Raise ValueError when containers are nested deeper than a limit; needs no recursion."""
    level = _containers([value])
    for _ in range(limit):
        if not level:
            return
        level = [child for parent in level for child in _containers(parent)]
    if level:
        raise ValueError(f"it is nested deeper than {limit}")


def _containers(parent: dict[str, Any] | list[Any]) -> list[Any]:
    children = parent.values() if isinstance(parent, dict) else parent
    return [child for child in children if isinstance(child, dict | list)]


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is beyond the range of a double")
    return value


def _int(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError("a number is beyond the range of a double")
    _float(text)
    return int(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("an object has a key twice")
    return value
