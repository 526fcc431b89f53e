"""A job's metrics as JSON, as JSON lines or as a table of comma-separated values, each written as it is read."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, Literal

from fastapi.responses import StreamingResponse

from jobs.repositories.metrics import Value
from jobs.services.metric_series import Series

Format = Literal["json", "jsonl", "csv"]
TYPES: dict[Format, str] = {"json": "application/json", "jsonl": "application/jsonl", "csv": "text/csv"}
_CHUNK = 64 * 1024


def metrics_response(series: Series, format: Format) -> StreamingResponse:
    """The response with all values of a series."""
    lines = {"json": _json, "jsonl": _jsonl, "csv": _csv}[format](series)
    return StreamingResponse(_chunks(lines), media_type=TYPES[format])


def point_json(step: int, split: str, values: dict[str, float]) -> str:
    """The values of a step in one line."""
    return json.dumps({"step": step, "split": split, "values": values}, ensure_ascii=False, separators=(",", ":"))


def _points(values: Iterable[Value]) -> Iterator[tuple[int, str, dict[str, float]]]:
    for (step, split), group in groupby(values, key=lambda value: (value.step, value.split)):
        yield step, split, {value.name: value.value for value in group}


def _json(series: Series) -> Iterator[str]:
    yield '{"object":"list","data":['
    for number, point in enumerate(_points(series.values)):
        yield f"{',' if number else ''}{point_json(*point)}"
    yield f'],"has_more":{json.dumps(series.has_more)}}}'


def _jsonl(series: Series) -> Iterator[str]:
    return (point_json(*point) + "\n" for point in _points(series.values))


def _csv(series: Series) -> Iterator[str]:
    yield _row(["step", "split", *series.names])
    for step, split, values in _points(series.values):
        yield _row([step, split, *(values.get(name, "") for name in series.names)])


def _row(cells: list[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _chunks(lines: Iterable[str]) -> Iterator[bytes]:
    """The same text in fewer pieces: each costs a turn of the event loop."""
    waiting: list[str] = []
    size = 0
    for line in lines:
        waiting.append(line)
        size += len(line)
        if size >= _CHUNK:
            yield "".join(waiting).encode()
            waiting, size = [], 0
    yield "".join(waiting).encode()
