"""Webhooks: sending the ones that are due, and what a job's user sees of them.

A delivery is claimed, sent with no transaction open, and marked with what became of it (`jobs.repositories.webhooks`).
Nothing of a receiver's answer is kept but its status, and no URL is logged: it may hold a token.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import structlog

from bgpo.egress import EgressFailed, EgressRefused
from bgpo.egress.signing import keys
from jobs.context import Context
from jobs.db import Database
from jobs.errors import InvalidRequest, InvalidState, NotFound
from jobs.repositories import events, job_rows, webhooks
from jobs.repositories.webhooks import Due
from jobs.services import webhook_secrets
from jobs.services.webhook_requests import Sender
from jobs.settings import Settings
from jobs.tables import Delivery
from jobs.vault import Undecryptable
from jobs.webhooks import body, retry_in

PARALLEL = 8
"""Tries at once, so that a receiver that takes all its time does not hold up the others."""
_GONE = 410
_SLACK_S = 30
_log = structlog.get_logger(__name__)


def deliver_due(settings: Settings, database: Database) -> int:
    """Send the webhooks that are due; returns the number of tries.

    Any number of processes may do so at once. Takes at most about twice `webhook_timeout_s`; what is then still due is
    left for the next call. Without a secret of the installation, what goes to URLs of jobs is left as it is.
    """
    with database.read() as session:
        due = webhooks.count_due(session, PARALLEL, own=settings.webhook_secret is not None)
    if not due:
        return 0
    deliverer = _Deliverer(settings, database)
    with ThreadPoolExecutor(due, thread_name_prefix="webhooks") as pool:
        return sum(pool.map(lambda _: deliverer.run(), range(due)))


def of_job(ctx: Context, project_id: str, job_id: str) -> Sequence[Delivery]:
    """The deliveries of a job, oldest first. Raises NotFound."""
    with ctx.db.read() as session:
        if job_rows.get(session, project_id, job_id) is None:
            raise NotFound(f"No such fine-tuning job: {job_id}", "id")
        return webhooks.of_job(session, job_id)


def redeliver(ctx: Context, project_id: str, job_id: str, delivery_id: str) -> Delivery:
    """Begin again with a dead delivery: the same event, with all its tries. Raises NotFound, InvalidState."""
    with ctx.db.transaction() as session:
        if job_rows.get(session, project_id, job_id) is None:
            raise NotFound(f"No such fine-tuning job: {job_id}", "id")
        revived = webhooks.revive(session, job_id, delivery_id)
        delivery = webhooks.get(session, job_id, delivery_id)
    if delivery is None:
        raise NotFound(f"No such webhook delivery: {delivery_id}", "delivery_id")
    if not revived:
        raise InvalidState(f"Webhook delivery {delivery_id} is {delivery.state}; only a dead one can be sent again.")
    return delivery


class _Deliverer:
    """One call's work; its threads share it."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings, self._database, self._sender = settings, database, Sender(settings)
        secret = settings.webhook_secret
        self._own_keys = [] if secret is None else keys(secret.get_secret_value())
        self._until = time.monotonic() + settings.webhook_timeout_s

    def run(self) -> int:
        """One try after the other, until none is due or the time is over; returns how many."""
        tries, lease_s = 0, self._settings.webhook_timeout_s + _SLACK_S
        while time.monotonic() < self._until:
            with self._database.transaction() as session:
                due = webhooks.claim_due(session, lease_s, own=bool(self._own_keys))
            if due is None:
                break
            self._send(due)
            tries += 1
        return tries

    def _send(self, due: Due) -> None:
        content = body(due.id, due.type, due.created_at, due.job_id)
        try:
            reply = self._sender.post(due.url, due.id, due.sent_at, content, self._keys(due))
        except EgressRefused as refused:
            self._failed(due, None, f"the URL {refused.message}")
        except EgressFailed as failed:
            self._failed(due, None, failed.message)
        except (Undecryptable, InvalidRequest) as error:
            _log.error("webhook could not be signed", delivery_id=due.id, error=str(error))
            self._failed(due, None, "the service cannot read the endpoint's signing secret: rotate it")
        except Exception:  # boundary of one delivery: a fault of ours must neither repeat for ever nor stop the others
            _log.exception("webhook could not be sent", delivery_id=due.id)
            self._failed(due, None, "the service failed to send it")
        else:
            if 200 <= reply.status < 300:
                self._delivered(due, reply.status)
            else:
                self._failed(due, reply.status, _meaning(reply.status), reply.headers.get("retry-after"))

    def _keys(self, due: Due) -> list[bytes]:
        if due.endpoint_id is None:
            return self._own_keys
        return webhook_secrets.opened(self._settings, due.project_id, due.endpoint_id, due.secrets)

    def _delivered(self, due: Due, status: int) -> None:
        with self._database.transaction() as session:
            webhooks.mark_delivered(session, due, status)
        _log.info("webhook delivered", delivery_id=due.id, job_id=due.job_id, attempt=due.attempt, status=status)

    def _failed(self, due: Due, status: int | None, error: str, retry_after: str | None = None) -> None:
        wait = None if status == _GONE else retry_in(due.attempt, retry_after, due.sent_at)
        with self._database.transaction() as session:
            marked = webhooks.mark_failed(session, due, status, error, wait)
            if marked and wait is None:
                message = f"The webhook {due.type} could not be delivered in {due.attempt} tries: {error}"
                events.append(session, due.job_id, None, "warn", message, data={"webhook_delivery": due.id})
        _log.warning(
            "webhook not delivered",
            delivery_id=due.id,
            job_id=due.job_id,
            attempt=due.attempt,
            error=error,
            wait_s=wait,
        )


def _meaning(status: int) -> str:
    if status == _GONE:
        return "the receiver answered 410: it wants no more webhooks"
    if 300 <= status < 400:
        return f"the receiver answered {status}: redirects are not followed"
    return f"the receiver answered {status}"
