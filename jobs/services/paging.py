"""A page of a list: rows were asked for one more than shown, to know whether there are more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from jobs.errors import InvalidRequest

T = TypeVar("T")


@dataclass(frozen=True)
class Page(Generic[T]):
    """Some rows of a list."""

    rows: Sequence[T]
    has_more: bool


def cut(rows: Sequence[T], limit: int) -> Page[T]:
    """The first `limit` of the rows."""
    return Page(rows[:limit], len(rows) > limit)


def require_start(after: str | None, found: object | None) -> None:
    """Raises InvalidRequest: a list is to go on behind an object that it does not have."""
    if after is not None and found is None:
        raise InvalidRequest(f"after: no such object in this list: {after}", "after")
