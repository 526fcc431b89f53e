"""Webhook endpoints on the wire: OpenAI's objects; what those have no place for stands under `rl`."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import BaseModel, Field

from api.schemas.lists import Listed
from jobs.services.webhook_endpoints import Shown
from jobs.tables import WebhookEndpoint
from jobs.webhooks import EventType


class WebhookEndpointDetails(BaseModel):
    """`rl`: what OpenAI's object has no place for."""

    active: bool = Field(description="false: it is given no events, and what it still has to get waits.")
    old_secret_until: int | None = Field(description="When the secret before this one stops signing, if it was kept.")


class WebhookEndpointObject(Listed):
    """Where a project's events go."""

    id: str = Field(examples=["we_0197..."])
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    created_at: int
    updated_at: int = Field(description="Of the last change, its secret's included.")
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str = Field(examples=["whsec_...3fQ0"])
    rl: WebhookEndpointDetails


class WebhookEndpointWithSecret(WebhookEndpointObject):
    """An endpoint with its secret, which no other answer shows."""

    signing_secret: str


class WebhookEndpointDeleted(BaseModel):
    """Answer to a deletion."""

    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: Literal[True] = True


class WebhookEndpointTest(BaseModel):
    """What a receiver answered."""

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: str
    status_code: int = Field(description="Of the receiver's answer.")
    success: Literal[True] = Field(
        True, description="It answered, with whatever status; without answer it is an error."
    )


class WebhookEventTypes(BaseModel):
    """All types of events."""

    object: Literal["list"] = "list"
    data: list[str] = list(get_args(EventType))


def webhook_endpoint(row: WebhookEndpoint) -> WebhookEndpointObject:
    """A row as the wire has it."""
    return WebhookEndpointObject.model_validate(_values(row))


def with_secret(shown: Shown) -> WebhookEndpointWithSecret:
    """A row and its secret, once."""
    return WebhookEndpointWithSecret.model_validate(_values(shown.endpoint) | {"signing_secret": shown.secret})


def _values(row: WebhookEndpoint) -> dict[str, Any]:
    until = None if row.old_until is None else int(row.old_until)
    return {
        "id": row.id,
        "created_at": int(row.created_at),
        "updated_at": int(row.updated_at),
        "name": row.name,
        "url": row.url,
        "event_types": row.event_types,
        "signing_secret_hint": row.secret_hint,
        "rl": {"active": row.active, "old_secret_until": until},
    }
