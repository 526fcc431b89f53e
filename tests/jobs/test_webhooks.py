"""Webhooks from the end of a job to a receiver on loopback, on both databases."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
import sqlalchemy as sa
import structlog
from pydantic import ValidationError

from bgpo.egress import Egress
from jobs.db import Database, now
from jobs.errors import InvalidState, NotFound
from jobs.ids import WEBHOOK, new_id
from jobs.repositories import events, job_rows, webhooks
from jobs.services import webhooks as service
from jobs.services.webhooks import deliver_due
from jobs.settings import Settings
from jobs.states import State
from jobs.tables import DEFAULT_PROJECT, Delivery
from jobs.webhooks import RETRY_DELAYS_S
from tests.jobs.receivers import OK, Receiver, Request, receiver, saying, status

SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()
OTHER = "whsec_" + base64.b64encode(b"t" * 32).decode()

Make = Callable[..., str]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """May reach loopback."""
    return Settings(home=tmp_path / "home", webhook_secret=SECRET, webhook_allow_private=True, webhook_timeout_s=20)


@pytest.fixture
def put(db: Database, make_job: Make) -> Callable[[str], str]:
    """Stores a webhook that is due, to a URL; its job has succeeded."""

    def make(url: str) -> str:
        job_id = make_job(webhook_url=url, state=State.SUCCEEDED)
        with db.transaction() as session:
            webhooks.enqueue(session, job_id)
            return session.scalars(sa.select(Delivery.id).where(Delivery.job_id == job_id)).one()

    return make


def read(db: Database, delivery_id: str) -> Delivery:
    with db.read() as session:
        return session.get_one(Delivery, delivery_id)


def deliveries(db: Database, job_id: str) -> list[Delivery]:
    with db.read() as session:
        return webhooks.of_job(session, job_id)


def skip_wait(db: Database) -> None:
    """Let the time of all waits and leases pass."""
    with db.transaction() as session:
        session.execute(sa.update(Delivery).values(next_at=0))


def hook(server: Receiver) -> str:
    return f"http://127.0.0.1:{server.port}/hook?token=hush"


def warnings(db: Database, job_id: str) -> list[str]:
    with db.read() as session:
        return [event.message for event in events.since(session, job_id, 0, 100) if event.level == "warn"]


class TestDelivery:
    def test_a_webhook_arrives_as_the_openai_client_expects_it(
        self, db: Database, settings: Settings, make_job: Make
    ) -> None:
        with receiver(saying(OK)) as server:
            job_id = make_job(webhook_url=hook(server))
            with db.transaction() as session:
                job_rows.cancel(session, DEFAULT_PROJECT, job_id)
            assert deliver_due(settings, db) == 1
            assert deliver_due(settings, db) == 0
        (request,) = server.requests
        (row,) = deliveries(db, job_id)
        assert request.line == "POST /hook?token=hush HTTP/1.1"
        assert request.headers["content-type"] == "application/json"
        assert request.headers["webhook-id"] == row.id
        event = openai.OpenAI(api_key="any").webhooks.unwrap(request.body, request.headers, secret=SECRET)
        assert event.to_dict() == {
            "id": row.id,
            "object": "event",
            "created_at": int(row.created_at),
            "type": "fine_tuning.job.cancelled",
            "data": {"id": job_id},
        }
        assert isinstance(event, openai.types.webhooks.FineTuningJobCancelledWebhookEvent)
        assert (row.state, row.attempts, row.last_status, row.last_error) == ("delivered", 1, 200, None)
        assert row.delivered_at is not None

    def test_another_secret_and_a_changed_body_are_refused(
        self, db: Database, settings: Settings, put: Callable[[str], str]
    ) -> None:
        with receiver(saying(OK)) as server:
            put(hook(server))
            deliver_due(settings, db)
        (request,) = server.requests
        unwrap = openai.OpenAI(api_key="any").webhooks.unwrap
        with pytest.raises(openai.InvalidWebhookSignatureError):
            unwrap(request.body, request.headers, secret=OTHER)
        with pytest.raises(openai.InvalidWebhookSignatureError):
            unwrap(request.body.replace(b"succeeded", b"cancelled"), request.headers, secret=SECRET)
        with pytest.raises(openai.InvalidWebhookSignatureError):
            unwrap(request.body, request.headers | {"webhook-id": "evt_other"}, secret=SECRET)

    def test_while_a_secret_is_replaced_both_are_accepted(
        self, db: Database, settings: Settings, put: Callable[[str], str]
    ) -> None:
        both = Settings(**(settings.model_dump() | {"webhook_secret": f"{OTHER} {SECRET}"}))
        with receiver(saying(OK)) as server:
            put(hook(server))
            deliver_due(both, db)
        (request,) = server.requests
        unwrap = openai.OpenAI(api_key="any").webhooks.unwrap
        for secret in (SECRET, OTHER):
            assert unwrap(request.body, request.headers, secret=secret).type == "fine_tuning.job.succeeded"
        third = "whsec_" + base64.b64encode(b"u" * 32).decode()
        with pytest.raises(openai.InvalidWebhookSignatureError):
            unwrap(request.body, request.headers, secret=third)

    def test_a_failed_try_is_repeated_later_with_the_same_id_and_bytes(
        self, db: Database, settings: Settings, put: Callable[[str], str]
    ) -> None:
        with receiver(saying(status(500), OK)) as server:
            delivery_id = put(hook(server))
            assert deliver_due(settings, db) == 1
            row = read(db, delivery_id)
            assert (row.state, row.attempts, row.last_status) == ("pending", 1, 500)
            assert row.last_error == "the receiver answered 500"
            assert deliver_due(settings, db) == 0  # not due
            skip_wait(db)
            assert deliver_due(settings, db) == 1
        first, second = server.requests
        assert first.body == second.body
        assert first.headers["webhook-id"] == second.headers["webhook-id"] == delivery_id
        row = read(db, delivery_id)
        assert (row.state, row.attempts, row.last_status, row.last_error) == ("delivered", 2, 200, None)

    def test_each_try_waits_longer_and_the_last_is_a_dead_letter(
        self, db: Database, settings: Settings, put: Callable[[str], str]
    ) -> None:
        waits = []
        with receiver(saying(status(503))) as server:
            delivery_id = put(hook(server))
            job_id = read(db, delivery_id).job_id
            for _ in range(len(RETRY_DELAYS_S)):
                assert deliver_due(settings, db) == 1
                assert warnings(db, job_id) == []
                with db.read() as session:
                    waits.append(session.scalars(sa.select(Delivery.next_at - now())).one())
                skip_wait(db)
            assert deliver_due(settings, db) == 1
            skip_wait(db)
            assert deliver_due(settings, db) == 0
        for wait, planned in zip(waits, RETRY_DELAYS_S, strict=True):
            assert planned - 60 < wait < planned * 1.2  # a slow machine may have taken a part of it
        row = read(db, delivery_id)
        assert (row.state, row.attempts, row.last_status) == ("dead", len(RETRY_DELAYS_S) + 1, 503)
        assert len(server.requests) == row.attempts
        (warning,) = warnings(db, job_id)
        assert "fine_tuning.job.succeeded could not be delivered in 8 tries: the receiver answered 503" in warning
        assert "token" not in warning

    def test_gone_is_a_dead_letter_at_once(self, db: Database, settings: Settings, put: Callable[[str], str]) -> None:
        with receiver(saying(status(410))) as server:
            delivery_id = put(hook(server))
            deliver_due(settings, db)
        row = read(db, delivery_id)
        assert (row.state, row.attempts, row.last_status) == ("dead", 1, 410)
        assert len(warnings(db, row.job_id)) == 1

    def test_a_redirect_is_a_failed_try(self, db: Database, settings: Settings, put: Callable[[str], str]) -> None:
        with receiver(saying(OK)) as inner, receiver(saying(status(307, f"Location: {hook(inner)}"))) as server:
            delivery_id = put(hook(server))
            deliver_due(settings, db)
        assert inner.connections == 0
        row = read(db, delivery_id)
        assert (row.state, row.last_status) == ("pending", 307)
        assert row.last_error == "the receiver answered 307: redirects are not followed"

    def test_a_receiver_may_ask_for_a_longer_wait(
        self, db: Database, settings: Settings, put: Callable[[str], str]
    ) -> None:
        with receiver(saying(status(429, "Retry-After: 5000"))) as server:
            put(hook(server))
            deliver_due(settings, db)
        with db.read() as session:
            assert 4900 < session.scalars(sa.select(Delivery.next_at - now())).one() <= 5000

    def test_nobody_listens(self, db: Database, settings: Settings, put: Callable[[str], str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        delivery_id = put(f"http://127.0.0.1:{port}/")
        deliver_due(settings, db)
        row = read(db, delivery_id)
        assert (row.state, row.last_status, row.last_error) == ("pending", None, "it refused the connection")

    def test_nothing_goes_to_private_addresses_unless_allowed(
        self, db: Database, settings: Settings, put: Callable[[str], str]
    ) -> None:
        with receiver(saying(OK)) as server:
            strict = {"webhook_allow_private": False, "egress_ports": (443, server.port)}
            plain, secure = put(hook(server)), put(f"https://127.0.0.1:{server.port}/")
            deliver_due(Settings(**(settings.model_dump() | strict)), db)
        assert server.connections == 0
        assert read(db, plain).last_error == "the URL must begin with https://"
        assert read(db, secure).last_error == "the URL leads to an address that is not public"

    def test_a_list_of_hosts_holds_for_webhooks(
        self, db: Database, settings: Settings, put: Callable[[str], str]
    ) -> None:
        with receiver(saying(OK)) as server:
            delivery_id = put(hook(server))
            deliver_due(Settings(**(settings.model_dump() | {"egress_hosts": ("*.Example.com",)})), db)
        assert server.connections == 0
        assert read(db, delivery_id).last_error == "the URL has a host that is not on this service's list of hosts"

    def test_a_list_of_hosts_with_something_else_on_it(self, tmp_path: Path) -> None:
        assert Settings(home=tmp_path, egress_hosts=("*.Example.com",)).egress_hosts == ("*.example.com",)
        with pytest.raises(ValidationError, match="is no host"):
            Settings(home=tmp_path, egress_hosts=("https://example.com",))

    def test_without_secret_nothing_is_sent(self, db: Database, settings: Settings, put: Callable[[str], str]) -> None:
        with receiver(saying(OK)) as server:
            delivery_id = put(hook(server))
            assert deliver_due(Settings(**(settings.model_dump() | {"webhook_secret": None})), db) == 0
        assert (server.connections, read(db, delivery_id).attempts) == (0, 0)

    def test_slow_receivers_do_not_hold_up_the_others(
        self, db: Database, settings: Settings, put: Callable[[str], str]
    ) -> None:
        over = threading.Event()

        def stall(request: Request, connection: socket.socket) -> None:
            over.wait(60)

        quick = Settings(**(settings.model_dump() | {"webhook_timeout_s": 1}))
        with receiver(stall) as slow, receiver(saying(OK)) as good:
            stalled = [put(hook(slow)) for _ in range(4)]
            fine = [put(hook(good)) for _ in range(6)]
            delivering = threading.Thread(target=deliver_due, args=(settings, db))
            delivering.start()
            good.wait(6)  # while the slow ones hold their connections
            assert delivering.is_alive()
            assert good.connections == 6
            over.set()
            delivering.join()
            over.clear()
            skip_wait(db)
            assert deliver_due(quick, db) == 4
            over.set()
        assert {read(db, delivery_id).state for delivery_id in fine} == {"delivered"}
        assert {read(db, delivery_id).last_error for delivery_id in stalled} == {"it took too long"}

    def test_a_fault_of_ours_is_a_failed_try(
        self, db: Database, settings: Settings, put: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*args: Any, **options: Any) -> None:
            raise RuntimeError("a defect")

        delivery_id = put("http://127.0.0.1:1/")
        monkeypatch.setattr(Egress, "request", broken)
        assert deliver_due(settings, db) == 1
        row = read(db, delivery_id)
        assert (row.attempts, row.last_error) == (1, "the service failed to send it")

    def test_secrets_are_in_no_log(self, db: Database, settings: Settings, put: Callable[[str], str]) -> None:
        with receiver(saying(status(500), OK)) as server, structlog.testing.capture_logs() as logs:
            put(hook(server))
            deliver_due(settings, db)
            skip_wait(db)
            deliver_due(settings, db)
        assert [entry["event"] for entry in logs] == ["webhook not delivered", "webhook delivered"]
        text = json.dumps(logs)
        for secret in (
            SECRET,
            base64.b64encode(b"s" * 32).decode(),
            "hush",
            server.requests[0].headers["webhook-signature"],
        ):
            assert secret not in text
        assert SECRET not in repr(settings)


DELIVER = """
from jobs.db import Database
from jobs.log import configure_logging
from jobs.services.webhooks import deliver_due
from jobs.settings import Settings
settings = Settings()
configure_logging(settings)
print(deliver_due(settings, Database(settings.database_url)))
"""
KILLED_BEFORE_IT_CAN_MARK = """
import os, signal
from jobs.repositories import webhooks
webhooks.mark_delivered = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
"""


class TestSeveralSenders:
    """A try is sent once, whoever looks for it; a sender that dies loses nothing."""

    @pytest.fixture
    def environment(self, database_url: str, tmp_path: Path) -> dict[str, str]:
        return os.environ | {
            "BGPO_HOME": str(tmp_path / "home"),
            "BGPO_DATABASE_URL": database_url,
            "BGPO_WEBHOOK_SECRET": SECRET,
            "BGPO_WEBHOOK_ALLOW_PRIVATE": "true",
            "BGPO_LOG_LEVEL": "error",
        }

    @pytest.fixture
    def senders(self, database_url: str) -> Iterator[list[Database]]:
        databases = [Database(database_url) for _ in range(3)]
        yield databases
        for database in databases:
            database.dispose()

    def test_threads_send_each_webhook_once(
        self, settings: Settings, senders: list[Database], put: Callable[[str], str]
    ) -> None:
        with receiver(saying(OK)) as server:
            made = [put(hook(server)) for _ in range(30)]
            barrier = threading.Barrier(len(senders))

            def work(database: Database) -> int:
                barrier.wait()
                return deliver_due(settings, database)

            with ThreadPoolExecutor(len(senders)) as pool:
                sent = list(pool.map(work, senders))
        assert sum(sent) == 30
        assert Counter(request.headers["webhook-id"] for request in server.requests) == Counter(made)

    def test_processes_send_each_webhook_once(
        self, db: Database, put: Callable[[str], str], environment: dict[str, str]
    ) -> None:
        with receiver(saying(OK)) as server:
            made = [put(hook(server)) for _ in range(20)]
            running = [
                subprocess.Popen([sys.executable, "-c", DELIVER], env=environment, stdout=subprocess.PIPE, text=True)
                for _ in range(2)
            ]
            sent = [int(process.communicate(timeout=100)[0]) for process in running]
        assert sum(sent) == 20
        assert Counter(request.headers["webhook-id"] for request in server.requests) == Counter(made)
        assert {read(db, delivery_id).state for delivery_id in made} == {"delivered"}

    def test_a_sender_killed_between_sending_and_marking(
        self, db: Database, settings: Settings, put: Callable[[str], str], environment: dict[str, str]
    ) -> None:
        with receiver(saying(OK)) as server:
            delivery_id = put(hook(server))
            command = [sys.executable, "-c", KILLED_BEFORE_IT_CAN_MARK + DELIVER]
            assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
            row = read(db, delivery_id)
            assert (row.state, row.attempts, len(server.requests)) == ("pending", 1, 1)
            assert deliver_due(settings, db) == 0  # it might still be sending
            skip_wait(db)
            assert deliver_due(settings, db) == 1
        first, second = server.requests
        assert first.body == second.body
        assert first.headers["webhook-id"] == second.headers["webhook-id"] == delivery_id
        assert (read(db, delivery_id).state, read(db, delivery_id).attempts) == ("delivered", 2)

    def test_a_late_failure_does_not_undo_a_newer_try(self, db: Database, put: Callable[[str], str]) -> None:
        """A sender that was frozen for longer than its lease comes back."""
        delivery_id = put("http://127.0.0.1:1/")
        claimed = []
        for _ in range(2):
            with db.transaction() as session:
                claimed.append(webhooks.claim_due(session, 60))
            skip_wait(db)
        late, newer = claimed
        assert late is not None
        assert newer is not None
        assert (late.attempt, newer.attempt) == (1, 2)
        with db.transaction() as session:
            assert not webhooks.mark_failed(session, late, 500, "late", None)
            webhooks.mark_delivered(session, newer, 200)
            assert not webhooks.mark_failed(session, newer, 500, "impossible", 5)
        assert read(db, delivery_id).state == "delivered"

    def test_a_late_success_counts(self, db: Database, put: Callable[[str], str]) -> None:
        delivery_id = put("http://127.0.0.1:1/")
        with db.transaction() as session:
            late = webhooks.claim_due(session, 60)
        skip_wait(db)
        with db.transaction() as session:
            newer = webhooks.claim_due(session, 60)
        assert late is not None
        assert newer is not None
        with db.transaction() as session:
            webhooks.mark_failed(session, newer, 500, "no", None)
            webhooks.mark_delivered(session, late, 200)
        assert read(db, delivery_id).state == "delivered"


class TestUsers:
    """What a job's user sees; over HTTP in tests/api."""

    @pytest.fixture
    def ctx(self, db: Database) -> Any:
        return SimpleNamespace(db=db)

    def test_a_dead_delivery_is_sent_again(
        self, db: Database, settings: Settings, put: Callable[[str], str], ctx: Any
    ) -> None:
        with receiver(saying(status(410), OK)) as server:
            delivery_id = put(hook(server))
            deliver_due(settings, db)
            job_id = read(db, delivery_id).job_id
            revived = service.redeliver(ctx, DEFAULT_PROJECT, job_id, delivery_id)
            assert (revived.state, revived.attempts, revived.last_status) == ("pending", 0, 410)
            assert deliver_due(settings, db) == 1
        first, second = server.requests
        assert (first.body, first.headers["webhook-id"]) == (second.body, second.headers["webhook-id"])
        assert read(db, delivery_id).state == "delivered"
        with pytest.raises(InvalidState, match="is delivered"):
            service.redeliver(ctx, DEFAULT_PROJECT, job_id, delivery_id)

    def test_only_ones_own(self, db: Database, put: Callable[[str], str], make_job: Make, ctx: Any) -> None:
        delivery_id, other_job = put("http://127.0.0.1:1/"), make_job()
        job_id = read(db, delivery_id).job_id
        with db.transaction() as session:
            session.execute(sa.update(Delivery).values(state="dead"))
        with pytest.raises(NotFound):
            service.redeliver(ctx, "proj_other", job_id, delivery_id)
        with pytest.raises(NotFound):
            service.of_job(ctx, "proj_other", job_id)
        for wrong in (delivery_id + "0", "evt_", new_id(WEBHOOK)):
            with pytest.raises(NotFound):
                service.redeliver(ctx, DEFAULT_PROJECT, job_id, wrong)
        with pytest.raises(NotFound):
            service.redeliver(ctx, DEFAULT_PROJECT, other_job, delivery_id)
        assert read(db, delivery_id).state == "dead"
        assert service.of_job(ctx, DEFAULT_PROJECT, other_job) == []
        assert [row.id for row in service.of_job(ctx, DEFAULT_PROJECT, job_id)] == [delivery_id]
