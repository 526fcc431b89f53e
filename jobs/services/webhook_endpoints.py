"""Webhook endpoints of a project: kept, changed, tried out. What goes to them: `jobs.services.webhooks`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import structlog
from sqlalchemy.orm import Session

from bgpo.egress import EgressFailed, EgressRefused
from jobs.context import Context
from jobs.errors import InvalidRequest, NotFound
from jobs.ids import ENDPOINT, JOB, WEBHOOK, new_id
from jobs.repositories import webhook_endpoints as endpoints
from jobs.services import webhook_requests, webhook_secrets
from jobs.services.paging import Page, cut
from jobs.tables import WebhookEndpoint
from jobs.vault import Undecryptable
from jobs.webhooks import EventType, body
from jobs.wire.webhooks import CreateWebhookEndpoint, UpdateWebhookEndpoint

MAX_ENDPOINTS = 50
"""Of a project: the end of a job writes a row for each."""
_SLACK_S = 5
_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Shown:
    """An endpoint with its secret, which is shown this once."""

    endpoint: WebhookEndpoint
    secret: str = field(repr=False)


def create(ctx: Context, project_id: str, wish: CreateWebhookEndpoint) -> Shown:
    """Make an endpoint. Raises InvalidRequest."""
    webhook_requests.check(ctx.settings, wish.url, "url")
    endpoint_id = new_id(ENDPOINT)
    made = webhook_secrets.make(ctx.settings, project_id, endpoint_id)
    values = wish.model_dump(exclude={"rl"}) | {"active": wish.rl.active, "secret_hint": made.hint}
    with ctx.db.transaction() as session:
        endpoint = endpoints.insert(session, project_id, endpoint_id, made.sealed, **values)
        if endpoints.count(session, project_id) > MAX_ENDPOINTS:
            raise InvalidRequest(f"A project has at most {MAX_ENDPOINTS} webhook endpoints: delete one first.")
    _log.info("webhook endpoint created", project_id=project_id, endpoint_id=endpoint_id)
    return Shown(endpoint, made.text)


def get(ctx: Context, project_id: str, endpoint_id: str) -> WebhookEndpoint:
    """An endpoint. Raises NotFound."""
    with ctx.db.read() as session:
        return _existing(session, project_id, endpoint_id)


def page(ctx: Context, project_id: str, *, after: str | None, limit: int) -> Page[WebhookEndpoint]:
    """Endpoints, newest first. Raises InvalidRequest for an unknown `after`."""
    with ctx.db.read() as session:
        start = endpoints.get(session, project_id, after) if after is not None else None
        if after is not None and start is None:
            raise InvalidRequest(f"after: no such webhook endpoint: {after}", "after")
        return cut(endpoints.page(session, project_id, after=start, limit=limit + 1), limit)


def update(ctx: Context, project_id: str, endpoint_id: str, wish: UpdateWebhookEndpoint) -> WebhookEndpoint:
    """Change what the request names. Raises NotFound, InvalidRequest."""
    if wish.url is not None:
        webhook_requests.check(ctx.settings, wish.url, "url")
    wanted = wish.model_dump(exclude={"rl"}, exclude_none=True) | wish.rl.model_dump(exclude_none=True)
    with ctx.db.transaction() as session:
        endpoint = _existing(session, project_id, endpoint_id, lock=True)
        changes = {name: value for name, value in wanted.items() if getattr(endpoint, name) != value}
        return endpoints.change(session, endpoint, **changes) if changes else endpoint


def delete(ctx: Context, project_id: str, endpoint_id: str) -> None:
    """Delete an endpoint and its deliveries, those that are still to be sent among them. Raises NotFound."""
    with ctx.db.transaction() as session:
        if not endpoints.delete(session, project_id, endpoint_id):
            raise _missing(endpoint_id)
    _log.info("webhook endpoint deleted", project_id=project_id, endpoint_id=endpoint_id)


def rotate(ctx: Context, project_id: str, endpoint_id: str, *, keep_old: bool) -> Shown:
    """Replace an endpoint's secret. Raises NotFound, InvalidRequest."""
    get(ctx, project_id, endpoint_id)
    made = webhook_secrets.make(ctx.settings, project_id, endpoint_id)
    with ctx.db.transaction() as session:
        endpoint = _existing(session, project_id, endpoint_id, lock=True)
        endpoint = endpoints.replace_secret(session, endpoint, made.sealed, made.hint, keep_old=keep_old)
    _log.info("webhook secret rotated", project_id=project_id, endpoint_id=endpoint_id, keep_old=keep_old)
    return Shown(endpoint, made.text)


def test(ctx: Context, project_id: str, endpoint_id: str, event_type: EventType) -> int:
    """Send an event about a job that does not exist, once and now; returns the status of the receiver's answer.

    Raises:
        NotFound: there is no such endpoint.
        Busy: this process sends as many as it may.
        InvalidRequest: no answer came.
    """
    with ctx.db.read() as session:
        endpoint = _existing(session, project_id, endpoint_id)
    sent_at, event_id = time.time(), new_id(WEBHOOK)
    content = body(event_id, event_type, sent_at, new_id(JOB))
    try:
        secrets = endpoints.secrets(endpoint, sent_at)
        signing_keys = webhook_secrets.opened(ctx.settings, project_id, endpoint_id, secrets)
    except Undecryptable as error:
        message = f"The service cannot read this endpoint's signing secret ({error}): rotate it."
        raise InvalidRequest(message, "id", "secret_unreadable") from error

    def send() -> int:
        sender = webhook_requests.Sender(ctx.settings)
        return sender.post(endpoint.url, event_id, sent_at, content, signing_keys).status

    try:
        return ctx.webhook_slots.run(send, within_s=ctx.settings.webhook_timeout_s + _SLACK_S)
    except EgressRefused as refused:
        raise _unanswered(f"the URL {refused.message}", refused.code) from refused
    except EgressFailed as failed:
        raise _unanswered(failed.message, "webhook_test_failed") from failed
    except TimeoutError as late:
        raise _unanswered("it took too long", "webhook_test_failed") from late


def _unanswered(why: str, code: str) -> InvalidRequest:
    return InvalidRequest(f"The webhook endpoint could not be reached: {why}.", "url", code)


def _missing(endpoint_id: str) -> NotFound:
    return NotFound(f"No such webhook endpoint: {endpoint_id}", "id")


def _existing(session: Session, project_id: str, endpoint_id: str, *, lock: bool = False) -> WebhookEndpoint:
    endpoint = endpoints.get(session, project_id, endpoint_id, lock=lock)
    if endpoint is None:
        raise _missing(endpoint_id)
    return endpoint
