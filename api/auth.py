"""Who may call: the bearer key of the settings, or, without one, programs on this machine.

The administrator's key is another one, and opens /v1/organization only. Without any key this machine's programs may do
that as well; with a project's key alone nobody may.

Without a key the service listens on the loopback only, but a web page in a browser on this machine could still send
requests there. So then the Host header must be a loopback name (a page cannot forge it: DNS rebinding), and a request
that a browser sends for a page must come from a loopback page.
"""

from __future__ import annotations

import secrets
from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from pydantic import SecretStr

from jobs.errors import Forbidden, Unauthorized
from jobs.settings import Settings
from jobs.tables import DEFAULT_PROJECT

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_scheme = HTTPBearer(auto_error=False, description="The key of BGPO_API_KEY; without one any key, from this machine.")


def check_exposure(settings: Settings) -> None:
    """Refuse to serve other machines without a key."""
    if settings.api_key is None and not settings.loopback_only:
        raise ValueError(f"BGPO_HOST {settings.host} can be reached from other machines: set BGPO_API_KEY")


def authenticate(request: Request) -> str:
    """The project the caller may work in. Raises Unauthorized, Forbidden."""
    settings: Settings = request.app.state.settings
    if settings.api_key is None:
        _require_local(request)
        return DEFAULT_PROJECT
    if not _is(_bearer(request), settings.api_key):
        raise Unauthorized("Incorrect API key provided.")
    return DEFAULT_PROJECT


def require_admin(request: Request, _documented: Annotated[object, Depends(_scheme)]) -> None:
    """Let only the administrator pass. Raises Unauthorized, Forbidden."""
    settings: Settings = request.app.state.settings
    if settings.api_key is None:
        _require_local(request)
        if settings.admin_key is None:
            return
    given = _bearer(request)
    if settings.admin_key is not None and _is(given, settings.admin_key):
        return
    if settings.api_key is not None and _is(given, settings.api_key):
        raise Forbidden("This needs the administrator's key, BGPO_ADMIN_KEY of the service.")
    raise Unauthorized("Incorrect API key provided.")


def _bearer(request: Request) -> str:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not given:
        raise Unauthorized("You didn't provide an API key. Send it as 'Authorization: Bearer YOUR_KEY'.")
    return given.strip()


def _is(given: str, key: SecretStr) -> bool:
    return secrets.compare_digest(given.encode(), key.get_secret_value().encode())


def _require_local(request: Request) -> None:
    if request.url.hostname not in _LOOPBACK:
        raise Forbidden("Without BGPO_API_KEY this service answers only to localhost and 127.0.0.1.")
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).hostname not in _LOOPBACK:
        raise Forbidden("Without BGPO_API_KEY this service answers no pages of other sites.")


async def _caller(request: Request, _documented: Annotated[object, Depends(_scheme)]) -> str:
    return authenticate(request)  # FastAPI would run a plain function in a thread: dearer than what it does


Project = Annotated[str, Depends(_caller)]
Admin = Annotated[None, Depends(require_admin)]
