"""Bodies of /v1/uploads."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jobs.wire.base import StorableWire

MAX_PARTS = 10_000
_MOST = 2**53


class ExpiresAfter(StorableWire):
    """When the file is to vanish."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=2_592_000, description="Between an hour and 30 days.")


class CreateUpload(StorableWire):
    """A file that is to come in parts."""

    bytes: int = Field(ge=1, le=_MOST, description="What the parts will come to.")
    filename: str = Field(min_length=1, max_length=1024)
    mime_type: str = Field(max_length=255, description="Kept nowhere but here: the purpose says what a file is.")
    purpose: str
    expires_after: ExpiresAfter | None = Field(None, description="Of the file, counted from its completion.")


class CompleteUpload(StorableWire):
    """The parts in their order."""

    part_ids: list[str] = Field(min_length=1, max_length=MAX_PARTS)
    md5: str | None = Field(None, pattern=r"^[0-9a-fA-F]{32}$", description="Of the whole file.")
