"""What the trainer prints, line by line, from its log file: for the job's user, without paths and secrets.

Bounded, whatever it prints: so many lines a turn, and what was written faster than it is read is passed over. Of a line
that overwrites itself (a progress bar) the last form counts. Levels are guessed from words that logging programs use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jobs.repositories.events import Level
from jobs.repositories.logs import MAX_TEXT
from worker.paths import hide

_CHUNK = 64 * 1024
_BEHIND = 1024 * 1024
_LINES = 100
_ERROR = re.compile(r"\b(ERROR|CRITICAL|FATAL)\b|^Traceback |^\w*(Error|Exception)\b")
_WARN = re.compile(r"\bWARN(ING)?\b|Warning:")


@dataclass(frozen=True)
class Printed:
    """Lines of an attempt."""

    first: int
    """Number of the first one in the attempt, from 1."""
    lines: tuple[tuple[Level, str], ...]


class LogReader:
    """Reads on from where it was. For one thread."""

    def __init__(self, path: Path, places: Mapping[str, str]) -> None:
        """Read the file at `path`; `places` is what to hide (`worker.paths`)."""
        self._path, self._places = path, places
        self._offset, self._count = 0, 0
        self._partial = b""

    def read(self, *, to_end: bool = False) -> Printed | None:
        """The lines printed since the last call, if any; with `to_end` also one that was not ended."""
        try:
            lines = self._lines(to_end)
        except OSError:  # the folder of an attempt that was taken from us is tidied up
            return None
        if not lines:
            return None
        if len(lines) > _LINES:
            lines = [f"[{len(lines) - _LINES} lines left out]", *lines[-_LINES:]]
        printed = Printed(self._count + 1, tuple((_level(line), line) for line in lines))
        self._count += len(lines)
        return printed

    def _lines(self, to_end: bool) -> list[str]:
        size = self._path.stat().st_size
        passed = max(0, size - self._offset - _CHUNK) if to_end or size - self._offset > _BEHIND else 0
        said = []
        with self._path.open("rb") as log:
            if passed:
                self._offset += passed
                self._partial = b""
                said = [f"[{passed} bytes left out]"]
            log.seek(self._offset)
            data = log.read(_CHUNK)
        self._offset += len(data)
        if passed:  # the rest of a line may be the rest of a secret
            data = data.partition(b"\n")[2]
        *whole, self._partial = (self._partial + data).split(b"\n")
        self._partial = self._partial[:_CHUNK]  # more of a line is shown to nobody
        if to_end and self._partial:
            whole, self._partial = [*whole, self._partial], b""
        return [*said, *(text for line in whole if (text := self._text(line)))]

    def _text(self, line: bytes) -> str:
        last = line.rstrip(b"\r").rpartition(b"\r")[2]
        return hide(last.decode(errors="replace").rstrip(), self._places)[:MAX_TEXT]


def _level(line: str) -> Level:
    if _ERROR.search(line):
        return "error"
    return "warn" if _WARN.search(line) else "info"
