"""The two forms that bring bytes: a whole file, and a part of an upload."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from fastapi import Request

from api.multipart import Layout, receive_form
from jobs.errors import InvalidRequest
from jobs.services.files import MAX_EXPIRES_S, MIN_EXPIRES_S, Received, check_purpose
from jobs.services.uploads import Piece
from jobs.settings import Settings

ANCHOR, SECONDS = "expires_after[anchor]", "expires_after[seconds]"


@asynccontextmanager
async def receive_file(request: Request, settings: Settings) -> AsyncIterator[Received]:
    """A file for POST /v1/files. Raises as `receive_form`, and for a purpose or a time no file can have."""
    layout = Layout("file", ("purpose", ANCHOR, SECONDS), settings.max_file_bytes, _check)
    async with receive_form(request, layout, settings.scratch) as form:
        seconds = _expires_s(form.fields)
        yield Received(form.path, form.filename, form.fields["purpose"], form.bytes, form.sha256, seconds)


@asynccontextmanager
async def receive_part(request: Request, settings: Settings) -> AsyncIterator[Piece]:
    """A part for POST /v1/uploads/{id}/parts. Raises as `receive_form`."""
    async with receive_form(request, Layout("data", (), settings.max_part_bytes), settings.scratch) as form:
        yield Piece(form.path, form.bytes, form.sha256)


def _check(fields: Mapping[str, str], all_there: bool) -> None:
    if all_there or "purpose" in fields:
        check_purpose(fields.get("purpose"))
    if all_there or {ANCHOR, SECONDS} <= fields.keys():
        _expires_s(fields)


def _expires_s(fields: Mapping[str, str]) -> int | None:
    anchor, seconds = fields.get(ANCHOR), fields.get(SECONDS)
    if anchor is None and seconds is None:
        return None
    for name, value in ((ANCHOR, anchor), (SECONDS, seconds)):
        if value is None:
            raise InvalidRequest(f"{name} is required with the other one.", name, "missing_required_parameter")
    if anchor != "created_at":
        raise InvalidRequest(f"{ANCHOR} must be created_at.", ANCHOR)
    found = int(seconds) if seconds is not None and seconds.isdecimal() and len(seconds) < 10 else 0
    if not MIN_EXPIRES_S <= found <= MAX_EXPIRES_S:
        raise InvalidRequest(f"{SECONDS} must be between {MIN_EXPIRES_S} and {MAX_EXPIRES_S}.", SECONDS)
    return found
