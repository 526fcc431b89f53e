"""Tables of webhooks: the endpoints a project has, and the outbox of what is to be delivered."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from jobs.base import Base


class WebhookEndpoint(Base):
    """Where a project's events go. Its signing secrets are encrypted (`jobs.vault`)."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (sa.Index(None, "project_id", "created_at", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str]
    created_at: Mapped[float]
    updated_at: Mapped[float]
    """Of the last change of what follows; trying it out is none."""
    name: Mapped[str]
    url: Mapped[str]
    event_types: Mapped[list[str]]
    active: Mapped[bool]
    """While it is not, it is given no events, and those it has wait."""
    ciphertext: Mapped[str]
    key_id: Mapped[str]
    """Which of the installation's keys the secret is encrypted with."""
    secret_hint: Mapped[str]
    old_ciphertext: Mapped[str | None]
    old_key_id: Mapped[str | None]
    old_until: Mapped[float | None]
    """Until then the secret before this one signs as well."""


class Delivery(Base):
    """One webhook to be delivered: the outbox. Written in the transaction that ends the job.

    It is the job's own, or an endpoint's; each has one of each type and job.
    """

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        sa.Index(None, "state", "next_at"),
        sa.Index(
            None,
            "job_id",
            "type",
            unique=True,
            postgresql_where=sa.text("endpoint_id IS NULL"),
            sqlite_where=sa.text("endpoint_id IS NULL"),
        ),
        sa.UniqueConstraint("job_id", "type", "endpoint_id"),
        sa.Index(None, "endpoint_id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    """`evt_...`: the event's id, and the webhook-id header of every try."""
    project_id: Mapped[str]
    job_id: Mapped[str] = mapped_column(sa.ForeignKey("jobs.id"))
    type: Mapped[str]
    """fine_tuning.job.succeeded, .failed or .cancelled."""
    endpoint_id: Mapped[str | None] = mapped_column(sa.ForeignKey("webhook_endpoints.id", ondelete="CASCADE"))
    url: Mapped[str | None]
    """The job's `webhook_url`; None = the URL that the endpoint has at the time of the try."""
    created_at: Mapped[float]
    state: Mapped[str]
    """pending, delivered or dead."""
    attempts: Mapped[int]
    next_at: Mapped[float]
    last_status: Mapped[int | None]
    last_error: Mapped[str | None]
    delivered_at: Mapped[float | None]
