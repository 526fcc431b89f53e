"""Deliveries of webhooks on the wire."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, Field

from api.schemas.lists import Listed
from jobs.tables import Delivery


class WebhookDeliveryObject(Listed):
    """A webhook of a job, and how far it got."""

    id: str = Field(examples=["evt_0197..."], description="The event's id, and the webhook-id header of every try.")
    object: Literal["fine_tuning.job.webhook_delivery"] = "fine_tuning.job.webhook_delivery"
    created_at: int
    type: str = Field(examples=["fine_tuning.job.succeeded"])
    webhook_endpoint_id: str | None = Field(description="Where it goes; null = to the job's `rl.webhook_url`.")
    state: Literal["pending", "delivered", "dead"] = Field(description="dead = not tried any more.")
    attempts: int = Field(description="Tries so far.")
    last_status: int | None = Field(description="HTTP status of the last answer; null when none came.")
    last_error: str | None = Field(description="Why the last try failed.")
    next_at: int | None = Field(description="Not tried again before this time; null when not tried any more.")
    delivered_at: int | None


class WebhookDeliveries(BaseModel):
    """All webhooks of a job."""

    object: Literal["list"] = "list"
    data: Sequence[WebhookDeliveryObject]
    has_more: bool = False


def webhook_delivery(row: Delivery) -> WebhookDeliveryObject:
    """A row as the wire has it; the URL stays with the job or the endpoint."""
    shown = {name: getattr(row, name) for name in ("id", "type", "state", "attempts", "last_status", "last_error")}
    return WebhookDeliveryObject.model_validate(
        shown
        | {
            "webhook_endpoint_id": row.endpoint_id,
            "created_at": int(row.created_at),
            "next_at": int(row.next_at) if row.state == "pending" else None,
            "delivered_at": None if row.delivered_at is None else int(row.delivered_at),
        }
    )
