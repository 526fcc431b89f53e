"""The list envelope of every page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, Field

from jobs.services.paging import Page


class Listed(BaseModel):
    """An object in a list."""

    id: str


Row = TypeVar("Row")
Item = TypeVar("Item", bound=Listed)


class ListOf(BaseModel, Generic[Item]):
    """A page; the next one starts `after` the last id."""

    object: Literal["list"] = "list"
    data: Sequence[Item]
    has_more: bool = False
    first_id: str | None = Field(None, description="Id of the first object here.")
    last_id: str | None = Field(None, description="Id of the last object here.")


def list_of(page: Page[Row], show: Callable[[Row], Item]) -> ListOf[Item]:
    """A page of rows as the wire has it."""
    data = [show(row) for row in page.rows]
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return ListOf(data=data, has_more=page.has_more, first_id=first, last_id=last)
