"""Who may call: keys of projects and administrators, or, without any key, programs on this machine.

`AuthMiddleware` asks every request below /v1 for its key before anything else looks at it, so a path nobody thought of
is closed as well. What the key may do is said at each route, by the scope its parameter names (`needs`); one that names
none takes a key with all scopes.

Keys are stored (`jobs.keys`), or come from the settings: BGPO_API_KEY opens the default project, BGPO_ADMIN_KEY
/v1/organization. Without BGPO_API_KEY (and without `require_keys`) the service listens on the loopback only and takes
any key, but a web page in a browser on this machine could still send requests there. So then the Host header must be a
loopback name (a page cannot forge it: DNS rebinding), and a request that a browser sends for a page must come from a
loopback page.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer, SecurityScopes
from pydantic import SecretStr
from starlette.types import ASGIApp, Receive, Scope, Send

from api.audit import record_refusal
from api.errors import envelope_of
from api.exchange import Caller, Exchange, exchange_of
from api.keyring import Keyring
from api.rates import Rates
from jobs.errors import Forbidden, RateLimited, ServiceError, Unauthorized
from jobs.keys import PREFIX
from jobs.scopes import ALL, missing
from jobs.scopes import Scope as KeyScope
from jobs.settings import Settings
from jobs.tables import DEFAULT_ORGANIZATION, DEFAULT_PROJECT

PUBLIC = ("/healthz", "/readyz", "/metrics")
"""What answers without a key."""
INFERENCE = ("/v1/chat/completions", "/v1/completions")
"""Paths whose requests are limited apart from other writes."""
_IDENTITY = frozenset({b"authorization", b"openai-organization", b"openai-project"})
_READS = ("GET", "HEAD", "OPTIONS")
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_scheme = HTTPBearer(
    auto_error=False, description="A project's key with the scope; without keys in the service any, from this machine."
)
_admin_scheme = HTTPBearer(
    auto_error=False, scheme_name="AdminKey", description="An administrator's key, which opens no project."
)


def check_exposure(settings: Settings) -> None:
    """Refuse to serve other machines without a key."""
    if _is_open(settings) and not settings.loopback_only:
        raise ValueError(
            f"BGPO_HOST {settings.host} can be reached from other machines: set BGPO_API_KEY, or BGPO_REQUIRE_KEYS=true"
        )


class AuthMiddleware:
    """Lets requests below /v1 pass with a key and within its rate; everything else goes on to `app` as it is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (scope["path"] + "/").startswith("/v1/"):
            exchange, request = exchange_of(scope), Request(scope)
            try:
                exchange.caller = await _identify(request, exchange)
                await _keep_rate(request, exchange, exchange.caller)
            except ServiceError as error:
                if not isinstance(error, RateLimited) or exchange.caller is None:
                    await record_refusal(request, error)
                await envelope_of(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


async def _identify(request: Request, exchange: Exchange) -> Caller:
    """Raises Unauthorized, Forbidden, RateLimited, Unavailable."""
    settings: Settings = request.app.state.settings
    keyring: Keyring = request.app.state.keyring
    is_open = _is_open(settings)
    if is_open:
        _require_local(request)
    sent = _sent(request.scope)
    given = _bearer(sent)
    if given is not None and given.startswith(PREFIX):
        return _matching(sent, await keyring.caller(given, exchange.ip))
    if given is not None and _is(given, settings.admin_key):
        project = DEFAULT_PROJECT if is_open else None
        return Caller(DEFAULT_ORGANIZATION, "BGPO_ADMIN_KEY", project, ALL if is_open else frozenset(), admin=True)
    limits = await keyring.default_limits()
    if is_open:
        admin = settings.admin_key is None
        return Caller(DEFAULT_ORGANIZATION, None, DEFAULT_PROJECT, ALL, admin=admin, limits=limits)
    if given is not None and _is(given, settings.api_key):
        return _matching(sent, Caller(DEFAULT_ORGANIZATION, "BGPO_API_KEY", DEFAULT_PROJECT, ALL, limits=limits))
    if given is None:
        raise Unauthorized("You didn't provide an API key. Send it as 'Authorization: Bearer YOUR_KEY'.")
    await keyring.require_patience(exchange.ip)
    await keyring.refused(exchange.ip)
    raise Unauthorized("Incorrect API key provided.")


async def _keep_rate(request: Request, exchange: Exchange, caller: Caller) -> None:
    """Count the request, and tell in its headers how many are left. Raises RateLimited."""
    if caller.project_id is None:
        return
    kind = "read" if request.method in _READS else "inference" if request.scope["path"] in INFERENCE else "write"
    limit: int | None = getattr(caller.limits, f"{kind}_requests_per_minute")
    if limit is None:
        return
    rates: Rates = request.app.state.rates
    window = await rates.take(kind, limit, caller.project_id)
    exchange.headers += window.headers("requests")
    if not window.allowed:
        raise RateLimited(f"Rate limit reached: {limit} {kind} requests a minute for the project.", window.reset_s)


def _sent(scope: Scope) -> dict[bytes, str]:
    """The headers that say who calls, read in one pass: this stands in the way of every poll."""
    return {name: value.decode("latin-1") for name, value in scope["headers"] if name in _IDENTITY}


def _bearer(sent: dict[bytes, str]) -> str | None:
    scheme, _, given = sent.get(b"authorization", "").partition(" ")
    return given.strip() or None if scheme.lower() == "bearer" else None


def _is(given: str, key: SecretStr | None) -> bool:
    return key is not None and secrets.compare_digest(given.encode(), key.get_secret_value().encode())


def _is_open(settings: Settings) -> bool:
    return settings.api_key is None and not settings.require_keys


def _matching(sent: dict[bytes, str], caller: Caller) -> Caller:
    """Refuse a key sent with the name of another organisation or project. Raises Unauthorized."""
    organization, project = sent.get(b"openai-organization"), sent.get(b"openai-project")
    if organization and organization != caller.organization_id:
        raise Unauthorized("OpenAI-Organization is not that of the API key.", code="mismatched_organization")
    if project and caller.project_id is not None and project != caller.project_id:
        raise Unauthorized("OpenAI-Project is not that of the API key.", code="mismatched_project")
    return caller


def _require_local(request: Request) -> None:
    if request.url.hostname not in _LOOPBACK:
        raise Forbidden("Without BGPO_API_KEY this service answers only to localhost and 127.0.0.1.")
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).hostname not in _LOOPBACK:
        raise Forbidden("Without BGPO_API_KEY this service answers no pages of other sites.")


