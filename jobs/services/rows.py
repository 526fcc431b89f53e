"""The first rows of a stored JSONL file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from jobs.context import Context
from jobs.errors import InvalidRequest
from jobs.tables import File


def first_rows(ctx: Context, file: File, count: int) -> list[dict[str, Any]]:
    """At most `count` rows.

    Raises:
        InvalidRequest: a line is no JSON object; `param` is to be given by the caller.
    """
    limit = ctx.settings.max_line_bytes
    lines = _lines(ctx.store.read(file.key, 0, file.bytes), limit)
    return [_parsed(number, line, limit) for number, line in enumerate(islice(lines, count), start=1)]


def _lines(chunks: Iterable[bytes], limit: int) -> Iterator[bytes]:
    """Lines with content; one that is longer than the limit ends the file."""
    waiting = b""
    for chunk in chunks:
        *whole, waiting = (waiting + chunk).split(b"\n")
        yield from (line for line in whole if line.strip())
        if len(waiting) > limit:
            break
    if waiting.strip():
        yield waiting


def _parsed(number: int, line: bytes, limit: int) -> dict[str, Any]:
    if len(line) > limit:
        raise InvalidRequest(f"Line {number} is longer than {limit} bytes.")
    try:
        row = json.loads(line)
        json.dumps(row, ensure_ascii=False, allow_nan=False).encode()  # half a surrogate pair is no character
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"Line {number} is not valid JSON.") from error
    if not isinstance(row, dict):
        raise InvalidRequest(f"Line {number} is not a JSON object.")
    return row
