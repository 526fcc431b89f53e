"""List parameters that jobs and tasks share: statuses, and metadata as clients write them."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import Query, Request

from jobs.errors import InvalidRequest
from jobs.states import WIRE_STATUSES, State, states_of

_METADATA = re.compile(r"metadata\[(.+)\]")
Status = Annotated[list[str] | None, Query(description="Only these; repeat, or separate by commas.")]


def states(statuses: list[str] | None) -> set[State] | None:
    """The states that clients see as these statuses; None = any. Raises InvalidRequest."""
    given = [name for item in statuses or [] for name in item.split(",") if name]
    wrong = [name for name in given if name not in WIRE_STATUSES]
    if wrong:
        raise InvalidRequest(f"status: {wrong[0]} is none of {', '.join(WIRE_STATUSES)}.", "status")
    found = {state for status in WIRE_STATUSES if status in given for state in states_of(status)}
    return found if given else None


def metadata(request: Request) -> tuple[dict[str, str], bool]:
    """`metadata[key]=value` pairs that objects must have, and whether only those with none are meant. Raises
    InvalidRequest."""
    tags: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        found = _METADATA.fullmatch(name)
        if found is None:
            continue
        if "\x00" in name + value:
            raise InvalidRequest("metadata must not contain NUL.", "metadata")
        tags[found[1]] = value
    literal = request.query_params.get("metadata")
    if literal not in (None, "null"):
        raise InvalidRequest("metadata takes metadata[key]=value, or null.", "metadata")
    return tags, literal == "null"