def require_scraper(request: Request) -> None:
    """Let only those see the numbers of all projects who have the token, or, where none is set, this machine.

    A proxy on this machine speaks for others: what it passes on has their address (X-Forwarded-For) or its host name.

    Raises:
        Unauthorized, Forbidden: not them.
    """
    settings: Settings = request.app.state.settings
    if settings.metrics_token is not None:
        given = _bearer(_sent(request.scope))
        if given is None or not _is(given, settings.metrics_token):
            raise Unauthorized("Send the metrics token as 'Authorization: Bearer TOKEN'.")
        return
    peer = exchange_of(request.scope).ip
    if peer not in _LOOPBACK or "x-forwarded-for" in request.headers or "forwarded" in request.headers:
        raise Forbidden("Without BGPO_METRICS_TOKEN only programs of this machine may read the metrics.")
    _require_local(request)


async def _project(
    request: Request, scopes: SecurityScopes, _documented: Annotated[object, Depends(_scheme)]
) -> str:  # async: FastAPI would run a plain function in a thread, dearer than what it does
    try:
        return _permitted(_caller(request), scopes.scopes)
    except ServiceError as error:
        await record_refusal(request, error)
        raise


async def _administrator(request: Request, _documented: Annotated[object, Depends(_admin_scheme)]) -> Caller:
    caller = _caller(request)
    if caller.admin:
        return caller
    error: ServiceError = Forbidden("This needs an administrator's key.")
    if caller.key_id is None:  # the service has an administrator's key, and nobody sent it
        error = Unauthorized("Incorrect API key provided.")
    await record_refusal(request, error)
    raise error


async def _owner(
    request: Request,
    scopes: SecurityScopes,
    _documented: Annotated[object, Depends(_scheme)],
    _admins: Annotated[object, Depends(_admin_scheme)],
) -> Caller:
    caller = _caller(request)
    if caller.project_id is not None:
        await _project(request, scopes, None)
    return caller


def _caller(request: Request) -> Caller:
    caller = exchange_of(request.scope).caller
    if caller is None:
        raise Unauthorized("This path is not open to anybody.")
    return caller


def _permitted(caller: Caller, scopes: list[str]) -> str:
    if caller.project_id is None:
        raise Forbidden("An administrator's key opens /v1/organization only: use a key of the project.")
    lacking = missing(scopes, caller.scopes)
    if lacking:
        raise Forbidden(f"The API key lacks the scope {', '.join(lacking)}.")
    return caller.project_id


def needs(*scopes: KeyScope) -> Any:
    """The caller's project, for keys that have these scopes."""
    return Security(_project, scopes=list(scopes))


Admin = Annotated[Caller, Depends(_administrator)]
Owner = Annotated[Caller, Security(_owner, scopes=["jobs:write"])]
"""Who may write the project's jobs, or an administrator."""
