"""Plain values as JSON: how a program's results and its checker's arguments cross between their processes.

JSON with tags for what it lacks, copied by content: a subclass arrives as the builtin it derives from, without its
methods, so that only plain builtins arrive whatever the program returns. Every other object stays where it is; `encode`
asks what shall stand for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

MAX_LINE = 4 * 2**20
"""Characters of one message of the exchange."""


def encode(value: Any, other: Callable[[Any], Any]) -> Any:
    """JSON for a plain value, subclasses by their content; `other(value)` for an object of any other kind."""
    if value is None or isinstance(value, bool):
        return value
    for plain in (int, float, str):
        if isinstance(value, plain):
            return value if type(value) is plain else plain.__new__(plain, value)  # type: ignore[type-var]  # a subclass
    if isinstance(value, list):
        return [encode(item, other) for item in list.__iter__(value)]
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            items: Iterator[Any] = kind.__iter__(value)  # type: ignore[arg-type]  # of this very kind; mypy loses it
            return {"t": kind.__name__, "v": [encode(item, other) for item in items]}
    if isinstance(value, dict):
        return {"t": "dict", "v": [[encode(k, other), encode(v, other)] for k, v in dict.items(value)]}
    if isinstance(value, bytes | bytearray):
        return {"t": "bytes", "v": bytes(value).hex()}
    if isinstance(value, range):
        return {"t": "range", "v": [value.start, value.stop, value.step]}
    if isinstance(value, complex):
        return {"t": "complex", "v": [value.real, value.imag]}
    return other(value)


def decode(value: Any, remote: Callable[[int], Any]) -> Any:
    """The value of `encode`'s JSON; `remote(id)` for the objects that stayed behind."""
    if isinstance(value, list):
        return [decode(item, remote) for item in value]
    if not isinstance(value, dict):
        return value
    kind, content = value["t"], value["v"]
    if kind == "remote":
        return remote(content)
    if kind == "dict":
        return {decode(k, remote): decode(v, remote) for k, v in content}
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind in ("complex", "range"):
        return {"complex": complex, "range": range}[kind](*content)
    return {"tuple": tuple, "set": set, "frozenset": frozenset}[kind](decode(item, remote) for item in content)
