"""Tables of uploads in parts, and of requests that must make their object once however often they arrive."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from jobs.base import Base


class Upload(Base):
    """A file that arrives in parts. It becomes a row of `files` when it is completed."""

    __tablename__ = "uploads"
    __table_args__ = (sa.Index(None, "project_id", "state"), sa.Index(None, "expires_at"))

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str]
    created_at: Mapped[float]
    expires_at: Mapped[float]
    """A pending upload takes no parts from then on."""
    filename: Mapped[str]
    purpose: Mapped[str]
    mime_type: Mapped[str]
    bytes: Mapped[int]
    """As announced; what the parts must come to."""
    file_expires_s: Mapped[int | None]
    """Seconds the file is to be kept."""
    state: Mapped[str]
    """pending, completed, cancelled or expired."""
    file_id: Mapped[str | None]
    """The file it became."""
    part_ids: Mapped[list[str] | None]
    """The parts it was completed with, in order."""


class Part(Base):
    """A piece of a pending upload; its bytes are in the artifact store under `key`."""

    __tablename__ = "upload_parts"
    __table_args__ = (sa.Index(None, "upload_id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    upload_id: Mapped[str] = mapped_column(sa.ForeignKey("uploads.id", ondelete="CASCADE"))
    created_at: Mapped[float]
    bytes: Mapped[int]
    sha256: Mapped[str]
    key: Mapped[str]


class RequestRow(Base):
    """A request that makes an object: written before the work begins, finished in the transaction that makes it."""

    __tablename__ = "requests"
    __table_args__ = (
        sa.UniqueConstraint("project_id", "operation", "idempotency_key"),
        sa.Index(None, "project_id", "operation", "digest", "created_at"),
        sa.Index(None, "created_at"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str]
    caller: Mapped[str]
    """The API key it came with."""
    operation: Mapped[str]
    """What it asks for: file, upload, part, job."""
    idempotency_key: Mapped[str | None]
    digest: Mapped[str]
    """Of all that the request says."""
    created_at: Mapped[float]
    retries: Mapped[int]
    """Number of the last retry of the client that was given to this request, 0 = none."""
    token: Mapped[str]
    """Of the process that does the work; another one if that one died."""
    alive_until: Mapped[float]
    """Renewed while the work goes on."""
    object_id: Mapped[str | None]
    """What was made."""
