"""What the layers of one request tell each other: its id, where it came from, who calls, headers of the answer.

It travels in the ASGI scope, which every layer and every route function sees.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from starlette.types import Scope

from jobs.limits import ProjectLimits

_KEY = "bgpo.exchange"


@dataclass(frozen=True)
class Caller:
    """Whose key a request has."""

    organization_id: str
    key_id: str | None
    """Id of a stored key, the name of the setting that holds it, or None for a program of this machine without one."""
    project_id: str | None = None
    """The project it opens; None for an administrator's key."""
    scopes: frozenset[str] = frozenset()
    admin: bool = False
    """May do what administrators may."""
    limits: ProjectLimits = field(default_factory=ProjectLimits)


@dataclass
class Exchange:
    """One request and its response."""

    request_id: str
    ip: str | None
    caller: Caller | None = None
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Added to the response."""
    route: str | None = None
    """Template of the path, when a layer before the routes has answered."""
    received: bool = False
    """The whole body has arrived, or the client has gone."""


def begin(scope: Scope, request_id: str) -> Exchange:
    """Put a new exchange into the scope."""
    client = scope.get("client")
    exchange = Exchange(request_id, client[0] if client else None)
    scope[_KEY] = exchange
    return exchange


def exchange_of(scope: Scope) -> Exchange:
    """The exchange of a request."""
    exchange: Exchange = scope[_KEY]
    return exchange
