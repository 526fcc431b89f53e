"""Reads JSON bodies strictly: what two programs could read in two ways is refused, and so is what breaks a reader.

Python's reader takes NaN and Infinity, which are not JSON, lets the last of equal keys win, where others take the first
(so that what a filter in front of us has seen is not what we run), and turns 1e999 into infinity. A number with
thousands of digits, a nesting thousands deep and text that is not UTF-8 must end with status 400, not 500.

A body with another content type is refused with 415 and not guessed at. That keeps web pages out, too: a page may send
text/plain to any site without asking it first, and JSON not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from jobs.errors import BadBody, UnsupportedMedia

MAX_DEPTH = 64
_Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class JsonRoute(APIRoute):
    """A route whose JSON body is read by `parse`. Every router with bodies has this class."""

    def get_route_handler(self) -> _Handler:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def strict(request: Request) -> Response:
            body = await request.body()
            if body:
                _require_json(request)
                request._json = parse(body)  # where Starlette keeps what it has read
            return await handle(request)

        return strict


def parse(body: bytes) -> Any:
    """The value of a JSON text. Raises BadBody."""
    try:
        value = json.loads(
            body.decode(), object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_float, parse_int=_int
        )
    except UnicodeDecodeError as error:
        raise BadBody(f"The body is not UTF-8: byte {error.start} cannot be read.") from error
    except json.JSONDecodeError as error:
        raise BadBody(f"The body is not valid JSON: {error}.") from error
    except RecursionError as error:
        raise _too_deep() from error
    _require_shallow(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise BadBody(f"The body has the key {twice!r} twice in one object.", twice, "duplicate_key")
    return found


def _no_constant(name: str) -> float:
    raise BadBody(f"The body is not valid JSON: {name} is no number of JSON.")


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise BadBody(f"The body has a number that is too large: {_cut(text)}")
    return number


def _int(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:  # Python reads some thousand digits: more take time that grows with their square
        raise BadBody(f"The body has a number that is too large: {_cut(text)}") from error


def _require_shallow(value: Any) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH + 1):
        inner = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level = [each for values in inner for each in values]
    if level:
        raise _too_deep()


def _too_deep() -> BadBody:
    return BadBody(f"The body is nested more than {MAX_DEPTH} levels deep.")


def _require_json(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise UnsupportedMedia("Send the body as application/json.")
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise UnsupportedMedia(f"Content-Encoding {encoding} is not accepted: send the body as it is.")


def _cut(text: str) -> str:
    return text if len(text) <= 32 else f"{text[:32]}..."
