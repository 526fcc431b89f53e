"""Bodies of the requests about webhook endpoints."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from jobs.webhooks import EventType
from jobs.wire.base import StorableWire, Wire

Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Url = Annotated[str, StringConstraints(min_length=1, max_length=2048)]


def _once(types: list[EventType]) -> list[EventType]:
    return list(dict.fromkeys(types))


EventTypes = Annotated[list[EventType], Field(min_length=1, max_length=64), AfterValidator(_once)]


class NewEndpointExtensions(Wire):
    """`rl` of an endpoint to be made."""

    active: bool = Field(True, description="false: it is given no events, and what it still has to get waits.")


class EndpointExtensions(Wire):
    """`rl` of an endpoint to be changed."""

    active: bool | None = Field(None, description="false: it is given no events, and what it still has to get waits.")


class CreateWebhookEndpoint(StorableWire):
    """An endpoint to be made."""

    name: Name
    url: Url = Field(description="https, port 443, a public address; see docs/egress.md.")
    event_types: EventTypes
    rl: NewEndpointExtensions = NewEndpointExtensions()


class UpdateWebhookEndpoint(StorableWire):
    """What is to change of an endpoint; the rest stays."""

    name: Name | None = None
    url: Url | None = Field(None, description="What is still to be delivered goes there, too.")
    event_types: EventTypes | None = Field(None, description="All of them, not only those that come to it.")
    rl: EndpointExtensions = EndpointExtensions()


class RotateWebhookSecret(Wire):
    """How an endpoint's secret is replaced."""

    keep_old_secret_active_for_24_hours: bool = Field(
        False, description="Webhooks have a signature by either for a day."
    )


class TestWebhookEndpoint(Wire):
    """What is to be sent to an endpoint, to try it out."""

    __test__ = False  # no test class, for pytest

    event_type: EventType
